//! Times to live: leases, whose numbers say when they end.
//!
//! Values stay as they are, so that other programs can write them. What other proxies need to know, when an entry ends,
//! is in the number of its lease, which whoever asks for a lease may choose. Entries that one transaction gives the same time
//! to live have one lease together, since a server ends some hundred leases in a second, and any number of entries of one. The
//! number also says that the lease is one of ours, and whether it is of one entry, so that it may be given back when that is
//! written anew, or of several, see [`super::unused`]. A lease is of one transaction: no entry gets it later.

use super::connect::{Connection, Failure, answered};
use super::overdue::Known;
use super::unused::Unused;
use super::{EngineError, Inner, Left};
use crate::store::shared::{END_TICK_MS, TTL_MAX};
use etcd_client::LeaseGrantOptions;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;

/// What numbers of ours begin with: 12 of 63 bits. Proxies of before know the first, and leave others to who made them.
const OF_ONE: i64 = 0x5a7;
const OF_SEVERAL: i64 = 0x5a8;
/// Of the number of ticks after which it ends: up to the year 2106.
const TICK_BITS: u32 = 34;
/// What tells leases apart that end at the same time.
const CHANCE_BITS: u32 = 17;
/// How far in the past a lease of ours may end and still be there: a change of leader begins its time anew.
const PAST_MAX: Duration = Duration::from_secs(24 * 3600);
/// Numbers tried until one is free.
const ATTEMPTS: usize = 8;

/// A lease that lasts longer than a second is asked for again when at least so much is left of it, so that the answer "less than
/// a second" is late by no more than the rest.
const INTO_LAST_SECOND: Duration = Duration::from_millis(500);
/// Leases asked for how long they last until what was answered is told, and at once.
const ASKED_MAX: usize = 1024;
const ASKED_AT_ONCE: usize = 64;

/// The leases that this proxy knows of.
pub(super) struct Leases {
    /// Of entries in buckets that were loaded, as long as they are followed; only ours.
    known: Mutex<Known>,
    unused: Unused,
    /// The shortest time that the server grants, once known.
    shortest_s: AtomicI64,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self {
            known: Mutex::default(),
            unused: Unused::default(),
            shortest_s: AtomicI64::new(1),
        }
    }

    /// A lease of so many whole seconds.
    pub(super) async fn grant(
        &self,
        connection: &Connection,
        timeout: Duration,
        whole: u64,
        of: Of,
    ) -> Result<i64, Granted> {
        if whole > TTL_MAX.as_secs() {
            return Err(Granted::Never(EngineError::Refused(format!(
                "time to live of {:?} is too long, expected at most {TTL_MAX:?}",
                Duration::from_secs(whole)
            ))));
        }
        let whole = whole.cast_signed();
        let mut failed = None;
        for _ in 0..ATTEMPTS {
            let seconds = whole.max(self.shortest_s.load(Relaxed));
            let id = number(now_ms() + seconds.unsigned_abs() * 1000, of);
            let mut client = connection.leases();
            let asked = client.grant(seconds, Some(LeaseGrantOptions::new().with_id(id)));
            match answered(&connection.endpoint, timeout, asked).await {
                Ok(granted) if granted.ttl() == seconds => return Ok(id),
                Ok(granted) => {
                    // Its number would tell a wrong time.
                    self.shortest_s.store(granted.ttl(), Relaxed);
                    self.give_back(id);
                }
                Err(failure) if failure.lease_exists() => failed = Some(failure),
                Err(failure) => return Err(Granted::Failed(failure)),
            }
        }
        Err(match failed {
            Some(failure) => Granted::Failed(failure),
            None => Granted::Never(EngineError::Unavailable(format!(
                "etcd {}: grants leases of another length than asked for",
                connection.endpoint
            ))),
        })
    }

    /// Remembers which lease an entry has now.
    pub(super) fn learn(&self, key: &[u8], lease: i64) {
        let ours = end_ms(lease).map(|end| {
            let left = Duration::from_millis(end.saturating_sub(now_ms()));
            (lease, Instant::now() + left)
        });
        let unused = self.known().learn(key, ours);
        if let Some(lease) = unused {
            self.unused.add(lease, Of::Several);
        }
    }

    /// Nothing is known of keys that begin so, since they are loaded again.
    pub(super) fn forget(&self, beginning: &[u8]) {
        self.known().forget(beginning);
    }

    /// Of keys that begin with one of these the log tells from now on; of others that it told of, no more.
    pub(super) fn follow(&self, beginnings: Vec<String>) {
        self.known().follow(beginnings);
    }

    /// The lease that an entry has, as far as is known. One that it had before is as good: no lease is used twice.
    pub(super) fn of(&self, key: &str) -> Option<i64> {
        self.known().lease(key.as_bytes())
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing has this lease, nor ever had.
    pub(super) fn give_back(&self, lease: i64) {
        self.unused.add(lease, Of::One);
    }

    /// An entry that had this lease has another now, or none. One of several entries is given back once no entry has it that
    /// is known.
    pub(super) fn replaced(&self, lease: i64) {
        if let Some(of) = of(lease)
            && (of == Of::One || self.known().replaced(lease))
        {
            self.unused.add(lease, of);
        }
    }

    /// Gives back what is no longer used, for as long as it is polled.
    pub(super) async fn run(&self, inner: &Inner, connection: &Connection) -> Infallible {
        self.unused.run(inner, connection).await
    }
}

