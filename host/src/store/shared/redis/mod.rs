//! Buckets in Redis (7 or newer): a hash for each, and one stream that has every transaction.
//!
//! One script does a transaction: it checks the conditions, adds the transaction to the stream and changes the hashes,
//! so all is under one revision and there is nothing in between. Each transaction has a random token and names that of
//! the one before it. So whoever follows notices when the log is not the one it was, even if the revisions fit: a replica
//! that was promoted without the newest writes, or data restored from a backup, is a gap.
//!
//! An acknowledged write is in the memory of one server. On its disk it is as `appendonly` and `appendfsync` say:
//! with `always` it survives kill -9 and loss of power, with `everysec` the last second may be lost, and without
//! `appendonly` what came after the last snapshot. Replicas get it afterwards: a failover loses what the promoted replica had
//! not received. `replicas` waits until some of them have it; that makes a loss less likely, yet not impossible, because
//! another one may be promoted. `min-replicas-to-write` of the server keeps a master that was cut off from taking writes.

mod connect;
mod follow;
mod keys;
mod load;
mod record;
mod replicas;

use super::kept::Kept;
use super::settings::RedisSettings;
use super::{
    Author, Condition, Ending, Engine, EngineError, Event, LEAD, Left, Life, Loaded, Outcome,
    Revision, SharedWrite, TTL_MAX, Transaction,
};
use ::redis::{RedisError, RedisResult, Script, ScriptInvocation};
use connect::{Connection, Connector};
use keys::Keys;
use record::Token;
use replicas::Rounds;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Most writes, and most conditions, of a transaction: the server does nothing else meanwhile.
const TRANSACTION_WRITES_MAX: usize = 16_384;
/// Most bytes of keys and values of a transaction.
const TRANSACTION_BYTES_MAX: usize = 4 << 20;
/// Positions in the log that a follower may begin at.
const POSITIONS_MAX: usize = 4096;
/// So long an entry that is over is still found, so that what prolonged it at the last moment is here by then.
const LATE: Duration = Duration::from_millis(100);

/// A handle to Redis.
#[derive(Clone)]
pub(in crate::store) struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    settings: RedisSettings,
    keys: Keys,
    connector: Connector,
    /// For commits.
    connection: Kept<Connection>,
    positions: Positions,
    /// Of waiting for replicas on that connection.
    rounds: Rounds<Connection>,
    commit: Script,
    expire: Script,
}

/// The newest places of the log that this proxy has been at, with their tokens.
#[derive(Default)]
struct Positions(std::sync::Mutex<VecDeque<(Revision, Token)>>);

impl Positions {
    fn add(&self, revision: Revision, token: Token) {
        let mut positions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if positions.len() >= POSITIONS_MAX {
            positions.pop_front();
        }
        positions.push_back((revision, token));
    }

    /// The token of the newest one at this revision.
    fn token(&self, revision: Revision) -> Option<Token> {
        let positions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = positions.iter().rev().find(|(at, _)| *at == revision);
        found.map(|(_, token)| token.clone())
    }
}

impl Redis {
    /// Reads the TLS files, and connects when it is used.
    ///
    /// # Errors
    /// [`EngineError::Refused`] for a setting or file that cannot be.
    pub(in crate::store) fn new(settings: RedisSettings) -> Result<Self, EngineError> {
        settings.check().map_err(EngineError::Refused)?;
        let keys = Keys::new(&settings.prefix);
        Ok(Self {
            inner: Arc::new(Inner {
                connector: Connector::new(settings.clone(), keys.clone())?,
                settings,
                keys,
                connection: Kept::new(),
                positions: Positions::default(),
                rounds: Rounds::default(),
                commit: Script::new(concat!(
                    "#!lua\n",
                    include_str!("append.lua"),
                    include_str!("commit.lua")
                )),
                // It makes room.
                expire: Script::new(concat!(
                    "#!lua flags=allow-oom\n",
                    include_str!("append.lua"),
                    include_str!("expire.lua")
                )),
            }),
        })
    }
}

impl Engine for Redis {
    // One question for all.
    const ENDING_MAX: usize = 65_536;
    const LOSES_WRITES: bool = true;

    async fn load_within(
        &self,
        buckets: &[Box<str>],
        bytes_max: usize,
    ) -> Result<Loaded, EngineError> {
        let (loaded, token) = load::load(&self.inner, buckets, bytes_max).await?;
        self.inner.positions.add(loaded.revision, token);
        Ok(loaded)
    }

    fn check_count(&self, count: usize) -> Result<(), EngineError> {
        check_count(count)
    }

