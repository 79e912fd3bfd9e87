//! From the journal to the data file: what has gathered, in one transaction.
//!
//! It is made on a thread of its own, so that writers do not wait for it. The file is with that thread meanwhile: whoever needs
//! it waits until it is back.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use redb::{Database, Durability};

use super::transact::{Failed, transact};
use super::{Change, Embedded, Mark};
use crate::store::backend::WriteError;

/// How long a transaction is in the journal alone.
pub(super) const CHECKPOINT_AFTER: Duration = Duration::from_secs(1);
/// How often one that is under way is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One that is under way.
pub(super) struct Checkpoint {
    thread: JoinHandle<(Database, Result<(), Failed>)>,
    covered: Covered,
    pub(super) look_at: Instant,
}

/// What the file is to have: the first of the changes that wait, up to a transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Covered {
    pub(super) mark: Mark,
    pub(super) changes: usize,
}

impl Embedded {
    /// Adds a transaction to the journal.
    pub(super) fn write_ahead(
        &mut self,
        mark: Mark,
        payload: &[u8],
        changes: &[Change],
    ) -> Result<(), WriteError> {
        if !self.journal.fits(payload.len()) {
            self.turn().map_err(WriteError)?;
        }
        if let Err(error) = self.journal.append(mark.writes, payload) {
            // As soon as possible, while no other process may have the file.
            let _ = self.journal.mend();
            self.end_checkpoint();
            self.give_up();
            let reason = format!("writing {}: {error}", self.journal.path().display());
            return Err(WriteError(reason));
        }
        self.unsynced.extend_from_slice(changes);
        self.mark = mark;
        self.sync_by
            .get_or_insert_with(|| Instant::now() + CHECKPOINT_AFTER);
        self.hurry();
        Ok(())
    }

    /// Has records go where there is room.
    fn turn(&mut self) -> Result<(), String> {
        // The other half is free once the last checkpoint is there.
        self.end_checkpoint();
        if !self.is_behind {
            self.begin_checkpoint();
        }
        if self.is_behind {
            self.db = Some(self.take_whole()?);
        }
        Ok(())
    }

    /// Begins the next checkpoint as soon as the writers have their answers, if the journal fills.
    fn hurry(&mut self) {
        if self.journal.is_half_full() {
            self.sync_by = Some(Instant::now());
        }
    }

    /// Begins one, if anything waits and none is under way.
    fn begin_checkpoint(&mut self) {
        let Some(db) = self.db.take_if(|_| !self.unsynced.is_empty()) else {
            return;
        };
        let covered = Covered {
            mark: self.mark,
            changes: self.unsynced.len(),
        };
        let changes = self.unsynced.clone();
        let lost = self.lost.clone();
        let write = move || {
            let written = transact(&db, covered.mark, &changes, Durability::Immediate, &lost);
            (db, written)
        };
        match thread::Builder::new()
            .name("store-checkpoint".into())
            .spawn(write)
        {
            Ok(thread) => {
                self.checkpoint = Some(Checkpoint {
                    thread,
                    covered,
                    look_at: Instant::now() + LOOK_EVERY,
                });
                self.journal.turn();
                self.sync_by = None;
            }
            // The file is closed, and opened again.
            Err(_) => self.is_behind = true,
        }
    }

    /// Waits for the one that is under way. If it failed, the file is closed.
    pub(super) fn end_checkpoint(&mut self) {
        let Some(Checkpoint {
            thread, covered, ..
        }) = self.checkpoint.take()
        else {
            return;
        };
        let failed = match thread.join() {
            Ok((db, written)) => {
                self.db = Some(db);
                written.err()
            }
            Err(_) => None,
        };
        if self.db.is_some() && failed.is_none() {
            self.is_covered(covered);
        } else {
            // It may have got there all the same.
            self.covered = Some(covered);
            self.give_up();
            // Whoever tries again is told what fails then.
            if let Some(failed) = failed {
                self.give_up_history(&failed);
            }
        }
    }

    /// The file has these.
    pub(super) fn is_covered(&mut self, covered: Covered) {
        self.synced = covered.mark;
        self.unsynced.drain(..covered.changes);
        if self.unsynced.is_empty() {
            self.journal.rewind();
            self.sync_by = None;
        }
        self.hurry();
    }

    /// The file, with everything that was acknowledged.
    pub(super) fn take_whole(&mut self) -> Result<Database, String> {
        let db = self.take()?;
        match self.has_waiting() {
            true => self.cover(db),
            false => Ok(db),
        }
    }

    /// Writes what waits to the file.
    pub(super) fn cover(&mut self, mut db: Database) -> Result<Database, String> {
        while !self.unsynced.is_empty() {
            let covered = Covered {
                mark: self.mark,
                changes: self.unsynced.len(),
            };
            let (durability, changes) = (Durability::Immediate, &self.unsynced);
            let Err(failed) = transact(&db, covered.mark, changes, durability, &self.lost) else {
                self.is_covered(covered);
                break;
            };
            self.covered = Some(covered);
            self.db = Some(db);
            self.give_up();
            if !self.give_up_history(&failed) {
                let file = self.path.display();
                return Err(format!("writing {file}: {}", failed.reason));
            }
            db = self.take()?;
        }
        self.is_behind = false;
        Ok(db)
    }

    /// Leaves out the history that is damaged, if that is what failed. Whether it is worth another try.
    pub(super) fn give_up_history(&mut self, failed: &Failed) -> bool {
        let Some(bucket) = &failed.past_of else {
            return false;
        };
        tracing::error!(
            bucket,
            reason = failed.reason,
            "the history of bucket {bucket} is damaged: its entries are written on, without one"
        );
        self.lost.insert(bucket.clone())
    }

    /// Goes on with checkpoints. One that failed is tried again here, so that it is told.
    pub(super) fn go_on(&mut self) -> Result<(), String> {
        let now = Instant::now();
        match &mut self.checkpoint {
            Some(under_way) if !under_way.thread.is_finished() => {
                under_way.look_at = now + LOOK_EVERY;
                return Ok(());
            }
            _ => self.end_checkpoint(),
        }
        if self.is_behind {
            self.db = Some(self.take_whole()?);
        } else if self.sync_by.is_some_and(|by| by <= now) {
            self.begin_checkpoint();
        }
        Ok(())
    }
}
