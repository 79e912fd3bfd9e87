//! The map behind a bucket: immutable once published, and cheap to change by one key.
//!
//! A hash's first 6 bits pick a branch, the next 6 a group of leaves in it, those after them a leaf, and its last 8, the
//! print, say which of a leaf's records are worth comparing. Prints lie beside the reference to their leaf, records in place
//! in the leaf. So a lookup touches one piece of memory that is not cached beyond what stays cached, and a change copies a
//! leaf, its group, a branch and the root, without touching what the records refer to. Beside that the keys are kept in their
//! order, for listings.
//!
//! Why records in place: with each in a piece of its own, a random read of 1,000,000 keys waited for two and a half cache
//! misses, a change for the counts of references of all of a leaf's, and 1,000,000 small pieces that were freed here and
//! there kept their pages. Figures are in `ARCHITECTURE.md`, "Measured".

use std::ops::Bound;
use std::sync::Arc;

use ahash::RandomState;

use super::Entry;
use super::record::Record;

use keys::Keys;

mod keys;
mod loading;

/// Branches of a table, and groups of a branch.
const FAN: usize = 64;
/// Bits of a hash that pick one.
const FAN_BITS: u32 = FAN.trailing_zeros();
/// Parts of a table that are compared one at a time: its groups.
pub(super) const PARTS: usize = FAN * FAN;
/// Leaves of a group are doubled up to this.
const LEAVES_MAX: usize = 4096;
/// Records of a leaf that have a print. One that grows beyond this doubles its group's leaves, while it may.
const PRINTS: usize = 32;

/// Records that belong together by their hashes, in any order.
#[derive(Clone, Default)]
struct Leaf {
    /// Of the first of them, in the same order.
    prints: [u8; PRINTS],
    records: Arc<[Record]>,
}

/// No leaf, or a power of two of them.
type Group = Arc<[Leaf]>;
/// No group, or [`FAN`] of them.
type Branch = Arc<[Group]>;

/// A persistent map from key to entry; a clone shares everything.
#[derive(Clone)]
pub(super) struct Table {
    root: Arc<[Branch]>,
    /// Those of all records, in a table that is listed.
    keys: Option<Keys>,
    hasher: RandomState,
    len: u64,
    bytes: u64,
    /// How many entries have a deadline.
    ending: u64,
}

impl Leaf {
    fn find(&self, key: &[u8], print: u8) -> Option<usize> {
        let is_key = |at: &usize| self.records[*at].key_bytes() == key;
        let printed = self.records.len().min(PRINTS);
        let mut at = 0;
        for prints in self.prints.chunks_exact(8) {
            if at >= printed {
                return None;
            }
            let mut found = bytes_like(prints, print);
            while found != 0 {
                let place = at + found.trailing_zeros() as usize / 8;
                if place < printed && is_key(&place) {
                    return Some(place);
                }
                found &= found - 1;
            }
            at += 8;
        }
        (printed..self.records.len()).find(is_key)
    }

    fn add(&mut self, record: Record, print: u8) {
        if let Some(place) = self.prints.get_mut(self.records.len()) {
            *place = print;
        }
        let records = self.records.iter().cloned();
        self.records = records.chain(std::iter::once(record)).collect();
    }

    fn remove(&mut self, at: usize, print: impl Fn(&Record) -> u8) {
        if at < PRINTS {
            self.prints.copy_within(at + 1.., at);
            self.prints[PRINTS - 1] = self.records.get(PRINTS).map_or(0, print);
        }
        let records = &self.records;
        self.records = records[..at]
            .iter()
            .chain(&records[at + 1..])
            .cloned()
            .collect();
    }
}

