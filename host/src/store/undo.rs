//! The past of a key as it is asked for, and batches that put back what was.
//!
//! What is put back was looked at before, so each write requires that its key has not changed since then.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::history::{Event, Histories, Past, Step};
use super::writer::Command;
use super::{BucketConfig, BucketId, Expect, Revision, Store, Write, WriteBatch};

/// Why the past of a key cannot be told, or what was cannot be put back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UndoError {
    /// A bucket id that does not exist.
    #[error("no such bucket")]
    NoSuchBucket,
    /// The bucket is not to keep any.
    #[error(
        "bucket {bucket:?}: keeps no history, expected `history` in its config, such as `history = 10`"
    )]
    Off {
        /// Its name.
        bucket: String,
    },
    /// What was is not known.
    #[error("bucket {bucket:?}, key {key:?}: what it was before {} is not kept", before.map_or_else(|| "now".to_owned(), |revision| format!("revision {revision}")))]
    Unknown {
        /// The bucket's name.
        bucket: String,
        /// The key.
        key: String,
        /// The first revision that is known.
        before: Option<Revision>,
    },
    /// It has not come yet.
    #[error("bucket {bucket:?}: revision {revision} is not of this store, which is at {newest}")]
    NotYet {
        /// The bucket's name.
        bucket: String,
        /// What was asked for.
        revision: Revision,
        /// The newest.
        newest: Revision,
    },
    /// No change of this revision is kept.
    #[error("bucket {bucket:?}: no change of revision {revision} is kept")]
    NoRevision {
        /// The bucket's name.
        bucket: String,
        /// What was asked for.
        revision: Revision,
    },
    /// It changed keys that do not begin so.
    #[error(
        "bucket {bucket:?}: revision {revision} changed other keys, too, expected only those that begin with {prefix:?}"
    )]
    Beyond {
        /// The bucket's name.
        bucket: String,
        /// What was asked for.
        revision: Revision,
        /// How they have to begin.
        prefix: String,
    },
    /// Keys were changed since.
    #[error(
        "bucket {bucket:?}: {count} of the keys of revision {revision} were changed since, the first is {key:?} at revision {last}"
    )]
    Changed {
        /// The bucket's name.
        bucket: String,
        /// What was asked for.
        revision: Revision,
        /// How many.
        count: usize,
        /// The first.
        key: String,
        /// Its last change.
        last: Revision,
    },
    /// The backend cannot be read.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

impl Store {
    /// The changes of a key that are kept, the last first: at most as many as its bucket's `history`.
    ///
    /// # Errors
    /// If the bucket keeps none, or its backend cannot be read.
    pub async fn history(&self, bucket: BucketId, key: &str) -> Result<Vec<Past>, UndoError> {
        let config = self.keeping(bucket)?;
        if !config.backend.keeps_history() {
            return Ok(self.inner.past.of_key(bucket, key));
        }
        let (key, kept) = (key.to_owned(), config.history as usize);
        let rows = self.read_past(move |past| past.of_key(&config.name, &key));
        let mut rows = rows.await?;
        // More are there until it is written again, if the config asks for fewer than before.
        rows.truncate(kept);
        Ok(rows)
    }