    fn writes_max(&self, bucket_bytes: usize, entry_bytes: usize) -> usize {
        let by_bytes = TRANSACTION_BYTES_MAX / (bucket_bytes + entry_bytes).max(1);
        by_bytes.min(TRANSACTION_WRITES_MAX)
    }

    fn check(&self, transaction: &Transaction) -> Result<(), EngineError> {
        check_size(transaction)
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome, EngineError> {
        check_size(transaction)?;
        let token = token()?;
        let connection = self.inner.connection().await?;
        match self.inner.commit(&connection, &token, transaction).await {
            Err(error) if connect::elsewhere(&error) => {
                // Nothing was done; the data is somewhere else now.
                self.inner.failed(&connection, &error).await;
                let connection = self.inner.connection().await?;
                let done = self.inner.commit(&connection, &token, transaction).await;
                self.inner.outcome(&connection, done).await
            }
            done => self.inner.outcome(&connection, done).await,
        }
    }

    async fn left(&self, entries: &[Ending]) -> Result<Vec<Left>, EngineError> {
        let connection = self.inner.connection().await?;
        let mut redis = connection.redis.clone();
        let time: RedisResult<(u64, u64)> = ::redis::cmd("TIME").query_async(&mut redis).await;
        let (seconds, micros) = match time {
            Ok(time) => time,
            Err(error) => {
                self.inner.failed(&connection, &error).await;
                return Err(connect::unsent(&connection.address, &error));
            }
        };
        let now = seconds.saturating_mul(1000).saturating_add(micros / 1000);
        let left = |entry: &Ending| {
            let left = Duration::from_millis(entry.expires_at_ms.saturating_sub(now));
            match left > 2 * LEAD {
                true => Left::Longer(left - LEAD),
                false => Left::Until(left + LATE),
            }
        };
        Ok(entries.iter().map(left).collect())
    }

    async fn follow(&self, buckets: Vec<Box<str>>, from: Revision, events: mpsc::Sender<Event>) {
        follow::follow(&self.inner, &buckets, from, &events).await;
    }
}

impl Inner {
    async fn connection(&self) -> Result<Connection, EngineError> {
        let usable = |kept: &Connection| !kept.is_closed();
        let make = self.connector.connect(self.settings.replicas_timeout);
        self.connection.get(usable, make).await
    }

    /// Lets go of a connection that is of no use.
    async fn failed(&self, connection: &Connection, error: &RedisError) {
        if connect::ends_connection(error) {
            self.connection.forget(|kept| kept.is(connection)).await;
        }
    }

    async fn outcome(
        &self,
        connection: &Connection,
        done: RedisResult<(bool, u64)>,
    ) -> Result<Outcome, EngineError> {
        let (applied, revision) = match done {
            Ok(done) => done,
            Err(error) => {
                self.failed(connection, &error).await;
                return Err(connect::sent(&connection.address, &error));
            }
        };
        if !applied {
            return Ok(Outcome::Conflict(Revision(revision)));
        }
        self.replicated(connection).await?;
        Ok(Outcome::Applied(Revision(revision)))
    }

    async fn commit(
        &self,
        connection: &Connection,
        token: &str,
        transaction: &Transaction,
    ) -> RedisResult<(bool, u64)> {
        let call = self.call(token, transaction);
        let mut connection = connection.redis.clone();
        let (applied, revision): (i64, String) = call.invoke_async(&mut connection).await?;
        let revision = revision.parse().map_err(|_| {
            RedisError::from((
                ::redis::ErrorKind::Parse,
                "the revision is no number",
                revision,
            ))
        })?;
        Ok((applied == 1, revision))
    }

    /// Waits for the replicas that must have what was written on this connection.
    async fn replicated(&self, connection: &Connection) -> Result<(), EngineError> {
        let wanted = self.settings.replicas;
        if wanted == 0 {
            return Ok(());
        }
        let (limit, address) = (self.settings.replicas_timeout, &connection.address);
        let wait = async {
            let mut wait = ::redis::cmd("WAIT");
            wait.arg(wanted).arg(millis(limit));
            let mut redis = connection.redis.clone();
            let have: RedisResult<u32> = wait.query_async(&mut redis).await;
            if let Err(error) = &have {
                self.failed(connection, error).await;
            }
            have.map_err(|error| connect::shown(address, &error))
        };
        let is_it = |other: &Connection| other.is(connection);
        let have = self.rounds.join(connection.clone(), is_it, wait).await;
        let reason = match have {
            Ok(have) if have >= wanted => return Ok(()),
            Ok(have) => format!(
                "redis {address}: written, but {have} of {wanted} replicas have it after {limit:?}: a failover may lose it"
            ),
            Err(error) => {
                format!("written, but whether replicas have it is unknown: {error}")
            }
        };
        Err(EngineError::Unknown(reason))
    }

