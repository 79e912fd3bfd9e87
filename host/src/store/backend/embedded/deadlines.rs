//! When entries end, in a table of the data file: most have no deadline, and take no room for one.

use std::sync::Arc;

use redb::TableDefinition;

use super::read::end_of;
use super::{Change, Key};
use crate::store::record::Record;

/// [`Key`] to when its entry ends, in milliseconds of Unix time. Made with the first such entry.
pub(super) const DEADLINES: TableDefinition<Key, u64> = TableDefinition::new("deadlines");

/// Keys of a bucket that end, and when, in order.
pub(super) fn read(
    transaction: &redb::ReadTransaction,
    name: &[u8],
) -> Result<Vec<(Vec<u8>, u64)>, redb::Error> {
    let table = match transaction.open_table(DEADLINES) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let end = end_of(name);
    let range = table.range((name, &[][..])..(end.as_slice(), &[][..]))?;
    range
        .map(|deadline| {
            let (key, millis) = deadline?;
            Ok((key.value().1.to_vec(), millis.value()))
        })
        .collect()
}

/// Follows changes, which come in the order in which they were made to each key.
pub(super) fn write(
    transaction: &redb::WriteTransaction,
    changes: &[&Change],
) -> Result<(), redb::Error> {
    let deadline = |record: &Option<Arc<Record>>| record.as_ref()?.entry.deadline;
    let mut ending = changes
        .iter()
        .filter(|change| deadline(&change.before) != deadline(&change.after))
        .peekable();
    // Most groups have none, and need not look at the table.
    if ending.peek().is_none() {
        return Ok(());
    }
    let mut table = transaction.open_table(DEADLINES)?;
    for change in ending {
        let key = (change.bucket.name.as_bytes(), change.key());
        match deadline(&change.after) {
            Some(deadline) => table.insert(key, deadline.millis())?,
            None => table.remove(key)?,
        };
    }
    Ok(())
}
