//! Entries that etcd should have ended by now, and has not.
//!
//! A leader of etcd 3.4 looks for what is over by its wall clock: once that was set back, nothing ends until it is where it
//! was (etcd-io/etcd issue 12291). How much is left of a lease it tells by a clock that does not jump. So a lease that lives
//! on beyond its end is asked for, and revoked if nothing is left of it. A proxy whose own clock is wrong asks too late, or
//! too early, and then again when it has been told. As long as etcd ends its leases, nothing is asked.

use super::Inner;
use super::connect::Connection;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long after its end a lease is asked for: etcd looks twice a second.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Leases asked for at one look, and at once.
const LOOKED_AT_MAX: usize = 256;
const AT_ONCE: usize = 16;
/// When one is asked for again that could not be.
const AGAIN: Duration = Duration::from_secs(5);

/// The leases of entries, by their keys in etcd, and when each is to be asked for.
#[derive(Default)]
pub(super) struct Known {
    entries: HashMap<Arc<[u8]>, Lease>,
    asks: BTreeMap<Lease, Arc<[u8]>>,
    /// What the keys begin with that the log tells of.
    followed: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lease {
    ask_at: Instant,
    number: i64,
}

impl Known {
    /// An entry has this lease now, which should end then; or none.
    pub(super) fn learn(&mut self, key: &[u8], lease: Option<(i64, Instant)>) {
        if let Some((key, before)) = self.entries.remove_entry(key) {
            self.asks.remove(&before);
            if let Some((number, ends)) = lease {
                self.insert(key, number, ends);
            }
        } else if let Some((number, ends)) = lease {
            self.insert(key.into(), number, ends);
        }
    }

    fn insert(&mut self, key: Arc<[u8]>, number: i64, ends: Instant) {
        let ask_at = ends + PATIENCE;
        let lease = Lease { ask_at, number };
        self.asks.insert(lease, Arc::clone(&key));
        self.entries.insert(key, lease);
    }

    /// Nothing is known of keys that begin so.
    pub(super) fn forget(&mut self, beginning: &[u8]) {
        let asks = &mut self.asks;
        self.entries.retain(|key, lease| {
            let stays = !key.starts_with(beginning);
            if !stays {
                asks.remove(lease);
            }
            stays
        });
    }

    /// What the log tells of from now on. What it no longer tells of would stay for ever; what was loaded and is yet to be
    /// followed stays.
    pub(super) fn follow(&mut self, beginnings: Vec<String>) {
        let before = std::mem::replace(&mut self.followed, beginnings);
        for beginning in before {
            if !self.followed.contains(&beginning) {
                self.forget(beginning.as_bytes());
            }
        }
    }