/// How many entries a lease is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    One,
    /// Of one transaction.
    Several,
}

/// As many of the first leases of entries as it is asked for at once.
pub(super) fn first(leases: impl Iterator<Item = Option<i64>>) -> Vec<Option<i64>> {
    let mut distinct = HashSet::new();
    let first = leases.take_while(|lease| {
        lease.is_none_or(|lease| {
            let has_room = distinct.len() < ASKED_MAX;
            distinct.contains(&lease) || has_room && distinct.insert(lease)
        })
    });
    first.collect()
}

/// How long leases last; each is asked for once. The server revokes no more than some hundred in a second, so what is over may
/// be there for long.
pub(super) async fn left(
    connection: &Connection,
    timeout: Duration,
    leases: Vec<Option<i64>>,
) -> Result<Vec<Left>, Failure> {
    let mut answers = HashMap::new();
    let mut asked = JoinSet::new();
    let distinct: HashSet<i64> = leases.iter().flatten().copied().collect();
    let mut next = distinct.into_iter();
    loop {
        let more = asked.len() < ASKED_AT_ONCE;
        if let Some(lease) = more.then(|| next.next()).flatten() {
            let connection = connection.clone();
            asked.spawn(async move {
                let mut client = connection.leases();
                let question = client.time_to_live(lease, None);
                let answer = answered(&connection.endpoint, timeout, question).await;
                (lease, answer, Instant::now())
            });
            continue;
        }
        match asked.join_next().await {
            Some(Ok((lease, answer, at))) => {
                let answer = answer?;
                // One that is gone already has no length.
                if answer.granted_ttl() > 0 {
                    answers.insert(lease, (answer.ttl(), at));
                }
            }
            // It panicked, which was logged: nothing is known of it.
            Some(Err(_)) => {}
            None => break,
        }
    }
    // At one time for all: entries of one lease are hidden together.
    let now = Instant::now();
    let left = leases.into_iter().map(|lease| {
        let answer = lease.and_then(|lease| answers.get(&lease));
        answer.map_or(Left::Unknown, |(seconds, at)| left_of(*seconds, now - *at))
    });
    Ok(left.collect())
}

/// What is left of a lease of which the server told so many seconds a while ago: cut to whole ones, negative when it is over.
fn left_of(told: i64, ago: Duration) -> Left {
    let seconds = Duration::from_secs(told.unsigned_abs());
    match told {
        ..0 => Left::Until(Duration::ZERO),
        0 => Left::Until(Duration::from_secs(1).saturating_sub(ago)),
        1.. => Left::Longer((seconds - INTO_LAST_SECOND).saturating_sub(ago)),
    }
}

