//! Migrations, run again until nobody came between what they read and what they write.

use super::{Made, Mark, Migrated, Taking};
use crate::plugin::Generation;
use crate::plugin::report::DeployError;
use crate::plugin::slot::Stage;
use crate::store::{BucketId, CommitError, Expect, Hold, Late, Store, Write, WriteBatch};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// How often a migration is run while others may change its buckets; once more while they have to wait.
const ATTEMPTS: u32 = 4;

/// Makes migrations, all or none, and has their versions decide from the same moment on. To be called on a thread that may
/// block, of a runtime.
///
/// # Errors
/// Which of them failed, and why; nothing was changed then, unless it says that it is written and not seen. With `late` that is
/// told there, and waited for on.
pub(in crate::plugin) fn migrate(
    store: &Store,
    takings: &mut [Taking<'_>],
    late: Option<&Late<'_>>,
) -> Result<Vec<Made>, (usize, DeployError)> {
    let began = Instant::now();
    let mut lost = String::new();
    for attempt in 1..=ATTEMPTS {
        match try_once(store, takings, None, (attempt, began), late) {
            Err((_, DeployError::MigrateRace(reason))) => lost = reason,
            done => return done,
        }
    }
    let race = |index, more: String| {
        let reason = format!(
            "others wrote what it read, {ATTEMPTS} times in a row; the last time: {lost}{more}"
        );
        (index, DeployError::MigrateRace(reason))
    };
    let holds = takings.iter().map(|taking| taking.migration.limits.hold);
    let at_most = holds.max().unwrap_or_default();
    if at_most.is_zero() {
        return Err(race(0, String::new()));
    }
    let hold = Handle::current().block_on(store.hold(at_most));
    let hold = hold.map_err(|error| (0, refused(error)))?;
    let attempt = (ATTEMPTS + 1, began);
    try_once(store, takings, Some((hold, at_most)), attempt, late).map_err(|(index, error)| {
        match error.is_written() {
            true => (index, error),
            false => race(index, format!("; with other writes held back: {error}")),
        }
    })
}

/// Runs every guest on the newest state, and commits what they want if nobody came between.
fn try_once(
    store: &Store,
    takings: &mut [Taking<'_>],
    hold: Option<(Hold, Duration)>,
    (attempt, began): (u32, Instant),
    late: Option<&Late<'_>>,
) -> Result<Vec<Made>, (usize, DeployError)> {
    let snapshot = store.snapshot();
    let (mut batch, mut wishes, mut marked) = (WriteBatch::default(), Vec::new(), Vec::new());
    // By bucket, who writes it: none would see what the other does.
    let mut writers = BTreeMap::new();
    for (index, taking) in takings.iter().enumerate() {
        let failed = |error| (index, error);
        let held = hold.as_ref().map_or(Duration::MAX, |(_, at_most)| *at_most);
        let deadline = taking.migration.limits.deadline.min(held);
        let mut wish = taking.migration.wish(&snapshot, deadline).map_err(failed)?;
        for write in &wish.batch.writes {
            let first = *writers.entry(write.bucket).or_insert(index);
            if first != index {
                let other = takings[first].slot.name();
                return Err(failed(DeployError::Migrate(format!(
                    "it writes a bucket that the migration of plugin {other:?} writes too: change one after the other"
                ))));
            }
        }
        let generation = &taking.migration.generation;
        let from = taking.migration.runs_from.clone().flatten();
        let mark = Mark::new(generation.id(), from, taking.record);
        let beside = &taking.migration.beside;
        let brings = !beside.writes.is_empty() || !beside.replace.is_empty();
        let changed = brings || wish.written + wish.deleted > 0;
        let marks = mark.writes(&snapshot, &generation.sandbox, &wish.batch, changed);
        batch.by = batch.by.or(wish.batch.by.take());
        batch.conditions.append(&mut wish.batch.conditions);
        batch.writes.append(&mut wish.batch.writes);
        batch.replace.append(&mut wish.batch.replace);
        batch.expect.append(&mut wish.batch.expect);
        let mut marks = marks.map_err(failed)?;
        marked.extend(marks.first().map(|mark| (mark.bucket, mark.key.clone())));
        batch.writes.append(&mut marks);
        wishes.push((wish, mark.id));
    }
    let stages = takings
        .iter()
        .map(|taking| Stage::new(taking.slot, &taking.migration.generation));
    let stages: Vec<Stage> = stages.collect();
    let notes = stages.iter().flat_map(Stage::notes).collect();
    let runtime = Handle::current();
    let committed = match hold {
        Some((hold, _)) => runtime.block_on(hold.commit_noting(batch, notes, late)),
        None => runtime.block_on(store.commit_noting(batch, notes, late)),
    };
    let committed = committed.map_err(|error| match is_of_beside(takings, &error) {
        true => (0, DeployError::beside(error)),
        false => (0, refused(error)),
    });
    let revision = committed?.revision;
    // After a failover, others may have written what is seen at that revision.
    let snapshot = store.snapshot();
    let has = |(bucket, key): &(BucketId, Box<str>)| {
        let entry = snapshot.bucket(*bucket).and_then(|bucket| bucket.get(key));
        entry.is_some_and(|entry| entry.revision >= revision)
    };
    if late.is_some() && !marked.iter().all(has) {
        return Err((0, DeployError::Writes(CommitError::Lost { revision })));
    }
    let took = began.elapsed();
    let each = takings.iter_mut().zip(stages).zip(wishes);
    let made = each.map(|((taking, stage), (wish, id))| {
        taking.record.migration = Some(id);
        let migrated = taking
            .migration
            .told(wish.written, wish.deleted, attempt, took);
        if let Some(migrated) = &migrated {
            tell(&taking.migration.generation, migrated);
        }
        Made {
            migrated,
            revision,
            _stage: stage,
        }
    });
    Ok(made.collect())
}

/// Whether the store refuses for what is written beside: to run a guest again would change nothing.
fn is_of_beside(takings: &[Taking<'_>], error: &CommitError) -> bool {
    let mut batches = takings.iter().map(|taking| &taking.migration.beside);
    match error {
        CommitError::Conflict { key, .. } => {
            let requires = |write: &Write| *write.key == **key && write.expect != Expect::Any;
            batches.any(|batch| batch.writes.iter().any(requires))
        }
        CommitError::BucketConflict { .. } => true,
        CommitError::Unavailable(_) | CommitError::Unknown(_) | CommitError::Unseen { .. } => {
            batches.any(|batch| !batch.writes.is_empty() || !batch.replace.is_empty())
        }
        _ => false,
    }
}

/// Why the store does not take what a guest wants written.
pub(super) fn refused(error: CommitError) -> DeployError {
    match error {
        CommitError::Unavailable(_) | CommitError::Unknown(_) => DeployError::Io(error.to_string()),
        CommitError::Unseen { .. } | CommitError::Lost { .. } => DeployError::Writes(error),
        CommitError::Changed { .. } | CommitError::Marked { .. } | CommitError::Conflict { .. } => {
            DeployError::MigrateRace(error.to_string())
        }
        error => DeployError::Migrate(error.to_string()),
    }
}

fn tell(generation: &Generation, migrated: &Migrated) {
    let label = generation.label();
    tracing::info!(
        plugin = %label.plugin,
        version = label.version(),
        from = migrated.from.as_deref().and_then(|from| from.get(..12)),
        written = migrated.written,
        deleted = migrated.deleted,
        attempts = migrated.attempts,
        ms = migrated.ms,
        "data are migrated"
    );
}
