//! Ends what is over.
//!
//! In a bucket of this process's own an entry is deleted when its deadline has come. In one that proxies share the engine
//! deletes, and its log tells; when there is much, that may take long, and while it is away there is no log. So such an entry
//! is hidden until the log tells of it: when the engine, asked a little before, says that it is over, or, while the engine is
//! away, by this proxy's own clock. That one may be wrong, so when the engine is back it is asked for what was hidden so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Writer;
use crate::store::apply::{expire, settle};
use crate::store::backend::WriteError;
use crate::store::record::Record;
use crate::store::shared::{Ending, Left};
use crate::store::snapshot::Snapshot;
use crate::store::{BackendKind, BucketId};

/// Most entries that end in one transaction; others wait for the next.
const ENDED_MAX: usize = 65_536;
/// An engine that has not answered is asked again after this.
const ASK_AGAIN_MS: u64 = 1_000;
/// After it has said that only its log tells.
const UNKNOWN_MS: u64 = 60_000;
/// What was hidden comes back if it lives longer than this: less may be what the engine cannot tell from nothing.
const BACK_MIN: Duration = Duration::from_secs(1);

impl Writer {
    /// Until there is an entry to look at; none if none ends.
    pub(super) fn until_sweep(&self) -> Option<Duration> {
        let first = self.deadlines.first(&self.newest.load())?;
        let ends = Duration::from_millis(first.saturating_sub(self.clock.now()));
        let allowed = self.next_sweep.saturating_duration_since(Instant::now());
        Some(ends.max(allowed).min(self.clock.pace().wait_max))
    }

    /// Ends entries whose deadline has come.
    pub(super) fn sweep(&mut self) {
        if Instant::now() < self.next_sweep {
            return;
        }
        let now = self.clock.now();
        let first = self.deadlines.first(&self.newest.load());
        if first.is_none_or(|first| first > now) && !self.deadlines.has_doubt() {
            return;
        }
        let pauses = [self.end_own(now), self.end_shared(now)];
        if let Some(pause) = pauses.into_iter().flatten().min() {
            self.next_sweep = Instant::now() + pause;
        }
    }

    /// Deletes what has ended in buckets of this process's own. What the disk refuses is there until it takes it. Returns for
    /// how long to rest, if there was anything to do.
    fn end_own(&mut self, now: u64) -> Option<Duration> {
        let pace = self.clock.pace();
        let takes_writes = Instant::now() >= self.disk_again;
        let ended = self.ended(now, takes_writes);
        if ended.is_empty() {
            // What the disk refused is still due.
            return (!takes_writes).then_some(pace.interval);
        }
        let count = ended.len();
        if let Err(WriteError(reason)) = self.delete(ended, now) {
            tracing::error!(
                reason,
                entries = count,
                "store cannot delete what has expired"
            );
            self.disk_again = Instant::now() + pace.retry;
            let others = self.ended(now, false);
            if !others.is_empty()
                && let Err(WriteError(reason)) = self.delete(others, now)
            {
                tracing::error!(reason, "store cannot delete what has expired in memory");
            }
            return Some(pace.interval.min(pace.retry));
        }
        Some(match count {
            ENDED_MAX => Duration::ZERO,
            _ => pace.interval,
        })
    }

    fn ended(&self, now: u64, on_disk: bool) -> Vec<(BucketId, Arc<Record>)> {
        let is_wanted = |backend| match backend {
            BackendKind::Memory => true,
            BackendKind::Embedded => on_disk,
            BackendKind::Etcd | BackendKind::Redis => false,
        };
        self.deadlines
            .due(&self.newest.load(), is_wanted, false, (now, ENDED_MAX))
    }

    fn delete(&mut self, ended: Vec<(BucketId, Arc<Record>)>, now: u64) -> Result<(), WriteError> {
        let mut next = Snapshot::clone(&self.newest.load());
        let mut changes = Vec::with_capacity(ended.len());
        expire(&mut next, ended, now, &mut changes);
        self.backends.write(next.revision, &changes)?;
        self.publish(next, &changes);
        Ok(())
    }

