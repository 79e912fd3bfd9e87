//! What a decision may say of the stream it opens.

use crate::door;
use std::time::Duration;

/// What becomes of a stream when the entry it was routed by gets another value, or is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// Nothing.
    Keep,
    /// It is closed with code 1012, `after` the change, the streams of the entry one after the other `over` a time.
    Drain {
        /// From the change to the first that may be closed.
        after: Duration,
        /// From there to the last.
        over: Duration,
    },
    /// It is closed with code 1012.
    Close,
}

/// Says it of the stream that the decision of the running call opens, if it forwards to an [`Entry`](crate::Entry) and the
/// request becomes a WebSocket. The last call counts; without one, what the config says of the bucket holds.
pub fn on_change(policy: OnChange) {
    door::on_change(policy);
}
