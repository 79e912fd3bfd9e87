//! Many records of a table at once: faster than inserting them one by one, and loaded without having them twice.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::{
    Branch, FAN, Group, LEAVES_MAX, PARTS, Table, branch_of, group_from, group_of, keys, records,
};
use crate::store::record::Record;

/// Records per leaf that is aimed at.
const LEAF_RECORDS: usize = 16;
/// From as many records on, those of a part are put into it together. Fewer are one or two for each part.
const MANY: usize = 8 * PARTS;
/// From as many records on, a group is built anew instead of taking them one by one.
const ANEW: usize = 4;
/// Of more records than this, the table is built on a thread of its own.
const ALONE_MAX: usize = 10_000;
/// Records that go to that thread together, and how many of these may wait for it.
const PARCEL: usize = 1_024;
const PARCELS_WAITING: usize = 16;

impl Table {
    /// A table of records with distinct keys.
    pub(in crate::store) fn load(records: impl Iterator<Item = Record>) -> Self {
        Loading::new(Table::new(), records.size_hint().0).filled(records)
    }

    /// One that is not listed, whose parts have the keys that they have in this one: the two are compared faster.
    pub(in crate::store) fn load_like(&self, records: impl Iterator<Item = Record>) -> Self {
        let like = Table {
            hasher: self.hasher.clone(),
            ..Table::unlisted()
        };
        Loading::new(like, records.size_hint().0).filled(records)
    }

    /// A table of what `read` adds, some `expected` records, built beside it: reading takes as long as building.
    pub(in crate::store) fn load_beside<R>(
        expected: usize,
        read: impl FnOnce(&mut dyn FnMut(Record)) -> R,
    ) -> (Self, R) {
        let mut loading = Loading::new(Table::new(), expected);
        if expected <= ALONE_MAX {
            let read = read(&mut |record| loading.add(record));
            return (loading.finish(), read);
        }
        thread::scope(|scope| {
            let (sender, parcels) = sync_channel::<Vec<Record>>(PARCELS_WAITING);
            let building = scope.spawn(move || {
                let records = parcels.into_iter().flatten();
                records.for_each(|record| loading.add(record));
                loading.finish()
            });
            let mut parcel = Vec::with_capacity(PARCEL);
            // It ends early by a panic only, which is told when it is joined.
            let send = |parcel| drop(sender.send(parcel));
            let read = read(&mut |record| {
                parcel.push(record);
                if parcel.len() == PARCEL {
                    send(std::mem::replace(&mut parcel, Vec::with_capacity(PARCEL)));
                }
            });
            send(parcel);
            drop(sender);
            let table = building.join();
            let table = table.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (table, read)
        })
    }

    /// Puts records of distinct keys in the places of what these had.
    pub(in crate::store) fn insert_all(&mut self, put: &[&Record]) {
        let mut new: Vec<(&[u8], bool)> = Vec::new();
        if put.len() < MANY {
            for record in put {
                let key = record.key_bytes();
                if self.insert_hashed(self.hasher.hash_one(key), record) {
                    new.push((key, true));
                }
            }
        } else {
            let mut parts: Vec<Vec<(u64, &Record)>> = vec![Vec::new(); PARTS];
            for record in put {
                let key = record.key_bytes();
                let hash = self.hasher.hash_one(key);
                parts[branch_of(hash) * FAN + group_of(hash)].push((hash, record));
                if self.len == 0 || self.find(hash, key).is_none() {
                    new.push((key, true));
                }
            }
            self.put_in_parts(parts);
        }
        self.change_keys(new);
    }