    /// The call of the script that does a transaction.
    fn call(&self, token: &str, transaction: &Transaction) -> ScriptInvocation<'_> {
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let conditions = transaction.conditions.iter().map(Condition::bucket);
        let writes = transaction.writes.iter().map(|write| &*write.bucket);
        let sized = transaction.sized.iter().map(|bucket| &**bucket);
        for bucket in conditions.chain(writes).chain(sized) {
            places.insert(bucket, 0);
        }
        // From 1, as Lua counts.
        places
            .values_mut()
            .zip(1..)
            .for_each(|(place, at)| *place = at);
        let mut call = self.commit.prepare_invoke();
        self.begin(&mut call, token, places.keys().copied());
        call.arg(places.len())
            .arg(transaction.conditions.len())
            .arg(transaction.writes.len())
            .arg(transaction.sized.len());
        for bucket in places.keys() {
            call.arg(*bucket);
        }
        for condition in &transaction.conditions {
            let place = places[condition.bucket()];
            match condition {
                Condition::At { key, revision, .. } => {
                    let at = revision.map_or_else(String::new, |revision| revision.to_string());
                    call.arg("at").arg(place).arg(&**key).arg(at);
                }
                // To the script what is over is absent.
                Condition::Over { key, .. } => {
                    call.arg("at").arg(place).arg(&**key).arg("");
                }
                Condition::Unchanged { since, .. } => {
                    call.arg("unchanged").arg(place).arg("").arg(since.0);
                }
                Condition::Sized { since, .. } => {
                    call.arg("sized").arg(place).arg("").arg(since.0);
                }
            }
        }
        for write in &transaction.writes {
            let place = places[&*write.bucket];
            match &write.value {
                Some(value) => {
                    call.arg("set").arg(place).arg(&*write.key);
                    match value.life {
                        Life::Lasting => call.arg(0),
                        Life::For(ttl) => call.arg(millis(ttl).max(1)),
                        Life::AsBefore => call.arg("as before"),
                    };
                    call.arg(&*value.bytes);
                }
                None => {
                    call.arg("delete")
                        .arg(place)
                        .arg(&*write.key)
                        .arg(0)
                        .arg("");
                }
            }
        }
        for bucket in &transaction.sized {
            call.arg(places[&**bucket]);
        }
        let author = transaction.author.as_ref();
        call.arg(author.map_or_else(String::new, Author::text));
        call
    }

    /// What both scripts are told first.
    fn begin<'b>(
        &self,
        call: &mut ScriptInvocation<'_>,
        token: &str,
        buckets: impl Iterator<Item = &'b str>,
    ) {
        let keys = &self.keys;
        call.key(&keys.head).key(&keys.log).key(&keys.changed);
        for bucket in buckets {
            call.key(keys.entries(bucket)).key(keys.ends(bucket));
        }
        call.arg(token).arg(self.settings.log_entries);
    }
}

/// Sixteen random bytes as text.
fn token() -> Result<String, EngineError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        EngineError::Unavailable(format!("no random bytes from the system: {error}"))
    })?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Milliseconds, rounded up.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

fn check_count(count: usize) -> Result<(), EngineError> {
    if count > TRANSACTION_WRITES_MAX {
        return Err(EngineError::TooLarge(format!(
            "transaction of {count} writes or conditions is too large, expected at most {TRANSACTION_WRITES_MAX} in redis"
        )));
    }
    Ok(())
}

fn check_size(transaction: &Transaction) -> Result<(), EngineError> {
    let conditions = transaction.conditions.iter();
    let conditions = conditions.filter(|it| !matches!(it, Condition::Sized { .. }));
    check_count(transaction.writes.len().max(conditions.count()))?;
    let bytes_of = |write: &SharedWrite| {
        let value = write.value.as_ref().map_or(0, |value| value.bytes.len());
        write.bucket.len() + write.key.len() + value
    };
    let bytes: usize = transaction.writes.iter().map(bytes_of).sum();
    if bytes > TRANSACTION_BYTES_MAX {
        return Err(EngineError::TooLarge(format!(
            "transaction of {bytes} bytes is too large, expected at most {TRANSACTION_BYTES_MAX} in redis"
        )));
    }
    let ttls = transaction
        .writes
        .iter()
        .filter_map(|write| write.value.as_ref()?.life.ttl());
    match ttls.max() {
        Some(ttl) if ttl > TTL_MAX => Err(EngineError::Refused(format!(
            "time to live of {ttl:?} is too long, expected at most {TTL_MAX:?}"
        ))),
        _ => Ok(()),
    }
}