/// Why there is no lease.
pub(super) enum Granted {
    Failed(Failure),
    Never(EngineError),
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// A number for a lease that ends then.
fn number(end_ms: u64, of: Of) -> i64 {
    let begins = match of {
        Of::One => OF_ONE,
        Of::Several => OF_SEVERAL,
    };
    let tick = end_ms.div_ceil(END_TICK_MS) & ((1 << TICK_BITS) - 1);
    let chance = getrandom::u64().unwrap_or(end_ms) & ((1 << CHANCE_BITS) - 1);
    let tail = (tick << CHANCE_BITS) | chance;
    // 51 bits.
    (begins << (TICK_BITS + CHANCE_BITS)) | tail.cast_signed()
}

/// What a lease of ours is of; none for one of somebody else's, by what its number begins with.
fn of(lease: i64) -> Option<Of> {
    match lease >> (TICK_BITS + CHANCE_BITS) {
        OF_ONE => Some(Of::One),
        OF_SEVERAL => Some(Of::Several),
        _ => None,
    }
}

/// When a lease of ours ends; none for one of somebody else's.
pub(super) fn end_ms(lease: i64) -> Option<u64> {
    of(lease)?;
    let tick = (lease >> CHANCE_BITS).unsigned_abs() & ((1 << TICK_BITS) - 1);
    let end = tick * END_TICK_MS;
    let now = now_ms();
    let plausible = now.saturating_sub(millis(PAST_MAX))..=now + millis(TTL_MAX + PAST_MAX);
    plausible.contains(&end).then_some(end)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_lease_says_when_it_ends() {
        for ttl_ms in [1000, 86_400_123, millis(TTL_MAX)] {
            for kind in [Of::One, Of::Several] {
                let end = now_ms() + ttl_ms;
                let lease = number(end, kind);
                assert!(lease > 0);
                assert_eq!(of(lease), Some(kind));
                let told = end_ms(lease).expect("it is ours");
                assert!((end..end + END_TICK_MS).contains(&told), "{end} {told}");
            }
        }
        assert_ne!(number(1, Of::One), number(1, Of::One));
    }

    /// Those of before give back whatever begins as a lease of one entry does, with all that has it.
    #[test]
    fn a_lease_of_several_is_nothing_that_proxies_of_before_know() {
        let several = number(now_ms() + 5000, Of::Several);
        assert_ne!(several >> (TICK_BITS + CHANCE_BITS), 0x5a7);
        let alone = number(now_ms() + 5000, Of::One);
        assert_eq!(alone >> (TICK_BITS + CHANCE_BITS), 0x5a7);
    }

    #[test]
    fn a_lease_is_over_for_sure_at_most_half_a_second_late_if_it_is_asked_for_as_told() {
        let ms = Duration::from_millis;
        // As much as a lease may last, each in turn.
        for lasts in (0..5_000).step_by(50) {
            let mut now = 0;
            let sure = loop {
                let told = (lasts - now) / 1000;
                match left_of(told, Duration::ZERO) {
                    Left::Longer(after) => now += after.as_millis() as i64,
                    Left::Until(after) => break now + after.as_millis() as i64,
                    Left::Unknown => panic!("the server told it"),
                }
            };
            let late_max = if lasts < 500 { 1000 } else { 500 };
            assert!((lasts..=lasts + late_max).contains(&sure), "{lasts} {sure}");
        }
        assert_eq!(left_of(0, ms(300)), Left::Until(ms(700)));
        assert_eq!(left_of(0, ms(1300)), Left::Until(ms(0)));
        assert_eq!(left_of(2, ms(300)), Left::Longer(ms(1200)));
        assert_eq!(left_of(-1, ms(0)), Left::Until(ms(0)));
    }

    #[test]
    fn leases_are_asked_for_some_at_a_time_however_many_entries_have_them() {
        let many = ASKED_MAX as i64;
        let all = first((0..10 * many).map(|_| Some(1)).chain([None]));
        assert_eq!(all.len(), 10 * ASKED_MAX + 1);
        let each = first((0..2 * many).map(Some));
        assert_eq!(each.last(), Some(&Some(many - 1)));
        // What has no lease, or one that is asked for, needs no other question.
        let others = [None, Some(0), Some(many), Some(1)];
        let some = first((0..many).map(Some).chain(others));
        assert_eq!(some[ASKED_MAX..], [None, Some(0)]);
    }

    #[test]
    fn a_lease_of_somebody_else_says_nothing() {
        let ours = number(now_ms() + 5000, Of::Several);
        let too_late = number(now_ms() + 2 * millis(TTL_MAX), Of::One);
        let long_ago = number(now_ms() - 2 * millis(PAST_MAX), Of::Several);
        for other in [
            0,
            1,
            i64::MAX,
            i64::MIN,
            -ours,
            ours ^ (1 << 60),
            too_late,
            long_ago,
        ] {
            assert_eq!(end_ms(other), None, "{other}");
        }
    }
}