    /// The lease that an entry has, as far as is known.
    pub(super) fn lease(&self, key: &[u8]) -> Option<i64> {
        self.entries.get(key).map(|lease| lease.number)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Leases to be asked for now. They are again later, unless something else is learnt of them.
    fn overdue(&mut self, now: Instant) -> Vec<(Arc<[u8]>, i64)> {
        let due = self.asks.iter().take(LOOKED_AT_MAX);
        let due = due.take_while(|(lease, _)| lease.ask_at <= now);
        let due: Vec<_> = due
            .map(|(lease, key)| (Arc::clone(key), lease.number))
            .collect();
        for (key, number) in &due {
            self.learn(key, Some((*number, now + AGAIN)));
        }
        due
    }

    /// A lease has ended.
    fn ended(&mut self, key: &[u8], number: i64) {
        if self.lease(key) == Some(number) {
            self.learn(key, None);
        }
    }

    /// A lease ends then.
    fn ends(&mut self, key: &[u8], number: i64, at: Instant) {
        // It may have another by now.
        if self.lease(key) == Some(number) {
            self.learn(key, Some((number, at)));
        }
    }
}

/// Ends what is overdue, for as long as it is polled.
pub(super) async fn run(inner: &Inner, connection: &Connection) -> Infallible {
    let known = || inner.leases.known();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut due = known().overdue(Instant::now()).into_iter();
        let mut asked = JoinSet::new();
        loop {
            while asked.len() < AT_ONCE
                && let Some((key, number)) = due.next()
            {
                let (connection, limit) = (connection.clone(), inner.settings.timeout);
                let end = async move { end(&connection, number).await };
                asked.spawn(async move { (key, number, tokio::time::timeout(limit, end).await) });
            }
            match asked.join_next().await {
                None => break,
                Some(Ok((key, number, Ok(Some(Asked::Left(left)))))) => {
                    known().ends(&key, number, Instant::now() + left);
                }
                // The log tells so, if it is followed; nobody else would.
                Some(Ok((key, number, Ok(Some(Asked::Gone))))) => known().ended(&key, number),
                // It is asked for again.
                Some(_) => {}
            }
        }
    }
}

/// What is known of a lease by now.
enum Asked {
    /// It lives for so long.
    Left(Duration),
    /// There is none, nor an entry of it.
    Gone,
}

/// What is left of a lease. One of which nothing is left is revoked, which deletes its entry.
async fn end(connection: &Connection, number: i64) -> Option<Asked> {
    let mut client = connection.leases();
    let answer = client.time_to_live(number, None).await.ok()?;
    if answer.granted_ttl() == 0 {
        return Some(Asked::Gone);
    }
    let left = answer.ttl();
    // Whole seconds, rounded towards none; what is over is below.
    if let Ok(left) = u64::try_from(left) {
        return Some(Asked::Left(Duration::from_secs(left + 1)));
    }
    client.revoke(number).await.is_ok().then_some(Asked::Gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(due: Vec<(Arc<[u8]>, i64)>) -> Vec<i64> {
        due.into_iter().map(|(_, number)| number).collect()
    }

    #[test]
    fn a_lease_is_asked_for_once_it_is_overdue_and_again_when_that_was_too_early() {
        let (mut known, now) = (Known::default(), Instant::now());
        let in_s = |seconds| now + Duration::from_secs(seconds);
        known.learn(b"a", Some((1, in_s(10))));
        known.learn(b"b", Some((2, in_s(20))));
        known.learn(b"c", Some((3, in_s(10))));
        assert_eq!(known.overdue(in_s(11)), []);
        known.learn(b"c", None);
        assert_eq!(numbers(known.overdue(in_s(12))), [1]);
        assert_eq!(numbers(known.overdue(in_s(12))), [0; 0]);
        // It ends later than was thought.
        known.ends(b"a", 1, in_s(60));
        assert_eq!(numbers(known.overdue(in_s(50))), [2]);
        // The entry was written anew meanwhile: its lease is another.
        known.learn(b"b", Some((4, in_s(1000))));
        known.ends(b"b", 2, in_s(51));
        assert_eq!(numbers(known.overdue(in_s(90))), [1]);
        assert_eq!(known.lease(b"b"), Some(4));
        // What could not be asked for is asked for again.
        assert_eq!(numbers(known.overdue(in_s(100))), [1]);
        assert_eq!((known.entries.len(), known.asks.len()), (2, 2));
    }

    #[test]
    fn what_has_ended_is_asked_for_no_more_unless_it_was_written_anew() {
        let (mut known, now) = (Known::default(), Instant::now());
        for key in [b"a", b"b"] {
            known.learn(key, Some((1, now)));
        }
        known.learn(b"b", Some((2, now)));
        for key in [b"a", b"b"] {
            known.ended(key, 1);
        }
        assert_eq!(numbers(known.overdue(now + PATIENCE)), [2]);
        assert_eq!((known.entries.len(), known.asks.len()), (1, 1));
    }

    #[test]
    fn only_what_is_followed_or_about_to_be_is_known() {
        let mut known = Known::default();
        let ends = Instant::now();
        for (key, lease) in [(b"p/a/k", 1), (b"p/b/k", 2), (b"p/c/k", 3)] {
            known.learn(key, Some((lease, ends)));
        }
        known.follow(vec!["p/a/".to_owned(), "p/b/".to_owned()]);
        assert_eq!(known.entries.len(), 3);
        known.follow(vec!["p/b/".to_owned(), "p/c/".to_owned()]);
        assert_eq!(known.lease(b"p/a/k"), None);
        known.forget(b"p/b/");
        assert_eq!(known.lease(b"p/c/k"), Some(3));
        assert_eq!((known.entries.len(), known.asks.len()), (1, 1));
    }
}
