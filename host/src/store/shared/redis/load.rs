//! Loading everything at one revision without stopping the server: the hashes are read piece by piece, then the log of
//! what was written meanwhile.
//!
//! Reading a hash in pieces gives each key that was there all the time, and perhaps keys that came or went. What was
//! written meanwhile is in the log, from the revision before the first piece to that after the last one, and its newest
//! state is what counts.

use super::Inner;
use super::connect::{Connection, unsent};
use super::record::{self, Logged, Token};
use crate::store::shared::{EngineError, Loaded, Revision, SharedEntry};
use ::redis::{RedisError, RedisResult, Value};
use std::collections::HashMap;
use std::time::Duration;

/// Keys asked for at once.
const PIECE_KEYS: usize = 1024;
/// Transactions asked for at once.
const PIECE_TRANSACTIONS: usize = 64;
/// Loads begun anew because the log did not go back far enough.
const LOADS_MAX: usize = 3;

/// A key of a hash and its record.
type Field = (Vec<u8>, Vec<u8>);
/// Bucket and key to the entry.
type Entries = HashMap<(Box<str>, Box<str>), SharedEntry>;

/// Where the log ends.
pub(super) struct Head {
    pub(super) revision: Revision,
    pub(super) token: Token,
}

/// The end of the log; revision 0 and no token if there is nothing yet.
pub(super) async fn head(inner: &Inner, connection: &Connection) -> RedisResult<Head> {
    let mut command = ::redis::cmd("HMGET");
    command.arg(&inner.keys.head).arg("revision").arg("token");
    let mut redis = connection.redis.clone();
    let (revision, token): (Option<u64>, Option<Vec<u8>>) = command.query_async(&mut redis).await?;
    Ok(Head {
        revision: Revision(revision.unwrap_or(0)),
        token: token.unwrap_or_default().into(),
    })
}

/// Everything of these buckets, and the token of its revision.
pub(super) async fn load(
    inner: &Inner,
    buckets: &[Box<str>],
    bytes_max: usize,
) -> Result<(Loaded, Token), EngineError> {
    // Of its own, so that commits do not wait behind large answers.
    let connection = inner.connector.connect(Duration::ZERO).await?;
    let failed = |error: RedisError| unsent(&connection.address, &error);
    for _ in 0..LOADS_MAX {
        let before = head(inner, &connection).await.map_err(failed)?;
        let mut entries = Entries::new();
        let mut room = bytes_max;
        for bucket in buckets {
            room = scan(inner, &connection, bucket, room, &mut entries).await?;
        }
        let after = head(inner, &connection).await.map_err(failed)?;
        if replay(inner, &connection, buckets, &before, &after, &mut entries).await? {
            let loaded = Loaded {
                revision: after.revision,
                entries: entries.into_values().collect(),
            };
            return Ok((loaded, after.token));
        }
    }
    Err(EngineError::Unavailable(format!(
        "redis {}: more was written while loading than its log holds, {LOADS_MAX} times; expected a larger \
         `log_entries` than {}",
        connection.address, inner.settings.log_entries
    )))
}

/// Reads a bucket that has at most so many bytes, and returns how many more it could have.
async fn scan(
    inner: &Inner,
    connection: &Connection,
    bucket: &str,
    bytes_max: usize,
    entries: &mut Entries,
) -> Result<usize, EngineError> {
    let mut bytes = 0;
    let mut cursor = "0".to_owned();
    loop {
        let mut command = ::redis::cmd("HSCAN");
        command
            .arg(inner.keys.entries(bucket))
            .arg(&cursor)
            .arg("COUNT")
            .arg(PIECE_KEYS);
        let mut redis = connection.redis.clone();
        let answer: RedisResult<(String, Vec<Field>)> = command.query_async(&mut redis).await;
        let (next, records) = answer.map_err(|error| unsent(&connection.address, &error))?;
        for (key, record) in records {
            let entry = record::entry(bucket, &key, &record).ok_or_else(|| {
                EngineError::Refused(format!(
                    "redis {}: key {:?} of hash {:?} is not of the form that this program writes",
                    connection.address,
                    String::from_utf8_lossy(&key),
                    inner.keys.entries(bucket)
                ))
            })?;
            bytes += entry.bytes();
            let twice = entries.insert((entry.bucket.clone(), entry.key.clone()), entry);
            bytes -= twice.map_or(0, |before| before.bytes());
        }
        let Some(room) = bytes_max.checked_sub(bytes) else {
            return Err(EngineError::TooLarge(format!(
                "redis {}: bucket {bucket:?} holds more than was expected, at most {bytes_max} bytes",
                connection.address
            )));
        };
        if next == "0" {
            return Ok(room);
        }
        cursor = next;
    }
}

/// Applies what was written between the two. False: it is no longer in the log.
async fn replay(
    inner: &Inner,
    connection: &Connection,
    buckets: &[Box<str>],
    before: &Head,
    after: &Head,
    entries: &mut Entries,
) -> Result<bool, EngineError> {
    let (mut at, mut token) = (before.revision, before.token.clone());
    while at < after.revision {
        let pieces = read(inner, connection, at, after.revision)
            .await
            .map_err(|error| unsent(&connection.address, &error))?;
        if pieces.is_empty() {
            return Ok(false);
        }
        for logged in pieces {
            if logged.revision.0 != at.0 + 1 || logged.before != token {
                return Ok(false);
            }
            at = logged.revision;
            token = logged.token;
            for change in logged.changes {
                if !buckets.contains(&change.bucket) {
                    continue;
                }
                let place = (change.bucket, change.key);
                match change.after {
                    Some(entry) => entries.insert(place, entry),
                    None => entries.remove(&place),
                };
            }
        }
    }
    Ok(at == after.revision && token == after.token)
}

/// Some transactions behind the one, up to the other.
async fn read(
    inner: &Inner,
    connection: &Connection,
    behind: Revision,
    to: Revision,
) -> RedisResult<Vec<Logged>> {
    let mut command = ::redis::cmd("XRANGE");
    command
        .arg(&inner.keys.log)
        .arg(format!("({behind}-0"))
        .arg(format!("{to}-0"))
        .arg("COUNT")
        .arg(PIECE_TRANSACTIONS);
    let mut redis = connection.redis.clone();
    let answer: Value = command.query_async(&mut redis).await?;
    record::transactions(&answer).ok_or_else(|| foreign(inner))
}

/// Somebody else wrote to the log.
pub(super) fn foreign(inner: &Inner) -> RedisError {
    RedisError::from((
        ::redis::ErrorKind::UnexpectedReturnType,
        "not written by this program",
        format!("stream {:?} has an entry of another form", inner.keys.log),
    ))
}
