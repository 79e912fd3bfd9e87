//! Tables of many records at once: faster than inserting them one by one, and without having them twice.

use std::sync::mpsc::sync_channel;
use std::thread;

use super::{Branch, FAN, LEAVES_MAX, Table, branch_of, group_from, group_of};
use crate::store::record::Record;

/// Records per leaf that is aimed at.
const LEAF_RECORDS: usize = 16;
/// Of more records than this, the table is built on a thread of its own.
const ALONE_MAX: usize = 10_000;
/// Records that go to that thread together, and how many of these may wait for it.
const PARCEL: usize = 1_024;
const PARCELS_WAITING: usize = 16;

impl Table {
    /// A table of records with distinct keys.
    pub(in crate::store) fn load(records: impl Iterator<Item = Record>) -> Self {
        let mut loading = Loading::new(records.size_hint().0);
        records.for_each(|record| loading.add(record));
        loading.finish()
    }

    /// A table of what `read` adds, some `expected` records, built beside it: reading takes as long as building.
    pub(in crate::store) fn load_beside<R>(
        expected: usize,
        read: impl FnOnce(&mut dyn FnMut(Record)) -> R,
    ) -> (Self, R) {
        let mut loading = Loading::new(expected);
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
}

/// Records of a table that is being loaded, by the branch they belong to.
struct Loading {
    branches: Vec<Vec<(u64, Record)>>,
    table: Table,
}

impl Loading {
    /// For so many, if that is known.
    fn new(expected: usize) -> Self {
        // They are not spread quite evenly.
        let each = expected / FAN + expected / FAN / 8;
        Self {
            branches: (0..FAN).map(|_| Vec::with_capacity(each)).collect(),
            table: Table::new(),
        }
    }

    /// Adds a record, of a key that has not come before.
    fn add(&mut self, record: Record) {
        let table = &mut self.table;
        table.len += 1;
        table.bytes += record.bytes();
        table.ending += record.ending();
        let hash = table.hasher.hash_one(record.key_bytes());
        self.branches[branch_of(hash)].push((hash, record));
    }

    fn finish(self) -> Table {
        let Self {
            branches,
            mut table,
        } = self;
        // Each is freed once it is built: what is loaded is not there twice.
        table.root = branches.into_iter().map(branch_from).collect();
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
            let leaves = len.div_ceil(LEAF_RECORDS).next_power_of_two();
            group_from(rest.by_ref().take(len), leaves.min(LEAVES_MAX))
        })
        .collect()
}