/// The high bit of each of eight bytes that is this one. Above the lowest of them one may be set for a byte that is not.
fn bytes_like(eight: &[u8], byte: u8) -> u64 {
    const LOW: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let eight = u64::from_le_bytes(eight.try_into().expect("they are eight"));
    let differing = eight ^ (LOW * u64::from(byte));
    differing.wrapping_sub(LOW) & !differing & HIGH
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            keys: Some(Keys::default()),
            ..Self::unlisted()
        }
    }

    /// One that has no keys in order: nobody lists it.
    pub(super) fn unlisted() -> Self {
        Self {
            root: vec![Branch::default(); FAN].into(),
            keys: None,
            hasher: RandomState::new(),
            len: 0,
            bytes: 0,
            ending: 0,
        }
    }

    /// Whether both are the very same.
    pub(super) fn is_same(&self, other: &Table) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many entries have a deadline.
    pub(super) fn ending(&self) -> u64 {
        self.ending
    }

    pub(super) fn get(&self, key: &str) -> Option<&Record> {
        self.find(self.hasher.hash_one(key.as_bytes()), key.as_bytes())
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<&Record> {
        let group = self.root[branch_of(hash)].get(group_of(hash))?;
        let leaf = group.get(leaf_of(hash, group.len()))?;
        let at = leaf.find(key, print_of(hash))?;
        Some(&leaf.records[at])
    }

    /// The records from a key on, in byte order of their keys; none of a table that is not listed.
    pub(super) fn range<'t>(
        &'t self,
        from: Bound<&str>,
    ) -> impl Iterator<Item = &'t Record> + use<'t> {
        let keys = self.keys.as_ref();
        let mut keys = keys.map(|keys| keys.walk(from.map(str::as_bytes)));
        std::iter::from_fn(move || {
            loop {
                let key = keys.as_mut()?.next()?;
                let record = self.find(self.hasher.hash_one(key), key);
                debug_assert!(record.is_some(), "each key is that of a record");
                if record.is_some() {
                    return record;
                }
            }
        })
    }

    /// Puts a record in the place of what its key had.
    pub(super) fn insert(&mut self, record: &Record) {
        let is_new = self.insert_hashed(self.hasher.hash_one(record.key_bytes()), record);
        if is_new && let Some(keys) = &mut self.keys {
            keys.change(&[(record.key_bytes(), true)]);
        }
    }

    /// Whether there was no such key; the keys in order are left to whoever calls.
    fn insert_hashed(&mut self, hash: u64, record: &Record) -> bool {
        let branch = &mut Arc::make_mut(&mut self.root)[branch_of(hash)];
        if branch.is_empty() {
            *branch = vec![Group::default(); FAN].into();
        }
        let group = &mut Arc::make_mut(branch)[group_of(hash)];
        if group.is_empty() {
            *group = Arc::new([Leaf::default()]);
        }
        let leaves = group.len();
        let leaf = &mut Arc::make_mut(group)[leaf_of(hash, leaves)];
        self.bytes += record.bytes();
        self.ending += record.ending();
        match leaf.find(record.key_bytes(), print_of(hash)) {
            Some(at) => {
                let place = &mut Arc::make_mut(&mut leaf.records)[at];
                self.bytes -= place.bytes();
                self.ending -= place.ending();
                *place = record.clone();
                false
            }
            None => {
                self.len += 1;
                leaf.add(record.clone(), print_of(hash));
                if leaf.records.len() > PRINTS && leaves < LEAVES_MAX {
                    let records = records(group).map(|record| {
                        let hash = self.hasher.hash_one(record.key_bytes());
                        (hash, record.clone())
                    });
                    *group = group_from(records, leaves * 2);
                }
                true
            }
        }
    }

    /// Removes what the key has, if anything.
    pub(super) fn remove(&mut self, key: &str) {
        if self.remove_hashed(key.as_bytes())
            && let Some(keys) = &mut self.keys
        {
            keys.change(&[(key.as_bytes(), false)]);
        }
    }

    /// Whether there was such a key; the keys in order are left to whoever calls.
    fn remove_hashed(&mut self, key: &[u8]) -> bool {
        let hash = self.hasher.hash_one(key);
        // What is not there is no reason to copy anything.
        if self.find(hash, key).is_none() {
            return false;
        }
        let branch = &mut Arc::make_mut(&mut self.root)[branch_of(hash)];
        let group = &mut Arc::make_mut(branch)[group_of(hash)];
        let leaves = group.len();
        let leaf = &mut Arc::make_mut(group)[leaf_of(hash, leaves)];
        let Some(at) = leaf.find(key, print_of(hash)) else {
            return false;
        };
        self.len -= 1;
        self.bytes -= leaf.records[at].bytes();
        self.ending -= leaf.records[at].ending();
        leaf.remove(at, |record| {
            print_of(self.hasher.hash_one(record.key_bytes()))
        });
        if leaf.records.is_empty() && group.iter().all(|leaf| leaf.records.is_empty()) {
            *group = Group::default();
            if branch.iter().all(|group| group.is_empty()) {
                *branch = Branch::default();
            }
        }
        true
    }

    /// Keys whose value is another than in `before`, or which are in only one of both. Looks at what the two do not share:
    /// after a change of few keys that is little.
    pub(super) fn changed_since<'t>(&'t self, before: &'t Table) -> impl Iterator<Item = &'t str> {
        let changed = (0..PARTS).flat_map(|part| self.changed_in(part, before));
        changed.map(|(record, _)| record.key())
    }

    /// A part of that, one of [`PARTS`]: each record as it is now, or as it was last and that it is gone.
    pub(super) fn changed_in<'t>(
        &'t self,
        part: usize,
        before: &'t Table,
    ) -> impl Iterator<Item = (&'t Record, bool)> {
        self.other_in(part, before, |now, old| now.value != old.value)
    }

    /// Keys of which the two have different entries, or only one has any. Looks at what they do not share.
    pub(super) fn differing<'t>(&'t self, other: &'t Table) -> impl Iterator<Item = &'t str> {
        let differing =
            (0..PARTS).flat_map(|part| self.other_in(part, other, |one, other| one != other));
        differing.map(|(record, _)| record.key())
    }

    fn other_in<'t>(
        &'t self,
        part: usize,
        before: &'t Table,
        is_other: impl Fn(&Entry, &Entry) -> bool,
    ) -> impl Iterator<Item = (&'t Record, bool)> {
        let (now, old) = (self.group(part), before.group(part));
        let changed = unshared(now, old).filter(move |record| {
            let old = before.get(record.key());
            old.is_none_or(|old| is_other(&record.entry, &old.entry))
        });
        let gone = unshared(old, now).filter(|record| self.get(record.key()).is_none());
        let changed = changed.map(|record| (record, false));
        changed.chain(gone.map(|record| (record, true)))
    }

    fn group(&self, part: usize) -> &[Leaf] {
        let group = self.root[part / FAN].get(part % FAN);
        group.map_or(&[], |group| group)
    }

    /// Every record, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        let groups = self.root.iter().flat_map(|branch| branch.iter());
        groups.flat_map(|group| records(group))
    }
}

