//! Entries that etcd should have ended by now, and has not.
//!
//! A leader of etcd 3.4 looks for what is over by its wall clock: once that was set back, nothing ends until it is where it
//! was (etcd-io/etcd issue 12291). How much is left of a lease it tells by a clock that does not jump. So a lease that lives
//! on beyond its end is asked for, and revoked if nothing is left of it. A proxy whose own clock is wrong asks too late, or
//! too early, and then again when it has been told. As long as etcd ends its leases, nothing is asked.

use super::Inner;
use super::connect::Connection;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
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

/// The leases of entries, by their keys in etcd, and when each is to be asked for. Several entries may have one.
#[derive(Default)]
pub(super) struct Known {
    entries: HashMap<Box<[u8]>, i64>,
    leases: Numbers,
    /// What the keys begin with that the log tells of.
    followed: Vec<String>,
}

/// The leases that known entries have.
#[derive(Default)]
struct Numbers {
    known: HashMap<i64, Lease>,
    /// All of them, in the order in which they are asked for.
    asks: BTreeSet<(Instant, i64)>,
}

#[derive(Debug)]
struct Lease {
    ask_at: Instant,
    /// Known ones that have it.
    entries: usize,
    /// Whether this proxy gave an entry of it another lease, or none.
    is_replaced: bool,
}

impl Numbers {
    /// One more entry has this one, which should end then, unless more is known of it.
    fn add(&mut self, number: i64, ends: Instant) {
        let ask_at = ends + PATIENCE;
        let lease = self.known.entry(number).or_insert_with(|| {
            self.asks.insert((ask_at, number));
            Lease {
                ask_at,
                entries: 0,
                is_replaced: false,
            }
        });
        lease.entries += 1;
    }

    /// One entry less has this one. Returns what was known of it, if that was the last.
    fn remove(&mut self, number: i64) -> Option<Lease> {
        let lease = self.known.get_mut(&number)?;
        lease.entries -= 1;
        if lease.entries > 0 {
            return None;
        }
        self.asks.remove(&(lease.ask_at, number));
        self.known.remove(&number)
    }

    fn ask_at(&mut self, number: i64, at: Instant) {
        if let Some(lease) = self.known.get_mut(&number) {
            self.asks.remove(&(lease.ask_at, number));
            self.asks.insert((at, number));
            lease.ask_at = at;
        }
    }
}

impl Known {
    /// An entry has this lease now, which should end then; or none. Returns the one that it had, if this proxy replaced that and
    /// no entry that is known has it any longer.
    pub(super) fn learn(&mut self, key: &[u8], lease: Option<(i64, Instant)>) -> Option<i64> {
        let before = match lease {
            Some((number, ends)) => {
                self.leases.add(number, ends);
                match self.entries.get_mut(key) {
                    Some(known) => Some(std::mem::replace(known, number)),
                    None => self.entries.insert(key.into(), number),
                }
            }
            None => self.entries.remove(key),
        }?;
        let last = self.leases.remove(before)?;
        last.is_replaced.then_some(before)
    }

    /// This proxy has given an entry of this lease another, or none. Returns whether no entry that is known has it any longer.
    pub(super) fn replaced(&mut self, number: i64) -> bool {
        match self.leases.known.get_mut(&number) {
            Some(lease) => {
                lease.is_replaced = true;
                false
            }
            None => true,
        }
    }

    /// Nothing is known of keys that begin so.
    pub(super) fn forget(&mut self, beginning: &[u8]) {
        self.forget_if(|key, _| key.starts_with(beginning));
    }

