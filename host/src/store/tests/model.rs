//! Any sequence of batches and restarts against plain sorted maps.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Commit {
        writes: Vec<(usize, u8, Option<u8>, ModelExpect)>,
        replace: Vec<usize>,
        dry_run: bool,
    },
    Reopen,
}

#[derive(Debug, Clone, Copy)]
enum ModelExpect {
    Any,
    Absent,
    Present,
    /// The entry's revision as it is.
    Current,
    Other,
}

fn step() -> impl Strategy<Value = Step> {
    let expect = prop_oneof![
        12 => Just(ModelExpect::Any),
        1 => Just(ModelExpect::Absent),
        1 => Just(ModelExpect::Present),
        1 => Just(ModelExpect::Current),
        1 => Just(ModelExpect::Other),
    ];
    let write = (
        0..2_usize,
        0..12_u8,
        proptest::option::weighted(0.7, 0..3_u8),
        expect,
    );
    let commit = (
        prop::collection::vec(write, 0..6),
        prop_oneof![4 => Just(vec![]), 1 => Just(vec![0]), 1 => Just(vec![1]), 1 => Just(vec![1, 0, 1])],
        prop::bool::weighted(0.15),
    )
        .prop_map(|(writes, replace, dry_run)| Step::Commit {
            writes,
            replace,
            dry_run,
        });
    prop_oneof![12 => commit, 1 => Just(Step::Reopen)]
}

/// What the store must be, written as plainly as can be.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    revision: u64,
    buckets: [BTreeMap<String, (String, u64)>; 2],
    bucket_revisions: [u64; 2],
}

impl Model {
    /// The revision, then entries created, updated, deleted and unchanged; none for a conflict.
    fn commit(
        &mut self,
        writes: &[(usize, String, Option<String>, Expect)],
        replace: &[usize],
        dry_run: bool,
    ) -> Option<(u64, u64, u64, u64, u64)> {
        for (bucket, key, _, expect) in writes {
            let found = self.buckets[*bucket]
                .get(key)
                .map(|(_, revision)| *revision);
            let holds = match expect {
                Expect::Any => true,
                Expect::Absent => found.is_none(),
                Expect::Present => found.is_some(),
                Expect::At(revision) => found == Some(revision.0),
            };
            if !holds {
                return None;
            }
        }
        let before = self.clone();
        let revision = self.revision + 1;
        for bucket in replace {
            self.buckets[*bucket].clear();
        }
        for (bucket, key, value, _) in writes {
            match value {
                Some(value) => self.buckets[*bucket].insert(key.clone(), (value.clone(), revision)),
                None => self.buckets[*bucket].remove(key),
            };
        }
        let (mut created, mut updated, mut deleted, mut unchanged) = (0, 0, 0, 0);
        for bucket in 0..2 {
            let mut changed = false;
            let old = &before.buckets[bucket];
            for (key, entry) in &mut self.buckets[bucket] {
                match old.get(key) {
                    Some(was) if was.0 == entry.0 => entry.1 = was.1,
                    Some(_) => (updated, changed) = (updated + 1, true),
                    None => (created, changed) = (created + 1, true),
                }
            }
            for key in old.keys() {
                if !self.buckets[bucket].contains_key(key) {
                    (deleted, changed) = (deleted + 1, true);
                }
            }
            if changed {
                self.revision = revision;
                self.bucket_revisions[bucket] = revision;
            }
            let named: std::collections::BTreeSet<&String> = writes
                .iter()
                .filter(|write| write.0 == bucket)
                .map(|write| &write.1)
                .collect();
            unchanged += named
                .into_iter()
                .filter(|key| {
                    old.get(*key).map(|entry| &entry.0)
                        == self.buckets[bucket].get(*key).map(|entry| &entry.0)
                })
                .count() as u64;
        }
        let result = (self.revision, created, updated, deleted, unchanged);
        if dry_run {
            *self = before;
        }
        Some(result)
    }
}

