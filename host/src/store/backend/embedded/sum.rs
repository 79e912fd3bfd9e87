//! What the entries of a bucket add up to: kept with it, so that a damaged file is noticed when it is loaded.

use crate::store::Deadline;
use crate::store::backend::Change;

/// What a bucket's entries must add up to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) revision: u64,
    pub(super) entries: u64,
    pub(super) hashes: u64,
}

impl From<(u64, u64, u64)> for Sum {
    fn from((revision, entries, hashes): (u64, u64, u64)) -> Self {
        Self {
            revision,
            entries,
            hashes,
        }
    }
}

impl Sum {
    pub(super) fn add(
        &mut self,
        key: &[u8],
        revision: u64,
        value: &[u8],
        deadline: Option<Deadline>,
    ) {
        self.entries = self.entries.wrapping_add(1);
        let hash = hash(key, revision, value, deadline);
        self.hashes = self.hashes.wrapping_add(hash);
    }

    pub(super) fn change(&mut self, change: &Change) {
        if let Some(record) = &change.before {
            let entry = &record.entry;
            let value = entry.value.to_bytes();
            let hash = hash(record.key_bytes(), entry.revision.0, &value, entry.deadline);
            self.entries = self.entries.wrapping_sub(1);
            self.hashes = self.hashes.wrapping_sub(hash);
        }
        if let Some(record) = &change.after {
            let entry = &record.entry;
            let value = entry.value.to_bytes();
            self.add(record.key_bytes(), entry.revision.0, &value, entry.deadline);
        }
        self.revision = change.bucket_after.0;
    }
}

/// An entry without a deadline adds nothing for it.
fn hash(key: &[u8], revision: u64, value: &[u8], deadline: Option<Deadline>) -> u64 {
    let length = (key.len() as u64).to_le_bytes();
    let revision = revision.to_le_bytes();
    let deadline = deadline.map(|deadline| deadline.millis().to_le_bytes());
    let deadline = deadline.as_ref().map_or(&[][..], |bytes| &bytes[..]);
    let parts = [&length[..], key, &revision[..], value, deadline];
    fnv(parts.into_iter().flatten())
}

/// FNV-1a: the same in every version and on every machine, as hashers of the standard library are not.
pub(super) fn fnv<'b>(bytes: impl Iterator<Item = &'b u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
