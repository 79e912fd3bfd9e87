//! Buckets in etcd (v3): its revisions, transactions, leases and watches, as they are.
//!
//! An entry's revision is the `mod_revision` of its key; all keys of the cluster share one counter, so revisions have
//! gaps. An acknowledged write is on the disks of most members. A restored backup has revisions that were seen before
//! with other content: the proxies notice it if it is a new cluster, or if the newest revision is one they are beyond.

mod connect;
mod follow;
mod keys;
mod leases;
mod overdue;
mod transaction;
mod unused;

use super::kept::Kept;
use super::settings::EtcdSettings;
use super::{
    Condition, Ending, Engine, EngineError, Event, Left, Life, Loaded, Outcome, Revision,
    SharedEntry, SharedWrite, Transaction,
};
use connect::{Connection, Connector, Failure, answered, revision};
use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
};
use keys::Keys;
use leases::{Granted, Leases, Of};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use transaction::{keeps_lease, signed};

/// Entries asked for at once; fewer if they are too large together.
const PAGE_ENTRIES: i64 = 4096;
/// Loads begun anew because their revision was compacted meanwhile.
const LOADS_MAX: usize = 3;
/// What a write costs beside its key and value, roughly.
const WRITE_BYTES: usize = 64;
/// Leases asked for at once: a server refuses whatever comes while it is 5,000 requests behind (etcdserver/v3_server.go,
/// maxGapBetweenApplyAndCommitIndex).
const GRANTED_AT_ONCE: usize = 128;

/// A handle to etcd.
#[derive(Clone)]
pub(in crate::store) struct Etcd {
    inner: Arc<Inner>,
}

struct Inner {
    settings: EtcdSettings,
    keys: Keys,
    connector: Connector,
    /// For loads and commits.
    connection: Kept<Connection>,
    leases: Arc<Leases>,
    /// The cluster that the last load came from; 0: none.
    cluster: AtomicU64,
    /// Whatever its version, the server is asked how far the log has come.
    #[cfg(test)]
    asks: bool,
}

impl Etcd {
    /// Reads the TLS files, and connects when it is used.
    ///
    /// # Errors
    /// [`EngineError::Refused`] for a setting or file that cannot be.
    pub(in crate::store) fn new(settings: EtcdSettings) -> Result<Self, EngineError> {
        settings.check().map_err(EngineError::Refused)?;
        let keys = Keys::new(&settings.prefix);
        Ok(Self {
            inner: Arc::new(Inner {
                connector: Connector::new(settings.clone(), keys.clone())?,
                settings,
                keys,
                connection: Kept::new(),
                leases: Arc::new(Leases::new()),
                cluster: AtomicU64::new(0),
                #[cfg(test)]
                asks: false,
            }),
        })
    }

    /// Asks how far the log has come, which old servers answer rightly while nothing is written.
    #[cfg(test)]
    pub(super) fn asking(mut self) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.asks = true;
        }
        self
    }

    /// How many leases are known that may have to be asked for.
    #[cfg(test)]
    pub(super) fn known_leases(&self) -> usize {
        self.inner.leases.known().count()
    }
}

impl Engine for Etcd {
    // As many as end together with a lease; of leases, it is bounded for how many at once is asked.
    const ENDING_MAX: usize = 16_384;
    const LOSES_WRITES: bool = false;

    async fn load_within(
        &self,
        buckets: &[Box<str>],
        bytes_max: usize,
    ) -> Result<Loaded, EngineError> {
        let mut failed = None;
        for _ in 0..LOADS_MAX {
            let connection = self.inner.connection().await?;
            match self.inner.load(&connection, buckets, bytes_max).await {
                Ok(loaded) => return Ok(loaded),
                Err(failure) => {
                    self.inner.failed(&connection, &failure).await;
                    if !failure.compacted() && !failure.again() {
                        return Err(failure.unsent());
                    }
                    failed = Some(failure);
                }
            }
        }
        let reason = failed.map_or_else(String::new, |failure| failure.reason);
        Err(EngineError::Unavailable(format!(
            "{reason} (while loading, {LOADS_MAX} times)"
        )))
    }

    fn check_count(&self, count: usize) -> Result<(), EngineError> {
        self.inner.check_count(count)
    }

    fn writes_max(&self, bucket_bytes: usize, entry_bytes: usize) -> usize {
        self.inner.writes_max(bucket_bytes, entry_bytes)
    }