fn agree(store: &Store, model: &Model) -> Result<(), TestCaseError> {
    let snapshot = store.snapshot();
    prop_assert_eq!(snapshot.revision().0, model.revision);
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        let bucket = snapshot.bucket(snapshot.bucket_id(name).unwrap()).unwrap();
        let expected: Vec<(String, String, u64)> = model.buckets[index]
            .iter()
            .map(|(key, (value, revision))| (key.clone(), value.clone(), *revision))
            .collect();
        prop_assert_eq!(
            contents(store, snapshot.bucket_id(name).unwrap()),
            expected.clone()
        );
        prop_assert_eq!(bucket.revision().0, model.bucket_revisions[index]);
        prop_assert_eq!(bucket.len(), expected.len() as u64);
        let bytes: usize = expected
            .iter()
            .map(|(key, value, _)| key.len() + value.len())
            .sum();
        prop_assert_eq!(bucket.bytes(), bytes as u64);
        for key in 0..12 {
            let key = model_key(key);
            let found = bucket.get(&key).map(|entry| entry.revision.0);
            prop_assert_eq!(found, model.buckets[index].get(&key).map(|entry| entry.1));
        }
        let mut paged = Vec::new();
        let mut after: Option<Box<str>> = None;
        loop {
            let page = bucket.page("key", after.as_deref(), 2);
            prop_assert!(page.entries.len() <= 2);
            paged.extend(page.entries.into_iter().map(|(key, _)| key.into_string()));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let keys: Vec<String> = expected.into_iter().map(|(key, ..)| key).collect();
        prop_assert_eq!(paged, keys);
    }
    Ok(())
}

/// Some short enough to lie in their record, some not.
fn model_key(key: u8) -> String {
    format!("key{}", "x".repeat(usize::from(key) * 5))
}

fn follows_the_model(steps: &[Step], kind: BackendKind) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let buckets = ["a", "b"].map(|name| BucketConfig::new(name, kind, ValueKind::Bytes));
    let mut store = opened(&buckets, dir.path());
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Reopen => {
                store.close();
                if kind == BackendKind::Memory {
                    model = Model::default();
                }
                store = opened(&buckets, dir.path());
            }
            Step::Commit {
                writes,
                replace,
                dry_run,
            } => {
                let writes: Vec<_> = writes
                    .iter()
                    .map(|&(bucket, key, value, expect)| {
                        let key = model_key(key);
                        let current = model.buckets[bucket].get(&key).map_or(77, |entry| entry.1);
                        let expect = match expect {
                            ModelExpect::Any => Expect::Any,
                            ModelExpect::Absent => Expect::Absent,
                            ModelExpect::Present => Expect::Present,
                            ModelExpect::Current => Expect::At(Revision(current)),
                            ModelExpect::Other => Expect::At(Revision(current + 1)),
                        };
                        (bucket, key, value.map(|value| value.to_string()), expect)
                    })
                    .collect();
                let ids = ["a", "b"].map(|name| id(&store, name));
                let batch = WriteBatch {
                    writes: writes
                        .iter()
                        .map(|(bucket, key, value, expect)| Write {
                            expect: *expect,
                            ..write(ids[*bucket], key, value.as_deref())
                        })
                        .collect(),
                    replace: replace.iter().map(|bucket| ids[*bucket]).collect(),
                    dry_run: *dry_run,
                    ..WriteBatch::default()
                };
                let expected = model.commit(&writes, replace, *dry_run);
                match wait(store.commit(batch)) {
                    Ok(done) => {
                        let Committed {
                            revision,
                            created,
                            updated,
                            deleted,
                            unchanged,
                        } = done;
                        let done = (revision.0, created, updated, deleted, unchanged);
                        prop_assert_eq!(Some(done), expected);
                    }
                    Err(CommitError::Conflict { .. }) => prop_assert_eq!(None, expected),
                    Err(error) => prop_assert!(false, "{}", error),
                }
            }
        }
        agree(&store, &model)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_follows_the_model(steps in prop::collection::vec(step(), 1..40)) {
        follows_the_model(&steps, BackendKind::Memory)?;
    }

    #[test]
    fn embedded_follows_the_model_and_survives_reopening(steps in prop::collection::vec(step(), 1..40)) {
        follows_the_model(&steps, BackendKind::Embedded)?;
    }
}
