//! How a follower's connection to a server of the engine ends, and what it does then.

use super::Event;
use super::pause::Pause;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// Why a connection is over.
pub(super) enum Ended {
    /// What is to follow is not in the log any more.
    Gap,
    /// The receiver is gone.
    Left,
    /// The server, or the way to it.
    Lost(String),
}

impl Ended {
    /// Tells it, and pauses if there is to be another connection: whether there is.
    pub(super) async fn goes_on(self, events: &mpsc::Sender<Event>, pause: &mut Pause) -> bool {
        let told = match self {
            Self::Left => return false,
            Self::Gap => {
                // Whether it is heard no longer matters.
                let _ = events.send(Event::Gap).await;
                return false;
            }
            Self::Lost(reason) => events.send(Event::Lost(reason)).await,
        };
        if told.is_err() {
            return false;
        }
        tokio::select! {
            () = events.closed() => false,
            () = sleep(pause.next()) => true,
        }
    }
}