    /// Removes what each of these keys has, if anything.
    pub(in crate::store) fn remove_all<'k>(&mut self, keys: impl Iterator<Item = &'k [u8]>) {
        let gone = keys.filter(|key| self.remove_hashed(key));
        let gone = gone.map(|key| (key, false)).collect();
        self.change_keys(gone);
    }

    fn change_keys(&mut self, mut changes: Vec<(&[u8], bool)>) {
        if let Some(keys) = &mut self.keys {
            changes.sort_unstable();
            keys.change(&changes);
        }
    }

    fn put_in_parts(&mut self, parts: Vec<Vec<(u64, &Record)>>) {
        for (part, put) in parts.into_iter().enumerate() {
            if put.len() < ANEW {
                for (hash, record) in put {
                    self.insert_hashed(hash, record);
                }
            } else {
                self.put_in_group(part, put);
            }
        }
    }

    fn put_in_group(&mut self, part: usize, mut put: Vec<(u64, &Record)>) {
        put.sort_unstable_by_key(|(hash, _)| *hash);
        let is_put = |hash, key| {
            let first = put.partition_point(|(other, _)| *other < hash);
            let alike = put[first..].iter().take_while(|(other, _)| *other == hash);
            alike
                .map(|(_, record)| record.key_bytes())
                .any(|other| other == key)
        };
        let branch = &mut Arc::make_mut(&mut self.root)[part / FAN];
        if branch.is_empty() {
            *branch = vec![Group::default(); FAN].into();
        }
        let group = &mut Arc::make_mut(branch)[part % FAN];
        let mut all: Vec<(u64, Record)> = Vec::new();
        for record in records(group) {
            let hash = self.hasher.hash_one(record.key_bytes());
            if is_put(hash, record.key_bytes()) {
                self.len -= 1;
                self.bytes -= record.bytes();
                self.ending -= record.ending();
            } else {
                all.push((hash, record.clone()));
            }
        }
        for &(hash, record) in &put {
            self.len += 1;
            self.bytes += record.bytes();
            self.ending += record.ending();
            all.push((hash, record.clone()));
        }
        let leaves = leaves_for(all.len()).max(group.len());
        *group = group_from(all.into_iter(), leaves);
    }
}

/// Leaves of a group of so many records.
fn leaves_for(records: usize) -> usize {
    let leaves = records.div_ceil(LEAF_RECORDS).next_power_of_two();
    leaves.min(LEAVES_MAX)
}

/// Records of a table that is being loaded, by the branch they belong to.
struct Loading {
    branches: Vec<Vec<(u64, Record)>>,
    /// Their keys, as long as these come in order.
    keys: Option<keys::Writer>,
    table: Table,
}

impl Loading {
    /// For so many, if that is known, into a table that is empty.
    fn new(table: Table, expected: usize) -> Self {
        // They are not spread quite evenly.
        let each = expected / FAN + expected / FAN / 8;
        Self {
            branches: (0..FAN).map(|_| Vec::with_capacity(each)).collect(),
            keys: table.keys.is_some().then(keys::Writer::new),
            table,
        }
    }

    fn filled(mut self, records: impl Iterator<Item = Record>) -> Table {
        records.for_each(|record| self.add(record));
        self.finish()
    }

    /// Adds a record, of a key that has not come before.
    fn add(&mut self, record: Record) {
        let table = &mut self.table;
        table.len += 1;
        table.bytes += record.bytes();
        table.ending += record.ending();
        let key = record.key_bytes();
        match &mut self.keys {
            Some(keys) if keys.takes(key) => keys.push(key),
            keys => *keys = None,
        }
        let hash = table.hasher.hash_one(record.key_bytes());
        self.branches[branch_of(hash)].push((hash, record));
    }

    fn finish(self) -> Table {
        let Self {
            branches,
            keys,
            mut table,
        } = self;
        // Each is freed once it is built: what is loaded is not there twice.
        table.root = branches.into_iter().map(branch_from).collect();
        if table.keys.is_none() {
            return table;
        }
        let keys = keys.unwrap_or_else(|| {
            let mut unordered: Vec<&[u8]> = table.iter().map(Record::key_bytes).collect();
            unordered.sort_unstable();
            let mut keys = keys::Writer::new();
            unordered.into_iter().for_each(|key| keys.push(key));
            keys
        });
        table.keys = Some(keys.finish());
        table
    }
}

fn branch_from(mut records: Vec<(u64, Record)>) -> Branch {
    if records.is_empty() {
        return Branch::default();
    }
    records.sort_unstable_by_key(|(hash, _)| *hash);
    let up_to = |group| records.partition_point(|(hash, _)| group_of(*hash) <= group);
    let ends: Vec<usize> = (0..FAN).map(up_to).collect();
    let (mut rest, mut begin) = (records.into_iter(), 0);
    ends.into_iter()
        .map(|end| {
            let len = end - std::mem::replace(&mut begin, end);
            group_from(rest.by_ref().take(len), leaves_for(len))
        })
        .collect()
}
