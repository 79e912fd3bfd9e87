//! Times to live: a lease for each entry that has one, whose number says when it ends.
//!
//! Values stay as they are, so that other programs can write them. What other proxies need to know, when an entry ends,
//! is in the number of its lease, which whoever asks for a lease may choose. The number also says that the lease is one
//! of ours, with one entry, and may be given back when that entry is written anew.

use super::connect::{Connection, Failure, answered};
use super::overdue::Known;
use super::{EngineError, Left};
use crate::store::shared::{END_TICK_MS, TTL_MAX};
use etcd_client::LeaseGrantOptions;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What numbers of ours begin with: 12 of 63 bits.
const OURS: i64 = 0x5a7;
/// Of the number of ticks after which it ends: up to the year 2106.
const TICK_BITS: u32 = 34;
/// What tells leases apart that end at the same time.
const CHANCE_BITS: u32 = 17;
/// How far in the past a lease of ours may end and still be there: a change of leader begins its time anew.
const PAST_MAX: Duration = Duration::from_secs(24 * 3600);
/// Numbers tried until one is free.
const ATTEMPTS: usize = 8;
/// Leases that wait to be given back. What is beyond ends by itself.
const UNUSED_MAX: usize = 4096;
/// Leases given back at once.
const GIVEN_BACK_AT_ONCE: usize = 16;

/// A lease that lasts longer than a second is asked for again when at least so much is left of it, so that the answer "less than
/// a second" is late by no more than the rest.
const INTO_LAST_SECOND: Duration = Duration::from_millis(500);
/// Leases asked for at once how long they last.
const ASKED_AT_ONCE: usize = 64;

/// The leases that this proxy knows of.
pub(super) struct Leases {
    /// Of entries in buckets that were loaded, as long as they are followed; only ours.
    known: Mutex<Known>,
    unused: Mutex<VecDeque<i64>>,
    added: Notify,
    /// The shortest time that the server grants, once known.
    shortest_s: AtomicI64,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self {
            known: Mutex::default(),
            unused: Mutex::default(),
            added: Notify::new(),
            shortest_s: AtomicI64::new(1),
        }
    }

    /// A lease for one entry.
    pub(super) async fn grant(
        &self,
        connection: &Connection,
        timeout: Duration,
        ttl: Duration,
    ) -> Result<i64, Granted> {
        if ttl > TTL_MAX {
            return Err(Granted::Never(EngineError::Refused(format!(
                "time to live of {ttl:?} is too long, expected at most {TTL_MAX:?}"
            ))));
        }
        let whole = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let mut failed = None;
        for _ in 0..ATTEMPTS {
            let seconds = whole.max(self.shortest_s.load(Relaxed));
            let id = number(now_ms() + seconds.unsigned_abs() * 1000);
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
        self.known().learn(key, ours);
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
        locked(&self.known)
    }

    /// Nothing has this lease any longer.
    pub(super) fn give_back(&self, lease: i64) {
        let mut unused = locked(&self.unused);
        if unused.len() < UNUSED_MAX {
            unused.push_back(lease);
            self.added.notify_one();
        }
    }

    /// Gives back what is no longer used, for as long as it is polled.
    pub(super) async fn run(&self, connection: &Connection) -> std::convert::Infallible {
        let mut running = JoinSet::new();
        loop {
            while running.len() >= GIVEN_BACK_AT_ONCE {
                running.join_next().await;
            }
            let lease = locked(&self.unused).pop_front();
            match lease {
                Some(lease) => {
                    let mut client = connection.leases();
                    // What cannot be given back ends by itself.
                    running.spawn(async move { client.revoke(lease).await.is_ok() });
                }
                None => self.added.notified().await,
            }
        }
    }
}

/// How long leases last. The server revokes no more than some hundred in a second, so what is over may be there for long.
pub(super) async fn left(
    connection: &Connection,
    timeout: Duration,
    leases: Vec<Option<i64>>,
) -> Result<Vec<Left>, Failure> {
    let mut answers = vec![None; leases.len()];
    let mut asked = JoinSet::new();
    let mut next = leases.into_iter().enumerate();
    loop {
        let more = asked.len() < ASKED_AT_ONCE;
        if let Some((index, lease)) = more.then(|| next.next()).flatten() {
            let Some(lease) = lease else { continue };
            let connection = connection.clone();
            asked.spawn(async move {
                let mut client = connection.leases();
                let question = client.time_to_live(lease, None);
                let answer = answered(&connection.endpoint, timeout, question).await;
                (index, answer, Instant::now())
            });
            continue;
        }
        match asked.join_next().await {
            Some(Ok((index, answer, at))) => {
                let answer = answer?;
                // One that is gone already has no length.
                answers[index] = (answer.granted_ttl() > 0).then(|| (answer.ttl(), at));
            }
            // It panicked, which was logged: nothing is known of it.
            Some(Err(_)) => {}
            None => break,
        }
    }
    let left = answers.into_iter().map(|answer| match answer {
        Some((seconds, at)) => left_of(seconds, at.elapsed()),
        None => Left::Unknown,
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// A number for a lease that ends then.
fn number(end_ms: u64) -> i64 {
    let tick = end_ms.div_ceil(END_TICK_MS) & ((1 << TICK_BITS) - 1);
    let chance = getrandom::u64().unwrap_or(end_ms) & ((1 << CHANCE_BITS) - 1);
    let tail = (tick << CHANCE_BITS) | chance;
    // 51 bits.
    (OURS << (TICK_BITS + CHANCE_BITS)) | tail.cast_signed()
}

/// When a lease of ours ends; none for one of somebody else's.
pub(super) fn end_ms(lease: i64) -> Option<u64> {
    if lease <= 0 || lease >> (TICK_BITS + CHANCE_BITS) != OURS {
        return None;
    }
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
            let end = now_ms() + ttl_ms;
            let lease = number(end);
            assert!(lease > 0);
            let told = end_ms(lease).expect("it is ours");
            assert!((end..end + END_TICK_MS).contains(&told), "{end} {told}");
        }
        assert_ne!(number(1), number(1));
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
    fn a_lease_of_somebody_else_says_nothing() {
        let ours = number(now_ms() + 5000);
        let too_late = number(now_ms() + 2 * millis(TTL_MAX));
        let long_ago = number(now_ms() - 2 * millis(PAST_MAX));
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

    #[test]
    fn leases_that_wait_to_be_given_back_are_bounded() {
        let leases = Leases::new();
        (0..2 * UNUSED_MAX as i64).for_each(|lease| leases.give_back(lease));
        assert_eq!(locked(&leases.unused).len(), UNUSED_MAX);
    }
}
