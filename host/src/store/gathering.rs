//! Which batches share a transaction: what a sync to disk costs, they pay together.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::writer::{Command, Pending};

/// Most batches that share one transaction.
const GROUP_BATCHES_MAX: usize = 256;
/// A group takes no further batch once it has this many writes.
const GROUP_WRITES_MAX: usize = 65_536;
/// What share of the time of a transaction may be spent on waiting for more batches.
const WAIT_SHARE: u32 = 8;
/// However long a transaction takes.
const WAIT_MAX: Duration = Duration::from_millis(1);

/// What the last group tells of the next.
///
/// Writers that wait for their answer come back together, a moment after the group that had them. Without a wait the first
/// of them would have a transaction of its own, and all others one after it: every second sync would be for one batch. So
/// a group waits until it is as large as the last, for a fraction of what a transaction takes. A lone writer waits never.
#[derive(Default)]
pub(super) struct Gathering {
    /// How many batches the last group had.
    pub(super) last: usize,
    /// How long it took to commit.
    pub(super) took: Duration,
}

impl Gathering {
    /// The group that begins with a batch, and the command that came after it, if another kind did.
    pub(super) fn gather(
        &self,
        first: Pending,
        commands: &Receiver<Command>,
    ) -> (Vec<Pending>, Option<Command>) {
        let wait = (self.took / WAIT_SHARE).min(WAIT_MAX);
        self.gather_until(first, commands, Instant::now() + wait)
    }

    fn gather_until(
        &self,
        first: Pending,
        commands: &Receiver<Command>,
        until: Instant,
    ) -> (Vec<Pending>, Option<Command>) {
        let mut writes = first.batch.writes.len();
        let mut group = vec![first];
        while group.len() < GROUP_BATCHES_MAX && writes < GROUP_WRITES_MAX {
            let next = match commands.try_recv() {
                Ok(next) => next,
                Err(_) if group.len() >= self.last => break,
                Err(_) => {
                    let left = until.saturating_duration_since(Instant::now());
                    match commands.recv_timeout(left) {
                        Ok(next) => next,
                        Err(_) => break,
                    }
                }
            };
            match next {
                Command::Commit(pending) => {
                    writes += pending.batch.writes.len();
                    group.push(pending);
                }
                other => return (group, Some(other)),
            }
        }
        (group, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::batch::WriteBatch;
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};
    use tokio::sync::Semaphore;

    fn pending() -> Pending {
        let places = Arc::new(Semaphore::new(1));
        Pending {
            batch: WriteBatch::default(),
            notes: Vec::new(),
            done: Box::new(drop),
            _permit: places.try_acquire_owned().expect("it is free"),
        }
    }

    fn queue(batches: usize) -> (Sender<Command>, Receiver<Command>) {
        let (commands, queue) = channel();
        for _ in 0..batches {
            commands
                .send(Command::Commit(pending()))
                .expect("it is open");
        }
        (commands, queue)
    }

    #[test]
    fn a_group_takes_what_waits_up_to_its_bound_and_leaves_the_rest() {
        let (_commands, queue) = queue(GROUP_BATCHES_MAX + 10);
        let gathering = Gathering::default();
        let (group, after) = gathering.gather(pending(), &queue);
        assert_eq!((group.len(), after.is_none()), (GROUP_BATCHES_MAX, true));
        let (group, _) = gathering.gather(pending(), &queue);
        assert_eq!(group.len(), 12);
    }

    #[test]
    fn another_command_ends_a_group_and_comes_after_it() {
        let (commands, queue) = queue(2);
        commands.send(Command::Close).expect("it is open");
        commands
            .send(Command::Commit(pending()))
            .expect("it is open");
        let gathering = Gathering {
            last: 100,
            took: Duration::from_secs(60),
        };
        let (group, after) = gathering.gather(pending(), &queue);
        assert_eq!(group.len(), 3);
        assert!(matches!(after, Some(Command::Close)));
    }

    #[test]
    fn a_group_waits_for_as_many_as_the_last_had_and_for_no_more() {
        // Nothing ends this wait but the batches, or a minute.
        let (commands, queue) = channel();
        let sender = std::thread::spawn(move || {
            for _ in 0..2 {
                commands
                    .send(Command::Commit(pending()))
                    .expect("it is open");
            }
            commands
        });
        let gathering = Gathering {
            last: 3,
            took: Duration::from_secs(60),
        };
        let until = Instant::now() + Duration::from_secs(60);
        let (group, _) = gathering.gather_until(pending(), &queue, until);
        assert_eq!(group.len(), 3);
        drop(sender.join());
    }
}
