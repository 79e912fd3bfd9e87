//! Tables against a plain map.

use std::collections::BTreeMap;

use super::*;
use crate::store::{Deadline, Entry, Revision, Value};

fn record(key: &str, value: &str, revision: u64) -> Record {
    let entry = Entry {
        value: Value::Bytes(value.as_bytes().into()),
        revision: Revision(revision),
        deadline: None,
    };
    Record::new(key, entry)
}

/// Short ones, some with the same beginning, and some that do not lie in their record.
fn key(number: u64) -> String {
    match number % 7 {
        0 => format!("{number}"),
        1 => format!("agent-{number:08}"),
        2 => format!("{number:038}"),
        3 => format!("{number:039}"),
        4 => format!("{number:01024}"),
        _ => format!("{number:036}"),
    }
}

/// Numbers that are the same at every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

type Model = BTreeMap<String, String>;

fn assert_same(table: &Table, model: &Model) {
    let mut found: Vec<_> = table
        .iter()
        .map(|record| (record.key(), value(record)))
        .collect();
    found.sort();
    let expected: Vec<_> = model
        .iter()
        .map(|(key, value)| (&**key, value.clone()))
        .collect();
    assert_eq!(found, expected);
    assert_in_order(table, model);
    let bytes: usize = model
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    assert_eq!(
        (table.len(), table.bytes()),
        (model.len() as u64, bytes as u64)
    );
    for (key, expected) in model {
        let record = table.get(key).expect("it is in the model");
        assert_eq!((record.key(), &value(record)), (&**key, expected));
    }
}

/// That the keys come in order: all of them, and some from where any of them, and what is not there, begins.
fn assert_in_order(table: &Table, model: &Model) {
    let all = table.range(Bound::Unbounded).map(Record::key);
    assert!(all.eq(model.keys()));
    let some = model.keys().step_by(1 + model.len() / 500);
    let beside = some.clone().map(|key| format!("{key}!"));
    for start in some.cloned().chain(beside).chain([String::new()]) {
        for from in [Bound::Included(&*start), Bound::Excluded(&*start)] {
            let found = table.range(from).map(Record::key).take(3);
            let expected = model.range::<str, _>((from, Bound::Unbounded)).take(3);
            assert!(found.eq(expected.map(|(key, _)| key)), "from {from:?}");
        }
    }
}

fn value(record: &Record) -> String {
    String::from_utf8(record.entry.value.to_bytes().into_owned()).expect("the test wrote text")
}

/// Keys that are another in both.
fn changed(before: &Model, after: &Model) -> Vec<String> {
    let keys = before.keys().chain(after.keys());
    let changed = keys.filter(|key| before.get(*key) != after.get(*key));
    let mut changed: Vec<_> = changed.cloned().collect();
    changed.sort();
    changed.dedup();
    changed
}

fn assert_changed(before: &(Table, Model), after: &(Table, Model)) {
    let mut found: Vec<_> = after
        .0
        .changed_since(&before.0)
        .map(str::to_owned)
        .collect();
    found.sort();
    assert_eq!(found, changed(&before.1, &after.1));
}

#[test]
fn a_table_is_what_was_put_and_removed_and_older_ones_stay_as_they_were() {
    let mut numbers = Numbers(88_172_645_463_325_252);
    let (mut table, mut model) = (Table::new(), Model::new());
    let mut kept = vec![(table.clone(), model.clone())];
    for (step, keys, removals) in [(0, 40, 40), (1, 9_000, 10), (2, 9_000, 50), (3, 500, 40)] {
        for change in 0..8_000 {
            let key = key(numbers.below(keys));
            if numbers.below(100) < removals {
                table.remove(&key);
                model.remove(&key);
            } else {
                let value = numbers.below(3).to_string();
                table.insert(&record(&key, &value, change));
                model.insert(key, value);
            }
        }
        assert_same(&table, &model);
        kept.push((table.clone(), model.clone()));
        assert_eq!(kept.len(), step + 2);
    }
    for key in model.keys() {
        table.remove(key);
    }
    kept.push((table, Model::new()));
    for (table, model) in &kept {
        assert_same(table, model);
    }
    for before in &kept {
        for after in &kept {
            assert_changed(before, after);
        }
    }
    let (emptied, _) = kept.last().expect("it was added");
    assert!(emptied.root.iter().all(|branch| branch.is_empty()));
    assert_eq!(emptied.range(Bound::Unbounded).count(), 0);
}

