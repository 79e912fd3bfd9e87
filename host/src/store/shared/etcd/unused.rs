//! Leases that nothing has any longer, given back.
//!
//! To revoke a lease deletes every entry that has it. One of a single entry is of no use, for sure, once that has another. Of
//! one of several, this proxy may know only some: it follows its own buckets, and the transaction may have written to others. So
//! the server is asked which keys have it. What answers is the leader's memory, and a leader may be behind: it knows of the
//! lease, and not yet of the transaction, and tells that nothing has it. Therefore a key of its own is given the lease first, the
//! mark. An answer with the mark is of a moment after that, and so after the transaction, which was seen before; if the mark is
//! all that has the lease, nothing else has it then, nor gets it later: only its transaction gave it to entries, and a write that
//! leaves an entry its lease (`ignore_lease`) needs one that has it. Then it is revoked, and the mark goes with it. Otherwise
//! it ends by itself, or is given back by who replaces the last of its entries.

use super::Inner;
use super::connect::Connection;
use super::leases::Of;
use etcd_client::{LeaseTimeToLiveOptions, PutOptions};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Leases of either kind that wait to be given back. What is beyond ends by itself.
const WAITING_MAX: usize = 4096;
/// Leases given back at once.
const AT_ONCE: usize = 16;
/// How long one of several waits: a leader that is a little behind still tells of an entry that has it no longer, and the lease
/// would be left to end by itself.
const WAIT: Duration = Duration::from_secs(1);

/// What is to be given back.
#[derive(Default)]
pub(super) struct Unused {
    waiting: Mutex<Waiting>,
    added: Notify,
}

#[derive(Default)]
struct Waiting {
    /// Nothing has these.
    of_one: VecDeque<i64>,
    /// Of these, no entry is known; and since when they wait.
    of_several: VecDeque<(Instant, i64)>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Revoke(i64),
    /// Revoke it if nothing has it.
    Ask(i64),
    Wait(Option<Duration>),
}

impl Waiting {
    fn add(&mut self, lease: i64, of: Of, now: Instant) {
        match of {
            Of::One if self.of_one.len() < WAITING_MAX => self.of_one.push_back(lease),
            Of::Several if self.of_several.len() < WAITING_MAX => {
                self.of_several.push_back((now, lease));
            }
            _ => {}
        }
    }

    fn next(&mut self, now: Instant) -> Next {
        if let Some(lease) = self.of_one.pop_front() {
            return Next::Revoke(lease);
        }
        let Some((since, lease)) = self.of_several.front() else {
            return Next::Wait(None);
        };
        let left = (*since + WAIT).saturating_duration_since(now);
        if !left.is_zero() {
            return Next::Wait(Some(left));
        }
        let lease = *lease;
        self.of_several.pop_front();
        Next::Ask(lease)
    }
}

impl Unused {
    /// Nothing has this lease; or, of one of several, no entry that is known.
    pub(super) fn add(&self, lease: i64, of: Of) {
        self.waiting().add(lease, of, Instant::now());
        self.added.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives them back, for as long as it is polled. What cannot be given back ends by itself.
    pub(super) async fn run(&self, inner: &Inner, connection: &Connection) -> Infallible {
        let mut running = JoinSet::new();
        loop {
            while running.len() >= AT_ONCE {
                running.join_next().await;
            }
            let next = self.waiting().next(Instant::now());
            let (connection, limit) = (connection.clone(), inner.settings.timeout);
            match next {
                Next::Revoke(lease) => {
                    let revoked = async move { connection.leases().revoke(lease).await.is_ok() };
                    running.spawn(tokio::time::timeout(limit, revoked));
                }
                Next::Ask(lease) => {
                    let mark = inner.keys.mark_of_lease(lease).into_bytes();
                    let revoked = async move { revoke_unused(&connection, lease, mark).await };
                    running.spawn(tokio::time::timeout(limit, revoked));
                }
                Next::Wait(None) => self.added.notified().await,
                Next::Wait(Some(left)) => tokio::select! {
                    () = self.added.notified() => {}
                    () = tokio::time::sleep(left) => {}
                },
            }
        }
    }
}

/// Revokes a lease of several entries, if none has it any longer. Returns whether it did.
async fn revoke_unused(connection: &Connection, lease: i64, mark: Vec<u8>) -> bool {
    let mut client = connection.leases();
    let mut is_marked = false;
    loop {
        let question = LeaseTimeToLiveOptions::new().with_keys();
        let answer = match client.time_to_live(lease, Some(question)).await {
            // One that is gone already has no length.
            Ok(answer) if answer.granted_ttl() > 0 => answer,
            _ => return false,
        };
        match step(answer.keys(), &mark) {
            Step::Revoke => return client.revoke(lease).await.is_ok(),
            Step::Mark if !is_marked => {
                let with_lease = PutOptions::new().with_lease(lease);
                let put = connection.kv().put(&*mark, "", Some(with_lease)).await;
                if put.is_err() {
                    return false;
                }
                is_marked = true;
            }
            // If the leader does not know of the mark yet, it may not know of entries either.
            Step::Mark | Step::Leave => return false,
        }
    }
}

/// What a leader's answer allows.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Mark,
    Revoke,
    Leave,
}

/// By the keys that have a lease, as the leader tells.
fn step(keys: &[Vec<u8>], mark: &[u8]) -> Step {
    match keys {
        [] => Step::Mark,
        [key] if key == mark => Step::Revoke,
        _ => Step::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_revoked_only_if_its_mark_is_all_that_has_it() {
        let of = |keys: &[&str]| {
            let keys: Vec<_> = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
            step(&keys, b"mark")
        };
        assert_eq!(of(&[]), Step::Mark);
        assert_eq!(of(&["mark"]), Step::Revoke);
        assert_eq!(of(&["a"]), Step::Leave);
        assert_eq!(of(&["a", "mark"]), Step::Leave);
        assert_eq!(of(&["mark", "z"]), Step::Leave);
    }

    #[test]
    fn leases_of_several_entries_wait_each_in_turn_and_hold_up_no_other() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let later = now + WAIT / 2;
        assert_eq!(waiting.next(now), Next::Wait(None));
        waiting.add(1, Of::Several, now);
        waiting.add(2, Of::Several, later);
        assert_eq!(waiting.next(later), Next::Wait(Some(WAIT / 2)));
        waiting.add(3, Of::One, later);
        assert_eq!(waiting.next(later), Next::Revoke(3));
        assert_eq!(waiting.next(now + WAIT), Next::Ask(1));
        assert_eq!(waiting.next(now + WAIT), Next::Wait(Some(WAIT / 2)));
        assert_eq!(waiting.next(later + WAIT), Next::Ask(2));
        assert_eq!(waiting.next(later + WAIT), Next::Wait(None));
    }

    #[test]
    fn leases_that_wait_to_be_given_back_are_bounded() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for lease in 0..2 * WAITING_MAX as i64 {
            waiting.add(lease, Of::One, now);
            waiting.add(lease, Of::Several, now);
        }
        assert_eq!(waiting.of_one.len(), WAITING_MAX);
        assert_eq!(waiting.of_several.len(), WAITING_MAX);
    }
}
