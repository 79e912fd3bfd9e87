//! Components of a fleet's plugins: each in a bucket of its own, in pieces, which no proxy follows or holds in memory.
//!
//! A place is written once and then read or removed, so nothing here is a race; which places there are, and what is in
//! them, is known to who keeps them. A connection of its own is best: what is large would hold up what is not.

use super::settings::SharedSettings;
use super::{Engine, EngineError, Life, SharedValue, SharedWrite, Transaction};
use crate::store::BackendKind;
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What one transaction takes in every engine, whatever its settings may reasonably be.
const PIECE_BYTES: usize = 512 << 10;
/// The largest component that any config takes.
const COMPONENT_BYTES_MAX: u64 = 1 << 30;
/// Pieces removed at once.
const PIECES_AT_ONCE: usize = 32;
/// How often a piece is written that perhaps was not.
const ATTEMPTS: usize = 3;

/// Why something was not kept, or not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DepotError(pub String);

impl From<EngineError> for DepotError {
    fn from(error: EngineError) -> Self {
        Self(error.to_string())
    }
}

/// What a depot is at.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, DepotError>> + Send + 'a>>;

/// Where components are kept for every node.
pub trait Depot: Send + Sync + 'static {
    /// Puts bytes into a place that was never used before.
    fn put<'a>(&'a self, place: &'a str, bytes: Bytes) -> Pending<'a, ()>;

    /// What is in a place; what is missing is an error or too short, and much more than these bytes is an error.
    fn get<'a>(&'a self, place: &'a str, bytes_max: u64) -> Pending<'a, Bytes>;

    /// Empties a place of at most so many bytes, and of no more than a component can have.
    fn remove<'a>(&'a self, place: &'a str, bytes: u64) -> Pending<'a, ()>;
}

/// The depot at a backend, by a connection of its own.
///
/// # Errors
/// If the settings do not say where that is, or cannot be.
pub fn open(backend: BackendKind, settings: &SharedSettings) -> Result<Arc<dyn Depot>, DepotError> {
    match (backend, settings) {
        #[cfg(feature = "etcd")]
        (
            BackendKind::Etcd,
            SharedSettings {
                etcd: Some(etcd), ..
            },
        ) => Ok(Arc::new(Artifacts::new(super::Etcd::new(etcd.clone())?))),
        #[cfg(feature = "redis")]
        (
            BackendKind::Redis,
            SharedSettings {
                redis: Some(redis), ..
            },
        ) => Ok(Arc::new(Artifacts::new(super::Redis::new(redis.clone())?))),
        _ => Err(DepotError(format!(
            "the config does not say where {} is, or this build is without it",
            backend.as_str()
        ))),
    }
}

/// A depot in an engine.
pub(in crate::store) struct Artifacts<E>(E);

impl<E: Engine> Artifacts<E> {
    pub(in crate::store) fn new(engine: E) -> Self {
        Self(engine)
    }

    async fn commit(&self, writes: Vec<SharedWrite>) -> Result<(), DepotError> {
        let transaction = Transaction {
            writes,
            ..Transaction::default()
        };
        let mut attempt = 1;
        loop {
            match self.0.commit(&transaction).await {
                Ok(_) => return Ok(()),
                // The same once more is the same.
                Err(EngineError::Unknown(_)) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn put(&self, place: &str, bytes: Bytes) -> Result<(), DepotError> {
        for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            let value = SharedValue {
                bytes: piece.into(),
                life: Life::Lasting,
            };
            self.commit(vec![write(place, number, Some(value))]).await?;
        }
        Ok(())
    }

    async fn get(&self, place: &str, bytes_max: u64) -> Result<Bytes, DepotError> {
        // With the keys of the pieces.
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let bytes_max = bytes_max.saturating_add(PIECE_BYTES);
        let loaded = self.0.load_within(&[bucket(place)], bytes_max).await?;
        let mut pieces = loaded.entries;
        pieces.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        for (number, piece) in pieces.iter().enumerate() {
            if *piece.key != *key(number) {
                let expected = key(number);
                return Err(DepotError(format!(
                    "artifact {place:?}: piece {expected} is missing, found {:?}",
                    piece.key
                )));
            }
        }
        let total = pieces.iter().map(|piece| piece.value.len()).sum();
        let mut bytes = Vec::with_capacity(total);
        for piece in pieces {
            bytes.extend_from_slice(&piece.value);
        }
        Ok(bytes.into())
    }

    async fn remove(&self, place: &str, bytes: u64) -> Result<(), DepotError> {
        // Whoever can write to the engine says how many bytes it is.
        let pieces = bytes.min(COMPONENT_BYTES_MAX).div_ceil(PIECE_BYTES as u64);
        let pieces = usize::try_from(pieces).unwrap_or(usize::MAX).max(1);
        let mut next = 0;
        while next < pieces {
            let end = (next + PIECES_AT_ONCE).min(pieces);
            let writes = (next..end).map(|number| write(place, number, None));
            self.commit(writes.collect()).await?;
            next = end;
        }
        Ok(())
    }
}

impl<E: Engine> Depot for Artifacts<E> {
    fn put<'a>(&'a self, place: &'a str, bytes: Bytes) -> Pending<'a, ()> {
        Box::pin(Artifacts::put(self, place, bytes))
    }

    fn get<'a>(&'a self, place: &'a str, bytes_max: u64) -> Pending<'a, Bytes> {
        Box::pin(Artifacts::get(self, place, bytes_max))
    }

    fn remove<'a>(&'a self, place: &'a str, bytes: u64) -> Pending<'a, ()> {
        Box::pin(Artifacts::remove(self, place, bytes))
    }
}

/// No name that a config can give.
fn bucket(place: &str) -> Box<str> {
    format!("throwbar:artifact:{place}").into()
}

/// In an order that is that of the pieces.
fn key(number: usize) -> Box<str> {
    format!("{number:06}").into()
}

fn write(place: &str, number: usize, value: Option<SharedValue>) -> SharedWrite {
    SharedWrite {
        bucket: bucket(place),
        key: key(number),
        value,
    }
}