    fn forget_if(&mut self, is_forgotten: impl Fn(&[u8], i64) -> bool) {
        let leases = &mut self.leases;
        self.entries.retain(|key, number| {
            let stays = !is_forgotten(key, *number);
            if !stays {
                leases.remove(*number);
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
        self.entries.get(key).copied()
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        assert_eq!(self.leases.known.len(), self.leases.asks.len());
        self.leases.known.len()
    }

    /// Leases to be asked for now. They are again later, unless something else is learnt of them.
    fn overdue(&mut self, now: Instant) -> Vec<i64> {
        let due = self.leases.asks.iter().take(LOOKED_AT_MAX);
        let due = due.take_while(|(ask_at, _)| *ask_at <= now);
        let due: Vec<_> = due.map(|(_, number)| *number).collect();
        for number in &due {
            self.leases.ask_at(*number, now + AGAIN);
        }
        due
    }

    /// These leases have ended, and with them what had them.
    fn ended(&mut self, numbers: &HashSet<i64>) {
        if !numbers.is_empty() {
            self.forget_if(|_, number| numbers.contains(&number));
        }
    }

    /// A lease ends then. Nothing may have it any longer.
    fn ends(&mut self, number: i64, at: Instant) {
        self.leases.ask_at(number, at + PATIENCE);
    }
}

/// Ends what is overdue, for as long as it is polled.
pub(super) async fn run(inner: &Inner, connection: &Connection) -> Infallible {
    let known = || inner.leases.known();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut due = known().overdue(Instant::now()).into_iter();
        let (mut asked, mut gone) = (JoinSet::new(), HashSet::new());
        loop {
            while asked.len() < AT_ONCE
                && let Some(number) = due.next()
            {
                let (connection, limit) = (connection.clone(), inner.settings.timeout);
                let end = async move { end(&connection, number).await };
                asked.spawn(async move { (number, tokio::time::timeout(limit, end).await) });
            }
            match asked.join_next().await {
                None => break,
                Some(Ok((number, Ok(Some(Asked::Left(left)))))) => {
                    known().ends(number, Instant::now() + left);
                }
                Some(Ok((number, Ok(Some(Asked::Gone))))) => drop(gone.insert(number)),
                // It is asked for again.
                Some(_) => {}
            }
        }
        // The log tells so, if it is followed; nobody else would.
        known().ended(&gone);
    }
}

/// What is known of a lease by now.
enum Asked {
    /// It lives for so long.
    Left(Duration),
    /// There is none, nor entries of it.
    Gone,
}

/// What is left of a lease. One of which nothing is left is revoked, which deletes its entries.
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

    /// How many entries and leases are known.
    fn counts(known: &Known) -> (usize, usize) {
        let of_leases = known.leases.known.values().map(|lease| lease.entries);
        assert_eq!(of_leases.sum::<usize>(), known.entries.len());
        (known.entries.len(), known.count())
    }

    #[test]
    fn a_lease_is_asked_for_once_it_is_overdue_and_again_when_that_was_too_early() {
        let (mut known, now) = (Known::default(), Instant::now());
        let in_s = |seconds| now + Duration::from_secs(seconds);
        known.learn(b"a", Some((1, in_s(10))));
        known.learn(b"b", Some((2, in_s(20))));
        known.learn(b"c", Some((3, in_s(10))));
        assert_eq!(known.overdue(in_s(11)), [0; 0]);
        known.learn(b"c", None);
        assert_eq!(known.overdue(in_s(12)), [1]);
        assert_eq!(known.overdue(in_s(12)), [0; 0]);
        // It ends later than was thought.
        known.ends(1, in_s(60));
        assert_eq!(known.overdue(in_s(50)), [2]);
        // The entry was written anew meanwhile: its lease is another.
        known.learn(b"b", Some((4, in_s(1000))));
        known.ends(2, in_s(51));
        assert_eq!(known.overdue(in_s(90)), [1]);
        assert_eq!(known.lease(b"b"), Some(4));
        // What could not be asked for is asked for again.
        assert_eq!(known.overdue(in_s(100)), [1]);
        assert_eq!(counts(&known), (2, 2));
    }

    #[test]
    fn a_lease_of_many_entries_is_asked_for_once_and_ends_for_all_of_them() {
        let (mut known, now) = (Known::default(), Instant::now());
        for key in 0..100 {
            known.learn(&[key], Some((1, now)));
        }
        known.learn(b"other", Some((2, now + 2 * PATIENCE)));
        known.learn(&[0], Some((3, now)));
        assert_eq!(counts(&known), (101, 3));
        assert_eq!(known.overdue(now + PATIENCE), [1, 3]);
        known.ends(1, now + PATIENCE);
        // That an entry has it is no news of its end.
        known.learn(&[1], Some((1, now)));
        assert_eq!(known.overdue(now + PATIENCE), [0; 0]);
        assert_eq!(known.overdue(now + 2 * PATIENCE), [1]);
        known.ended(&HashSet::from([1, 4]));
        assert_eq!(counts(&known), (2, 2));
    }

    #[test]
    fn what_has_ended_is_asked_for_no_more_unless_it_was_written_anew() {
        let (mut known, now) = (Known::default(), Instant::now());
        for key in [b"a", b"b"] {
            known.learn(key, Some((1, now)));
        }
        known.learn(b"b", Some((2, now)));
        known.ended(&HashSet::from([1]));
        assert_eq!(known.overdue(now + PATIENCE), [2]);
        assert_eq!(counts(&known), (1, 1));
    }

    #[test]
    fn only_what_is_followed_or_about_to_be_is_known() {
        let mut known = Known::default();
        let ends = Instant::now();
        for (key, lease) in [(b"p/a/k", 1), (b"p/b/k", 2), (b"p/c/k", 3), (b"p/b/l", 1)] {
            known.learn(key, Some((lease, ends)));
        }
        known.follow(vec!["p/a/".to_owned(), "p/b/".to_owned()]);
        assert_eq!(counts(&known), (4, 3));
        known.follow(vec!["p/b/".to_owned(), "p/c/".to_owned()]);
        assert_eq!(known.lease(b"p/a/k"), None);
        assert_eq!(counts(&known), (3, 3));
        known.forget(b"p/b/");
        assert_eq!(known.lease(b"p/c/k"), Some(3));
        assert_eq!(counts(&known), (1, 1));
    }

    #[test]
    fn a_lease_that_was_replaced_is_told_of_when_the_log_tells_that_its_last_entry_has_another() {
        let (mut known, ends) = (Known::default(), Instant::now());
        for key in [b"a", b"b", b"c"] {
            known.learn(key, Some((1, ends)));
        }
        assert_eq!(known.learn(b"a", Some((2, ends))), None);
        assert!(!known.replaced(1));
        assert_eq!(known.learn(b"b", Some((1, ends))), None);
        assert_eq!(known.learn(b"b", None), None);
        assert_eq!(known.learn(b"c", Some((3, ends))), Some(1));
        // Once the log has told of all that, there is nothing to wait for.
        assert!(known.replaced(1));
        // What another proxy replaced is another's to give back.
        assert_eq!(known.learn(b"c", None), None);
    }

    #[test]
    fn a_lease_whose_entries_are_forgotten_is_not_told_of() {
        let (mut known, ends) = (Known::default(), Instant::now());
        let followed = || vec!["p/a/".to_owned()];
        known.follow(followed());
        for forget in [
            |known: &mut Known| known.forget(b"p/a/"),
            |known: &mut Known| known.follow(Vec::new()),
        ] {
            known.follow(followed());
            known.learn(b"p/a/k", Some((1, ends)));
            assert!(!known.replaced(1));
            forget(&mut known);
            assert_eq!(known.learn(b"p/a/k", Some((1, ends))), None);
            assert_eq!(known.learn(b"p/a/k", None), None);
        }
    }
}
