//! A transaction of the file: changes, and what is kept with them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use redb::{Database, Durability, ReadableTable};

use super::file::guarded;
use super::history::Lost;
use super::sum::Sum;
use super::{BUCKETS, Change, ENTRIES, META, META_REVISION, META_WRITES, Mark, deadlines, history};

/// What undoes a change.
pub(super) fn reversed(change: &Change) -> Change {
    Change {
        before: change.after.clone(),
        after: change.before.clone(),
        bucket_before: change.bucket_after,
        bucket_after: change.bucket_before,
        origin: None,
        ..change.clone()
    }
}

/// Why a transaction was not made.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) reason: String,
    /// The bucket whose past is damaged, if it is only for that.
    pub(super) past_of: Option<Box<str>>,
}

/// Makes changes, in their order; the file is at `mark` then. Of buckets whose past is `lost`, none is kept.
pub(super) fn transact(
    db: &Database,
    mark: Mark,
    changes: &[Change],
    durability: Durability,
    lost: &Lost,
) -> Result<(), Failed> {
    let mut past_of = None;
    guarded(|| try_transact(db, mark, changes, durability, lost, &mut past_of))
        .map_err(|reason| Failed { reason, past_of })
}

fn try_transact(
    db: &Database,
    mark: Mark,
    changes: &[Change],
    durability: Durability,
    lost: &Lost,
    past_of: &mut Option<Box<str>>,
) -> Result<(), redb::Error> {
    // In order of place in the file; the changes of one key keep their order.
    let mut ordered: Vec<&Change> = changes.iter().collect();
    ordered.sort_by_key(|change| (change.bucket.name.as_bytes(), change.key()));
    let mut transaction = db.begin_write()?;
    transaction.set_durability(durability)?;
    deadlines::write(&transaction, &ordered)?;
    if let Err(damaged) = history::write(&transaction, &ordered, lost)? {
        *past_of = Some(damaged.bucket);
        return Err(redb::Error::Corrupted(damaged.reason));
    }
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        for change in ordered.into_iter().filter(|change| !change.is_touch()) {
            let key = (change.bucket.name.as_bytes(), change.key());
            match &change.after {
                Some(record) => {
                    let entry = &record.entry;
                    entries.insert(key, (entry.revision.0, entry.value.to_bytes().as_ref()))?;
                }
                None => {
                    entries.remove(key)?;
                }
            }
        }
        let mut buckets = transaction.open_table(BUCKETS)?;
        let mut sums: HashMap<&[u8], Sum> = HashMap::new();
        for change in changes {
            let name = change.bucket.name.as_bytes();
            let sum = match sums.entry(name) {
                Entry::Occupied(sum) => sum.into_mut(),
                Entry::Vacant(sum) => {
                    let stored = buckets.get(name)?.map(|sum| Sum::from(sum.value()));
                    sum.insert(stored.unwrap_or_default())
                }
            };
            sum.change(change);
        }
        for (name, sum) in sums {
            buckets.insert(name, (sum.revision, sum.entries, sum.hashes))?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_REVISION, mark.revision.0)?;
        meta.insert(META_WRITES, mark.writes)?;
    }
    transaction.commit()?;
    Ok(())
}