#[test]
fn a_loaded_table_is_the_same_as_one_that_was_filled() {
    // Of the last, some leaves are doubled.
    for keys in [0, 1, 40, 100_000] {
        let model: Model = (0..keys)
            .map(|number| (key(number), number.to_string()))
            .collect();
        let records = model.iter().map(|(key, value)| record(key, value, 1));
        let loaded = Table::load(records.clone());
        assert_same(&loaded, &model);
        let mut filled = Table::new();
        records.for_each(|record| filled.insert(&record));
        assert_same(&filled, &model);
        for table in [&loaded, &filled] {
            let groups = table.root.iter().flat_map(|branch| branch.iter());
            let leaves = groups.flat_map(|group| group.iter());
            let most = leaves.map(|leaf| leaf.records.len()).max();
            assert!(most <= Some(PRINTS), "{most:?} are looked through");
        }
        // They hash in ways of their own, and are compared all the same.
        assert_changed(&(loaded, model.clone()), &(filled, model));
    }
}

#[test]
fn it_is_known_how_many_end() {
    let ending = |key: &str| {
        let mut record = record(key, "", 1);
        record.entry.deadline = Deadline::from_millis(7);
        record
    };
    let records = [ending("a"), ending("b"), record("c", "", 1)];
    let mut table = Table::load(records.into_iter());
    assert_eq!(table.ending(), 2);
    for (put, expected) in [(record("a", "", 2), 1), (ending("a"), 2), (ending("a"), 2)] {
        table.insert(&put);
        assert_eq!(table.ending(), expected);
    }
    for (key, expected) in [("c", 2), ("b", 1), ("b", 1), ("a", 0)] {
        table.remove(key);
        assert_eq!(table.ending(), expected, "without {key}");
    }
}

#[test]
fn a_leaf_finds_what_has_the_same_print_or_none() {
    let mut leaf = Leaf::default();
    let all = PRINTS as u64 + 9;
    // One that is one above another is what the search may take for it.
    let print = |number: u64| [7, 8, 7, 0][number as usize % 4];
    for number in 0..all {
        leaf.add(record(&key(number), "", number), print(number));
    }
    let (even, odd) = (
        (0..all).filter(|it| it % 2 == 0),
        (0..all).filter(|it| it % 2 == 1),
    );
    for gone in even.chain(odd.rev()) {
        let place = |number| {
            leaf.records
                .iter()
                .position(|record| record.key() == key(number))
        };
        for number in 0..all {
            let found = leaf.find(key(number).as_bytes(), print(number));
            assert_eq!(found, place(number), "{number} before {gone} is gone");
        }
        assert_eq!(leaf.find(b"none", 7), None);
        let at = place(gone).expect("it goes once");
        leaf.remove(at, |record| print(record.entry.revision.0));
    }
    assert!(leaf.records.is_empty());
}

#[test]
fn what_is_put_all_at_once_is_as_if_it_was_put_one_by_one() {
    let mut numbers = Numbers(2_463_534_242);
    let (mut table, mut model) = (Table::new(), Model::new());
    let mut kept = vec![(table.clone(), model.clone())];
    for (step, keys, count) in [
        (0, 50_000, 20),
        (1, 50_000, 30_000),
        (2, 50_000, 60_000),
        (3, 50_000, 300),
        (4, 200_000, 90_000),
    ] {
        let put: BTreeMap<String, String> = (0..count)
            .map(|_| (key(numbers.below(keys)), numbers.below(4).to_string()))
            .collect();
        let records: Vec<Record> = put
            .iter()
            .map(|(key, value)| record(key, value, step))
            .collect();
        table.insert_all(&records.iter().collect::<Vec<_>>());
        model.extend(put);
        assert_same(&table, &model);
        kept.push((table.clone(), model.clone()));
    }
    // What is removed and put after that finds its places.
    for key in model.keys().step_by(3) {
        table.remove(key);
    }
    let mut nth = 0;
    model.retain(|_, _| {
        nth += 1;
        nth % 3 != 1
    });
    assert_same(&table, &model);
    kept.push((table.clone(), model.clone()));
    // The same at once, and of keys that are not there.
    let gone: Vec<String> = model.keys().step_by(2).cloned().collect();
    let keys = gone.iter().rev().map(|key| key.as_bytes());
    table.remove_all(keys.chain([&b"none"[..]]));
    gone.iter().for_each(|key| drop(model.remove(key)));
    assert_same(&table, &model);
    kept.push((table, model));
    for (before, after) in kept.iter().zip(&kept[1..]) {
        assert_same(&before.0, &before.1);
        assert_changed(before, after);
    }
}
