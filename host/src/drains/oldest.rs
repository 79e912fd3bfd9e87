//! Drains of the proxy's own: of versions that are more than may have open streams beside the active one.

use super::{Cause, Drains, Order, TooMany};
use crate::plugin::{Crew, Generation, GenerationId};
use crate::stream::{Close, CloseReason, StreamFilter};
use crate::worker::Workers;
use serde_json::json;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Mutex;

/// WebSocket close code of a version that is drained: come back, another one serves (RFC 6455, 7.4.1, by IANA).
const SERVICE_RESTART: u16 = 1012;
/// What both ends are told.
const REASON: &str = "version drained: newer versions";
/// Who started it, as lists of drains say it.
const ACTOR: &str = "throwbar";

/// The workers as deploying sees them, with the drains that close the streams of old versions.
pub struct DrainingCrew {
    workers: Workers,
    drains: Arc<Drains>,
    /// Swaps that follow each other closely are seen to in their order.
    turn: Arc<Mutex<()>>,
}

impl DrainingCrew {
    /// A crew of these workers, whose drains are among these.
    pub fn new(workers: Workers, drains: Arc<Drains>) -> Self {
        Self {
            workers,
            drains,
            turn: Arc::default(),
        }
    }
}

impl Crew for DrainingCrew {
    fn warm(
        &self,
        generation: Arc<Generation>,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(self.workers.warm(generation))
    }

    fn retire(&self, generation: GenerationId) {
        self.workers.retire(generation);
    }

    fn drain(&self, plugin: &str, drained: &[String], active: &str, over: Duration) {
        // Called from the control runtime and its blocking threads; it ends with the runtime at the latest.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let active = filter(plugin, active);
        let orders: Vec<Order> = drained
            .iter()
            .map(|digest| order(plugin, digest, over))
            .collect();
        let (workers, drains) = (self.workers.clone(), self.drains.clone());
        let turn = self.turn.clone();
        runtime.spawn(async move {
            let _turn = turn.lock().await;
            // Streams of a version that is active again are those of an old one no longer.
            drains.end(&active, Cause::MaxDraining);
            for order in orders {
                let selector = order.selector.clone();
                match drains.start_for_rest(&workers, order).await {
                    Ok(Some(drain)) => {
                        let (id, matched) = (drain.id, drain.matched);
                        tracing::info!(drain = id, %selector, matched, ?over, "streams of an old version are closed");
                    }
                    Ok(None) => {}
                    Err(error @ TooMany) => {
                        tracing::warn!(%error, %selector, "streams of an old version stay open until the next swap");
                    }
                }
            }
        });
    }
}

fn filter(plugin: &str, digest: &str) -> StreamFilter {
    StreamFilter {
        plugin: Some(plugin.into()),
        version: Some(digest.into()),
        ..StreamFilter::default()
    }
}

fn order(plugin: &str, digest: &str, over: Duration) -> Order {
    Order {
        filter: filter(plugin, digest),
        selector: json!({ "plugin": plugin, "version": digest }),
        over,
        close: Close {
            code: SERVICE_RESTART,
            reason: REASON.into(),
            why: CloseReason::Drain,
        },
        cause: Cause::MaxDraining,
        actor: ACTOR.to_owned(),
    }
}