    fn check(&self, transaction: &Transaction) -> Result<(), EngineError> {
        self.inner.check_size(transaction)
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome, EngineError> {
        self.inner.check_size(transaction)?;
        let connection = self.inner.connection().await?;
        match self.inner.commit(&connection, transaction).await {
            Ok(outcome) => Ok(outcome),
            Err(Uncommitted::Failed(failure)) if failure.again() => {
                // Nothing was done, and a new connection has a new login.
                self.inner.failed(&connection, &failure).await;
                let connection = self.inner.connection().await?;
                let done = self.inner.commit(&connection, transaction).await;
                self.inner.outcome(&connection, done).await
            }
            done => self.inner.outcome(&connection, done).await,
        }
    }

    async fn left(&self, entries: &[Ending]) -> Result<Vec<Left>, EngineError> {
        let inner = &self.inner;
        let connection = inner.connection().await?;
        let keys = entries
            .iter()
            .map(|entry| inner.keys.entry(&entry.bucket, &entry.key));
        let leases = leases::first(keys.map(|key| inner.leases.of(&key)));
        match leases::left(&connection, inner.settings.timeout, leases).await {
            Ok(left) => Ok(left),
            Err(failure) => {
                inner.failed(&connection, &failure).await;
                Err(failure.unsent())
            }
        }
    }

    async fn follow(&self, buckets: Vec<Box<str>>, from: Revision, events: mpsc::Sender<Event>) {
        let beginnings = buckets.iter().map(|bucket| self.inner.keys.bucket(bucket));
        self.inner.leases.follow(beginnings.collect());
        follow::follow(&self.inner, &buckets, from, &events).await;
    }
}

/// Why a transaction has no outcome.
enum Uncommitted {
    Failed(Failure),
    Never(EngineError),
}

impl Inner {
    async fn connection(&self) -> Result<Connection, EngineError> {
        self.connection
            .get(|_| true, self.connector.connect())
            .await
    }

    /// Lets go of a connection that is of no use, and turns to the next member.
    async fn failed(&self, connection: &Connection, failure: &Failure) {
        if failure.ends_connection() {
            self.connector.avoid(connection);
            self.connection.forget(|kept| kept.is(connection)).await;
        }
    }

    async fn outcome(
        &self,
        connection: &Connection,
        done: Result<Outcome, Uncommitted>,
    ) -> Result<Outcome, EngineError> {
        match done {
            Ok(outcome) => Ok(outcome),
            Err(Uncommitted::Never(error)) => Err(error),
            Err(Uncommitted::Failed(failure)) => {
                self.failed(connection, &failure).await;
                Err(failure.sent())
            }
        }
    }

    async fn load(
        &self,
        connection: &Connection,
        buckets: &[Box<str>],
        bytes_max: usize,
    ) -> Result<Loaded, Failure> {
        let timeout = self.settings.timeout;
        let mut kv = connection.kv();
        let probe = kv.get(self.keys.prefix(), Some(GetOptions::new().with_keys_only()));
        let answer = answered(&connection.endpoint, timeout, probe).await?;
        let (at, cluster) = answer
            .header()
            .map_or((0, 0), |header| (header.revision(), header.cluster_id()));
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut limit = PAGE_ENTRIES;
        for bucket in buckets {
            let beginning = self.keys.bucket(bucket);
            self.leases.forget(beginning.as_bytes());
            let end = keys::end(&beginning);
            let mut next = beginning.into_bytes();
            loop {
                let options = GetOptions::new()
                    .with_range(end.clone())
                    .with_limit(limit)
                    .with_sort(SortTarget::Key, SortOrder::Ascend)
                    .with_revision(at);
                let page = kv.get(next.clone(), Some(options));
                let page = match answered(&connection.endpoint, timeout, page).await {
                    Err(failure) if failure.answer_too_large() && limit > 1 => {
                        limit = (limit / 4).max(1);
                        continue;
                    }
                    page => page?,
                };
                entries.extend(page.kvs().iter().filter_map(|pair| {
                    self.leases.learn(pair.key(), pair.lease());
                    let entry = self.entry(pair)?;
                    bytes += entry.bytes();
                    Some(entry)
                }));
                if bytes > bytes_max {
                    return Err(Failure::holds_more(&connection.endpoint, bucket, bytes_max));
                }
                match page.kvs().last() {
                    Some(last) if page.more() => {
                        next = [last.key(), &[0]].concat();
                    }
                    _ => break,
                }
            }
        }
        self.cluster.store(cluster, Relaxed);
        Ok(Loaded {
            revision: Revision(revision(at)),
            entries,
        })
    }