    /// Hides what is over in buckets that proxies share, and asks engines for what is near its end.
    fn end_shared(&mut self, now: u64) -> Option<Duration> {
        let links = Arc::clone(self.backends.links());
        let published = self.newest.load_full();
        let mut over = Vec::new();
        for (kind, link) in links.iter() {
            let is_kind = |backend| backend == kind;
            for (id, record) in self
                .deadlines
                .due(&published, is_kind, true, (now, ENDED_MAX))
            {
                self.deadlines.is_over(id, &record, false);
                over.push((id, record));
            }
            let is_lost = link.is_lost();
            let room = match is_lost {
                true => 0,
                false => link.ending_max(),
            };
            // What the engine cannot be asked for yet is not looked at.
            let max = if is_lost { ENDED_MAX } else { room };
            let mut asked = Vec::new();
            for (id, record) in self.deadlines.due(&published, is_kind, false, (now, max)) {
                let Some(deadline) = record.entry.deadline else {
                    continue;
                };
                // While no node can say that it is there, none is taken for gone.
                let is_node = published.fleet() == Some(id);
                if !is_lost {
                    asked.push((id, record));
                } else if !is_node && deadline.millis() <= now {
                    self.deadlines.is_over(id, &record, true);
                    over.push((id, record));
                } else {
                    let at = deadline
                        .millis()
                        .max(now + ASK_AGAIN_MS * u64::from(is_node));
                    self.deadlines.look_again(id, &record, at, false);
                }
            }
            let more = room - asked.len();
            if more > 0 {
                let doubted = self.deadlines.take_doubted(&published, kind, more);
                asked.extend(doubted.into_iter().filter(|(id, record)| {
                    let over = published.buckets[id.0 as usize].over(record.key());
                    over.is_some_and(|over| over.entry.revision == record.entry.revision)
                }));
            }
            let question = asked.into_iter().filter_map(|(id, record)| {
                let again = now + ASK_AGAIN_MS;
                self.deadlines.look_again(id, &record, again, false);
                Some(Ending {
                    bucket: published.bucket(id)?.config.name.as_str().into(),
                    key: record.key().into(),
                    revision: record.entry.revision,
                    expires_at_ms: record.entry.deadline?.millis(),
                })
            });
            let question: Vec<_> = question.collect();
            if !question.is_empty() {
                link.ask_left(question);
            }
        }
        drop(published);
        let rest = match over.len() {
            ENDED_MAX.. => Duration::ZERO,
            _ => self.clock.pace().interval,
        };
        self.change_hidden(over, Vec::new());
        (!links.is_empty()).then_some(rest)
    }

    /// Takes what an engine says of how long entries live.
    pub(super) fn take_left(&mut self, kind: BackendKind, left: Vec<(Ending, Left)>) {
        if left.is_empty() {
            return;
        }
        let now = self.clock.now();
        let published = self.newest.load_full();
        let mut back = Vec::new();
        for (ending, left) in left {
            let Some(id) = published.bucket_on(kind, &ending.bucket) else {
                continue;
            };
            let bucket = &published.buckets[id.0 as usize];
            let found = bucket.table.get(&ending.key);
            let is_hidden = found.is_none();
            let found = found.or_else(|| bucket.over(&ending.key));
            let Some(record) = found.filter(|it| it.entry.revision == ending.revision) else {
                // It is another one by now.
                continue;
            };
            let record = Arc::new(record.clone());
            let (after, sure) = match left {
                Left::Until(after) => (after, true),
                Left::Longer(after) => (after, false),
                Left::Unknown => (Duration::from_millis(UNKNOWN_MS), false),
            };
            let stays_hidden = match left {
                Left::Until(after) => after <= BACK_MIN,
                Left::Longer(_) => false,
                Left::Unknown => true,
            };
            if is_hidden && stays_hidden {
                self.deadlines.is_over(id, &record, false);
                continue;
            }
            let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            let at = now.saturating_add(after);
            self.deadlines.look_again(id, &record, at, sure);
            if is_hidden {
                back.push((id, record));
            }
        }
        drop(published);
        self.change_hidden(Vec::new(), back);
        // What is over already is hidden at once.
        self.next_sweep = Instant::now();
    }

    /// Hides some entries, and shows others again. Neither is a change of the engine's, so nobody who watches is told.
    fn change_hidden(
        &mut self,
        over: Vec<(BucketId, Arc<Record>)>,
        back: Vec<(BucketId, Arc<Record>)>,
    ) {
        if over.is_empty() && back.is_empty() {
            return;
        }
        let mut next = Snapshot::clone(&self.newest.load());
        let mut hidden: HashMap<BucketId, Vec<&Record>> = HashMap::new();
        for (id, record) in &over {
            hidden.entry(*id).or_default().push(record);
        }
        for (id, records) in hidden {
            next.buckets[id.0 as usize].hide_all(&records);
        }
        for (id, record) in &back {
            next.buckets[id.0 as usize].insert(record);
        }
        next.revision.0 += 1;
        settle(&mut next);
        self.slack.note(over.len() + back.len());
        self.publish(next, &[]);
    }
}
