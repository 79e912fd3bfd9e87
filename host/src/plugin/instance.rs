//! One sandbox: memory bound, deadline, a decision at a time.

use super::{Decision, Generation, RequestHead};
use crate::store::{Snapshot, WriteBatch};
use std::sync::Arc;

/// One sandbox of a generation, used by one thread.
pub struct Instance {
    _private: (),
}

/// What a call gave.
#[derive(Debug)]
pub struct Routed {
    /// The checked decision.
    pub decision: Decision,
    /// What it wrote; to be committed before the decision is acted on.
    pub writes: Option<WriteBatch>,
}

/// Why a call gave no decision. Except for `Decision`, the instance must be dropped: see [`Instance::is_poisoned`].
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The guest trapped.
    #[error("trap: {0}")]
    Trap(String),
    /// It was cut at its deadline.
    #[error("deadline of {0:?} exceeded")]
    Deadline(std::time::Duration),
    /// What it returned cannot be acted on.
    #[error("bad decision: {0}")]
    Decision(#[from] super::DecisionError),
    /// It could not be instantiated.
    #[error("instantiate: {0}")]
    Instantiate(String),
}

impl Instance {
    /// Instantiates and runs `init`, under the limits of the generation.
    ///
    /// # Errors
    /// [`RouteError::Instantiate`], [`RouteError::Trap`] or [`RouteError::Deadline`].
    pub fn new(_generation: &Arc<Generation>) -> Result<Self, RouteError> {
        unimplemented!()
    }

    /// The generation it belongs to.
    pub fn generation(&self) -> &Arc<Generation> {
        unimplemented!()
    }

    /// Decides one request, reading the store at `snapshot`. The head is given back whatever happens.
    pub fn route(
        &mut self,
        _head: RequestHead,
        _snapshot: &Arc<Snapshot>,
    ) -> (RequestHead, Result<Routed, RouteError>) {
        unimplemented!()
    }

    /// Whether it trapped, was cut, or has done its share of calls, and must be dropped.
    pub fn is_poisoned(&self) -> bool {
        unimplemented!()
    }
}