    /// The store's entry of a pair; none if it is no entry.
    fn entry(&self, pair: &KeyValue) -> Option<SharedEntry> {
        let (bucket, key) = self.keys.parse(pair.key())?;
        Some(SharedEntry {
            bucket: bucket.into(),
            key: key.into(),
            value: pair.value().into(),
            revision: Revision(revision(pair.mod_revision())),
            expires_at_ms: leases::end_ms(pair.lease()),
        })
    }

    async fn commit(
        &self,
        connection: &Connection,
        transaction: &Transaction,
    ) -> Result<Outcome, Uncommitted> {
        let leases = self.grant(connection, &transaction.writes).await?;
        // Looked up now: a follower may tell of the new ones before the answer is here.
        let replaced: BTreeSet<i64> = transaction
            .writes
            .iter()
            .filter(|write| !keeps_lease(write))
            .filter_map(|write| self.leases.of(&self.keys.entry(&write.bucket, &write.key)))
            .collect();
        let txn = Txn::new()
            .when(self.compares(transaction))
            .and_then(self.operations(transaction, &leases));
        let mut kv = connection.kv();
        let answer = answered(&connection.endpoint, self.settings.timeout, kv.txn(txn)).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                // If it may have been applied, its entries may have them.
                if failure.again() {
                    self.give_back(leases);
                }
                return Err(Uncommitted::Failed(failure));
            }
        };
        let at = Revision(
            answer
                .header()
                .map_or(0, |header| revision(header.revision())),
        );
        if !answer.succeeded() {
            self.give_back(leases);
            return Ok(Outcome::Conflict(at));
        }
        // Its entries have others now, or none.
        replaced
            .into_iter()
            .for_each(|lease| self.leases.replaced(lease));
        Ok(Outcome::Applied(at))
    }

    /// Gives back leases that no entry has got.
    fn give_back(&self, leases: Vec<Option<i64>>) {
        let leases: BTreeSet<i64> = leases.into_iter().flatten().collect();
        leases
            .into_iter()
            .for_each(|lease| self.leases.give_back(lease));
    }

    /// A lease for each write that needs one: the same for all that live as long, in the whole seconds that it is granted for.
    async fn grant(
        &self,
        connection: &Connection,
        writes: &[SharedWrite],
    ) -> Result<Vec<Option<i64>>, Uncommitted> {
        let mut leases = vec![None; writes.len()];
        let mut lives: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, write) in writes.iter().enumerate() {
            if let Some(ttl) = write.value.as_ref().and_then(|value| value.life.ttl()) {
                let seconds = u64::try_from(ttl.as_millis().div_ceil(1000));
                let alike = lives.entry(seconds.unwrap_or(u64::MAX));
                alike.or_default().push(index);
            }
        }
        let mut lives = lives.into_iter();
        let deadline = Instant::now() + self.settings.timeout;
        let mut asked = JoinSet::new();
        let mut failed = None;
        loop {
            while failed.is_none()
                && asked.len() < GRANTED_AT_ONCE
                && let Some((seconds, writes)) = lives.next()
            {
                let (known, connection) = (Arc::clone(&self.leases), connection.clone());
                let timeout = deadline.saturating_duration_since(Instant::now());
                let of = match writes.len() {
                    1 => Of::One,
                    _ => Of::Several,
                };
                asked.spawn(async move {
                    let granted = known.grant(&connection, timeout, seconds, of).await;
                    (writes, granted)
                });
            }
            match asked.join_next().await {
                None => break,
                Some(Ok((writes, Ok(lease)))) => {
                    writes
                        .into_iter()
                        .for_each(|index| leases[index] = Some(lease));
                }
                Some(Ok((_, Err(error)))) => failed = Some(error),
                Some(Err(error)) => {
                    let reason = format!("asking for a lease: {error}");
                    failed = Some(Granted::Never(EngineError::Unavailable(reason)));
                }
            }
        }
        let Some(failed) = failed else {
            return Ok(leases);
        };
        self.give_back(leases);
        Err(match failed {
            Granted::Never(error) => Uncommitted::Never(error),
            // Nothing that anybody sees was done.
            Granted::Failed(failure) if failure.again() => Uncommitted::Failed(failure),
            Granted::Failed(failure) => {
                self.failed(connection, &failure).await;
                Uncommitted::Never(failure.unsent())
            }
        })
    }
}