    /// A batch that makes a key what it was before its last change, or at a revision.
    ///
    /// # Errors
    /// As for [`Self::history`], and if what was is not kept.
    pub async fn undo_key(
        &self,
        bucket: BucketId,
        key: &str,
        to: Option<Revision>,
    ) -> Result<WriteBatch, UndoError> {
        // Each has all that the one before it has: what is seen, the state, and the rows.
        let config = self.keeping(bucket)?;
        let seen = self.applied(&config);
        let snapshot = self.snapshot();
        let rows = self.history(bucket, key).await?;
        let found = snapshot.bucket(bucket).ok_or(UndoError::NoSuchBucket)?;
        let entry = found.get(key).map(|entry| entry.revision);
        let last = rows.first();
        // The newest revision that the state may have: of what proxies share, its engine's.
        let seen = match found.config.backend.is_shared() {
            true => found.revision.max(seen),
            false => snapshot.revision(),
        };
        let newest = last.map_or(seen, |row| row.revision.max(seen));
        if let Some(revision) = to.filter(|revision| *revision > newest) {
            let bucket = found.config().name.clone();
            return Err(UndoError::NotYet {
                bucket,
                revision,
                newest,
            });
        }
        // What was written while no history was kept is not in the rows. They may be newer than the snapshot.
        let is_seen = match (entry, last) {
            (_, Some(row)) if row.revision > seen => true,
            (Some(entry), Some(row)) => entry <= row.revision,
            (None, Some(row)) => row.value.is_none(),
            (Some(_), None) => false,
            (None, None) => true,
        };
        let expect = match last.filter(|_| is_seen) {
            Some(row) if row.value.is_some() => Expect::At(row.revision),
            Some(_) => Expect::Absent,
            None => entry.map_or(Expect::Absent, Expect::At),
        };
        let wanted = match (to, is_seen) {
            (Some(to), _) => as_of(&rows, to),
            (None, true) => before_last(&rows),
            (None, false) => None,
        };
        let wanted = wanted.ok_or_else(|| UndoError::Unknown {
            bucket: found.config().name.clone(),
            key: key.to_owned(),
            before: rows.last().map(|row| row.revision),
        })?;
        let now = self.inner.committer.clock.now();
        Ok(WriteBatch {
            writes: vec![write(bucket, key, wanted, expect, now)],
            undo: true,
            ..WriteBatch::default()
        })
    }

    /// A batch that makes all keys that a revision changed what they were before it, and how many it leaves as they are,
    /// because they were changed since. All have to begin with `prefix`.
    ///
    /// # Errors
    /// As for [`Self::history`]; if what one of them was is not kept; and if some were changed since, unless these are to be
    /// left as they are.
    pub async fn undo_revision(
        &self,
        bucket: BucketId,
        revision: Revision,
        skip_changed: bool,
        prefix: &str,
    ) -> Result<(WriteBatch, usize), UndoError> {
        let config = self.keeping(bucket)?;
        let mut steps = if config.backend.keeps_history() {
            let config = Arc::clone(&config);
            self.read_past(move |past| past.of_revision(&config.name, revision))
                .await?
        } else {
            self.inner.past.of_revision(bucket, revision)
        };
        if steps.is_empty() {
            return Err(UndoError::NoRevision {
                bucket: config.name.clone(),
                revision,
            });
        }
        if !steps.iter().all(|step| step.key.starts_with(prefix)) {
            return Err(UndoError::Beyond {
                bucket: config.name.clone(),
                revision,
                prefix: prefix.to_owned(),
            });
        }
        let all = steps.len();
        let changed = steps.iter().find(|step| step.last != revision);
        if let Some(step) = changed.filter(|_| !skip_changed) {
            return Err(UndoError::Changed {
                bucket: config.name.clone(),
                revision,
                count: steps.iter().filter(|step| step.last != revision).count(),
                key: step.key.to_string(),
                last: step.last,
            });
        }
        steps.retain(|step| step.last == revision);
        let left_out = all - steps.len();
        let now = self.inner.committer.clock.now();
        let writes = steps.iter().map(|step| {
            let wanted = before(step).ok_or_else(|| UndoError::Unknown {
                bucket: config.name.clone(),
                key: step.key.to_string(),
                before: Some(revision),
            })?;
            let expect = match step.after.value {
                Some(_) => Expect::At(revision),
                None => Expect::Absent,
            };
            Ok(write(bucket, &step.key, wanted, expect, now))
        });
        let batch = WriteBatch {
            writes: writes.collect::<Result<_, UndoError>>()?,
            undo: true,
            ..WriteBatch::default()
        };
        Ok((batch, left_out))
    }

    /// How far readers see what an engine has that processes share; nothing of any other, whose revisions are the store's.
    fn applied(&self, config: &BucketConfig) -> Revision {
        match config.backend.is_shared() {
            true => self.inner.committer.applied(config.backend),
            false => Revision::default(),
        }
    }

    /// The config of a bucket that keeps a history.
    fn keeping(&self, bucket: BucketId) -> Result<Arc<BucketConfig>, UndoError> {
        let snapshot = self.snapshot();
        let bucket = snapshot.bucket(bucket).ok_or(UndoError::NoSuchBucket)?;
        match bucket.config.history {
            0 => Err(UndoError::Off {
                bucket: bucket.config.name.clone(),
            }),
            _ => Ok(Arc::clone(&bucket.config)),
        }
    }

