//! The whole file copied, and a copy checked: what a backup is made of.

use std::fs::File;
use std::path::Path;

use redb::{
    Database, Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError,
    Value, WriteTransaction,
};

use super::deadlines::DEADLINES;
use super::file::{FILE, corrupt, database, guarded, open_read_only};
use super::journal::path_beside;
use super::read::read_meta;
use super::sum::Sum;
use super::{BUCKETS, ENTRIES, META, META_ID, history};
use crate::store::data_file::{Contents, FileError, Source};
use crate::store::{Deadline, OpenError};

/// Buckets of this program itself begin so.
const OWN: &[u8] = b"throwbar:";

/// Writes everything that there was when the source was made into an empty file, and reads it all again: a copy that is
/// returned adds up.
pub(in crate::store) fn copy(source: &Source, to: &File) -> Result<Contents, FileError> {
    let failed = |reason: String| {
        FileError::Failed(format!("backup of {}: {reason}", source.path.display()))
    };
    let open = || {
        let file = to.try_clone().map_err(|error| failed(error.to_string()))?;
        database(file, &source.path).map_err(|error| failed(error.to_string()))
    };
    let copied = open()?;
    guarded(|| copy_tables(&source.transaction, &copied)).map_err(failed)?;
    // Closing tells nobody that it failed: what is opened again and adds up is whole.
    drop(copied);
    let copied = open()?;
    guarded(|| contents(&copied)).map_err(failed)
}

/// Reads a whole file that nobody has open, and changes nothing of it. One beside which there is a journal is not all there is.
pub(in crate::store) fn check(path: &Path) -> Result<Contents, OpenError> {
    let db = open_read_only(path)?;
    if path.ends_with(FILE) && path_beside(path).exists() {
        return Err(OpenError::NotClosed {
            path: path.to_owned(),
        });
    }
    guarded(|| contents(&db)).map_err(|reason| corrupt(path, reason))
}

fn copy_tables(from: &ReadTransaction, to: &Database) -> Result<(), redb::Error> {
    let to = to.begin_write()?;
    let copied = [
        copy_table(from, &to, META)?,
        copy_table(from, &to, BUCKETS)?,
        copy_table(from, &to, ENTRIES)?,
        copy_table(from, &to, DEADLINES)?,
        copy_table(from, &to, history::ROWS)?,
        copy_table(from, &to, history::ORDER)?,
        copy_table(from, &to, history::SIZES)?,
    ];
    let copied = copied.into_iter().filter(|copied| *copied).count();
    let there = from.list_tables()?.count();
    if copied != there {
        return Err(redb::Error::Corrupted(format!(
            "it has {there} tables, of which {copied} are known: it is of another release"
        )));
    }
    // The journal of a proxy that was killed after it is not the copy's.
    let id = getrandom::u64().unwrap_or(0);
    to.open_table(META)?.insert(META_ID, id)?;
    to.commit()?;
    Ok(())
}

/// Whether there is such a table.
fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    definition: TableDefinition<'_, K, V>,
) -> Result<bool, redb::Error> {
    let from = match from.open_table(definition) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let mut to = to.open_table(definition)?;
    for row in from.iter()? {
        let (key, value) = row?;
        to.insert(key.value(), value.value())?;
    }
    Ok(true)
}

/// What is in a file, if its entries, and what is kept of their past, add up to what its buckets say.
fn contents(db: &impl ReadableDatabase) -> Result<Contents, redb::Error> {
    let mut found = Contents {
        revision: read_meta(db)?.revision,
        buckets: 0,
        keys: 0,
    };
    let transaction = db.begin_read()?;
    let entries = transaction.open_table(ENTRIES)?;
    let mut entries = entries.iter()?.peekable();
    let deadlines = match transaction.open_table(DEADLINES) {
        Ok(table) => Some(table),
        Err(TableError::TableDoesNotExist(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let deadlines = deadlines.as_ref().map(ReadableTable::iter).transpose()?;
    let mut deadlines = deadlines.into_iter().flatten().peekable();
    for bucket in transaction.open_table(BUCKETS)?.iter()? {
        let (name, expected) = bucket?;
        let (name, expected) = (name.value(), Sum::from(expected.value()));
        let mut sum = Sum {
            revision: expected.revision,
            ..Sum::default()
        };
        // An error is taken, and told.
        while let Some(entry) = entries.next_if(|entry| match entry {
            Ok((key, _)) => key.value().0 == name,
            Err(_) => true,
        }) {
            let (key, value) = entry?;
            let (revision, value) = value.value();
            let deadline = deadlines.next_if(|deadline| match deadline {
                Ok((ending, _)) => ending.value() == key.value(),
                Err(_) => true,
            });
            let deadline = deadline.transpose()?;
            let deadline = deadline.and_then(|(_, millis)| Deadline::from_millis(millis.value()));
            sum.add(key.value().1, revision, value, deadline);
        }
        if sum != expected {
            return Err(redb::Error::Corrupted(format!(
                "bucket {:?}: {} entries were found that do not add up to the {} that were written",
                String::from_utf8_lossy(name),
                sum.entries,
                expected.entries
            )));
        }
        if !name.starts_with(OWN) {
            found.buckets += 1;
            found.keys += sum.entries;
        }
    }
    if entries.next().is_some() || deadlines.next().is_some() {
        return Err(redb::Error::Corrupted(
            "there are entries of no bucket".into(),
        ));
    }
    history::check(&transaction)?;
    Ok(found)
}
