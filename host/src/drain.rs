//! Stop new, finish old, deadline: one type for connections, listeners and workers.

use std::cell::Cell;
use tokio::sync::Notify;

/// A drain within one thread: it begins once and stays begun.
#[derive(Default)]
pub struct Drain {
    begun: Cell<bool>,
    notify: Notify,
}

impl Drain {
    /// Stops what is new.
    pub fn begin(&self) {
        self.begun.set(true);
        self.notify.notify_waiters();
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Waits for it to begin.
    pub async fn begun(&self) {
        if !self.has_begun() {
            self.notify.notified().await;
        }
    }
}