    /// Reads what a backend keeps, on a thread for work that takes long.
    async fn read_past<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Histories) -> Result<T, String> + Send + 'static,
    ) -> Result<T, UndoError> {
        let closed = || UndoError::Unavailable("store is closed".into());
        let (done, answer) = oneshot::channel();
        let asked = self.inner.commands.send(Command::Histories(done));
        asked.map_err(|_| closed())?;
        let past = answer.await.map_err(|_| closed())?;
        let past = past.map_err(UndoError::Unavailable)?;
        tokio::task::spawn_blocking(move || read(&*past))
            .await
            .map_err(|_| closed())?
            .map_err(UndoError::Unavailable)
    }
}

/// What a key was: its value and when that was to end, or nothing.
type Wanted<'p> = Option<&'p Past>;

/// What a row says the key was from then on.
fn state(row: &Past) -> Wanted<'_> {
    row.value.is_some().then_some(row)
}

/// What it was before the last of its rows; none if that is not known.
fn before_last(rows: &[Past]) -> Option<Wanted<'_>> {
    match rows {
        [_, before, ..] => Some(state(before)),
        [last] if last.event == Event::Created => Some(None),
        _ => None,
    }
}

/// What it was at a revision; none if that is not known.
fn as_of(rows: &[Past], to: Revision) -> Option<Wanted<'_>> {
    match rows.iter().find(|row| row.revision <= to) {
        Some(row) => Some(state(row)),
        None => {
            let oldest = rows.last()?;
            (oldest.event == Event::Created).then_some(None)
        }
    }
}

/// What it was before a step; none if that is not known.
fn before(step: &Step) -> Option<Wanted<'_>> {
    match (&step.before, step.after.event) {
        (_, Event::Created) => Some(None),
        (Some(before), _) => Some(state(before)),
        (None, _) => None,
    }
}

/// `now` is by the clock that deadlines are made with.
fn write(bucket: BucketId, key: &str, wanted: Wanted<'_>, expect: Expect, now: u64) -> Write {
    let write = match wanted.and_then(|past| Some((past, past.value.as_ref()?))) {
        None => Write::delete(bucket, key),
        Some((past, value)) => {
            // Whoever wants back what has ended meanwhile wants it to stay.
            let until = past.deadline.filter(|deadline| deadline.millis() > now);
            Write {
                until,
                ..Write::put(bucket, key, value.clone())
            }
        }
    };
    write.expecting(expect)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(revision: u64, event: Event, value: Option<&str>) -> Past {
        Past {
            revision: Revision(revision),
            at: None,
            by: None,
            event,
            undo: false,
            value: value.map(|value| value.as_bytes().into()),
            deadline: None,
        }
    }

    /// A value, nothing, or not known.
    fn told(wanted: Option<Wanted<'_>>) -> &str {
        match wanted {
            None => "unknown",
            Some(None) => "absent",
            Some(Some(past)) => past
                .value
                .as_deref()
                .map_or("no value", |it| std::str::from_utf8(it).expect("text")),
        }
    }

    #[test]
    fn what_was_before_the_last_change_or_at_a_revision_is_found_or_not_known() {
        let rows = [
            row(9, Event::Expired, None),
            row(7, Event::Changed, Some("b")),
            row(4, Event::Created, Some("a")),
        ];
        assert_eq!(told(before_last(&rows)), "b");
        assert_eq!(told(before_last(&rows[1..])), "a");
        assert_eq!(told(before_last(&rows[2..])), "absent");
        assert_eq!(told(before_last(&rows[1..2])), "unknown");
        assert_eq!(told(before_last(&[])), "unknown");
        for (to, expected) in [(3, "absent"), (4, "a"), (6, "a"), (8, "b"), (9, "absent")] {
            assert_eq!(told(as_of(&rows, Revision(to))), expected, "{to}");
        }
        assert_eq!(told(as_of(&rows[..2], Revision(6))), "unknown");
        assert_eq!(told(as_of(&[], Revision(6))), "unknown");
    }
}
