//! One data-plane thread: its runtime, its listeners, its connection pools, its warm instances.

use crate::stream::{StreamFilter, StreamId, StreamInfo};

/// Handles to all data-plane threads; clones share them.
#[derive(Clone)]
pub struct Workers {
    _private: (),
}

impl Workers {
    /// Open streams of every worker, oldest first, at most `limit`.
    pub async fn streams(&self, _filter: StreamFilter, _limit: usize) -> Vec<StreamInfo> {
        unimplemented!()
    }

    /// Closes one stream with this WebSocket close code and reason, towards both ends; false if there is none.
    pub async fn close_stream(&self, _id: StreamId, _code: u16, _reason: String) -> bool {
        unimplemented!()
    }
}