/// Records of a group, cut into so many leaves.
fn group_from(records: impl Iterator<Item = (u64, Record)>, leaves: usize) -> Group {
    let mut cut: Vec<([u8; PRINTS], Vec<Record>)> = Vec::new();
    cut.resize_with(leaves, Default::default);
    let mut is_empty = true;
    for (hash, record) in records {
        let (prints, records) = &mut cut[leaf_of(hash, leaves)];
        if let Some(place) = prints.get_mut(records.len()) {
            *place = print_of(hash);
        }
        records.push(record);
        is_empty = false;
    }
    if is_empty {
        return Group::default();
    }
    cut.into_iter()
        .map(|(prints, records)| Leaf {
            prints,
            records: records.into(),
        })
        .collect()
}

/// Records of leaves that another group does not have at the same place: all of them but those that a change copied are
/// shared.
fn unshared<'t>(group: &'t [Leaf], other: &'t [Leaf]) -> impl Iterator<Item = &'t Record> {
    let paired = group.len() == other.len();
    let leaves = match std::ptr::eq(group, other) {
        true => &[],
        false => group,
    };
    let leaves = leaves
        .iter()
        .enumerate()
        .filter(move |(at, leaf)| !paired || !Arc::ptr_eq(&leaf.records, &other[*at].records));
    leaves.flat_map(|(_, leaf)| leaf.records.iter())
}

fn records(group: &[Leaf]) -> impl Iterator<Item = &Record> {
    group.iter().flat_map(|leaf| leaf.records.iter())
}

fn branch_of(hash: u64) -> usize {
    (hash >> (u64::BITS - FAN_BITS)) as usize
}

fn group_of(hash: u64) -> usize {
    (hash >> (u64::BITS - 2 * FAN_BITS)) as usize % FAN
}

/// Which of so many leaves; the first, of none.
fn leaf_of(hash: u64, leaves: usize) -> usize {
    let bits = leaves.trailing_zeros() % u64::BITS;
    (hash << (2 * FAN_BITS)).unbounded_shr(u64::BITS - bits) as usize
}

fn print_of(hash: u64) -> u8 {
    hash as u8
}

#[cfg(test)]
mod tests;
