//! Any sequence of batches and restarts against plain sorted maps.

use std::collections::BTreeMap;

use std::time::Duration;

use proptest::prelude::*;

use super::deadlines::{Hand, until};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Commit {
        writes: Vec<(usize, u8, ModelAction, ModelExpect)>,
        replace: Vec<usize>,
        dry_run: bool,
    },
    /// So many milliseconds go by.
    Advance(u64),
    Reopen,
}

/// With times to live in tenths of a second.
#[derive(Debug, Clone, Copy)]
enum ModelAction {
    Put(u8, Option<u8>),
    Delete,
    Touch(Option<u8>),
    Increment(i8, Option<u8>),
}

impl ModelAction {
    fn action(self) -> Action {
        let ttl = |tenths: Option<u8>| tenths.map(|it| Duration::from_millis(u64::from(it) * 100));
        match self {
            Self::Put(value, tenths) => Action::Put {
                value: value.to_string().into_bytes().into(),
                ttl: ttl(tenths),
            },
            Self::Delete => Action::Delete,
            Self::Touch(tenths) => Action::Touch { ttl: ttl(tenths) },
            Self::Increment(by, tenths) => Action::Increment {
                by: by.into(),
                ttl: ttl(tenths),
            },
        }
    }
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
    let ttl = || proptest::option::weighted(0.3, 1..4_u8);
    let action = prop_oneof![
        6 => (0..3_u8, ttl()).prop_map(|(value, ttl)| ModelAction::Put(value, ttl)),
        3 => Just(ModelAction::Delete),
        1 => ttl().prop_map(ModelAction::Touch),
        2 => (-2..3_i8, ttl()).prop_map(|(by, ttl)| ModelAction::Increment(by, ttl)),
    ];
    let write = (0..2_usize, 0..12_u8, action, expect);
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
    prop_oneof![12 => commit, 1 => Just(Step::Reopen), 2 => (1..150_u64).prop_map(Step::Advance)]
}

/// What the store must be, written as plainly as can be.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    revision: u64,
    buckets: [BTreeMap<String, ModelEntry>; 2],
    bucket_revisions: [u64; 2],
    now: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct ModelEntry {
    value: String,
    revision: u64,
    deadline: Option<u64>,
}

/// Of a batch: the revision, then entries created, updated, touched, deleted and unchanged.
type Done = (u64, u64, u64, u64, u64, u64);

impl Model {
    /// What came of it; none for a conflict.
    fn commit(
        &mut self,
        writes: &[(usize, String, ModelAction, Expect)],
        replace: &[usize],
        dry_run: bool,
    ) -> Option<Done> {
        for (bucket, key, _, expect) in writes {
            let found = self.buckets[*bucket].get(key).map(|entry| entry.revision);
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
        let ends = |tenths: Option<u8>| tenths.map(|it| before.now + u64::from(it) * 100);
        for (bucket, key, action, _) in writes {
            let known = self.buckets[*bucket].get(key).cloned();
            let (value, deadline) = match (*action, known) {
                (ModelAction::Put(value, ttl), _) => (value.to_string(), ends(ttl)),
                (ModelAction::Delete, _) => {
                    self.buckets[*bucket].remove(key);
                    continue;
                }
                (ModelAction::Touch(ttl), Some(known)) => (known.value, ends(ttl)),
                (ModelAction::Touch(_), None) => {
                    *self = before;
                    return None;
                }
                (ModelAction::Increment(by, _), Some(known)) => {
                    let sum = known.value.parse::<i64>().unwrap() + i64::from(by);
                    (sum.to_string(), known.deadline)
                }
                (ModelAction::Increment(by, ttl), None) => (by.to_string(), ends(ttl)),
            };
            let entry = ModelEntry {
                value,
                revision,
                deadline,
            };
            self.buckets[*bucket].insert(key.clone(), entry);
        }
        let (mut created, mut updated, mut touched) = (0, 0, 0);
        let (mut deleted, mut unchanged) = (0, 0);
        for bucket in 0..2 {
            let mut changed = false;
            let old = &before.buckets[bucket];
            for (key, entry) in &mut self.buckets[bucket] {
                match old.get(key) {
                    Some(was) if was.value == entry.value => {
                        entry.revision = was.revision;
                        touched += u64::from(was.deadline != entry.deadline);
                    }
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
                    let content = |entry: &ModelEntry| (entry.value.clone(), entry.deadline);
                    old.get(*key).map(content) == self.buckets[bucket].get(*key).map(content)
                })
                .count() as u64;
        }
        let result = (self.revision, created, updated, touched, deleted, unchanged);
        if dry_run {
            *self = before;
        }
        Some(result)
    }

    /// Time goes by: what has ended goes, under one revision.
    fn advance(&mut self, millis: u64) {
        self.now += millis;
        let (now, revision) = (self.now, self.revision + 1);
        for (bucket, bucket_revision) in self.buckets.iter_mut().zip(&mut self.bucket_revisions) {
            let there = bucket.len();
            bucket.retain(|_, entry| entry.deadline.is_none_or(|deadline| deadline > now));
            if bucket.len() < there {
                (self.revision, *bucket_revision) = (revision, revision);
            }
        }
    }
}

fn agree(store: &Store, model: &Model) -> Result<(), TestCaseError> {
    let snapshot = store.snapshot();
    prop_assert_eq!(snapshot.revision().0, model.revision);
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        let bucket = snapshot.bucket(snapshot.bucket_id(name).unwrap()).unwrap();
        let expected: Vec<(String, String, u64)> = model.buckets[index]
            .iter()
            .map(|(key, entry)| (key.clone(), entry.value.clone(), entry.revision))
            .collect();
        prop_assert_eq!(
            contents(store, snapshot.bucket_id(name).unwrap()),
            expected.clone()
        );
        prop_assert_eq!(bucket.revision().0, model.bucket_revisions[index]);
        prop_assert_eq!(bucket.len(), expected.len() as u64);
        let ending = model.buckets[index]
            .values()
            .filter(|entry| entry.deadline.is_some());
        prop_assert_eq!(bucket.table.ending(), ending.count() as u64);
        let bytes: usize = expected
            .iter()
            .map(|(key, value, _)| key.len() + value.len())
            .sum();
        prop_assert_eq!(bucket.bytes(), bytes as u64);
        for key in 0..12 {
            let key = model_key(key);
            let found = bucket.get(&key).map(|entry| {
                let deadline = entry.deadline.map(Deadline::millis);
                (entry.revision.0, deadline)
            });
            let expected = model.buckets[index].get(&key);
            prop_assert_eq!(
                found,
                expected.map(|entry| (entry.revision, entry.deadline))
            );
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
    let hand = Hand::new();
    let open = || {
        let backends = Backends::new(dir.path());
        Store::with_backends(&buckets, backends, hand.clock()).unwrap()
    };
    let empty = || Model {
        now: hand.now(),
        ..Model::default()
    };
    let mut store = open();
    let mut model = empty();
    for step in steps {
        match step {
            Step::Reopen => {
                store.close();
                if kind == BackendKind::Memory {
                    model = empty();
                }
                store = open();
            }
            Step::Advance(millis) => {
                hand.advance(*millis);
                model.advance(*millis);
                until(&store, |snapshot| snapshot.revision().0 >= model.revision);
            }
            Step::Commit {
                writes,
                replace,
                dry_run,
            } => {
                let writes: Vec<_> = writes
                    .iter()
                    .map(|&(bucket, key, action, expect)| {
                        let key = model_key(key);
                        let current = model.buckets[bucket]
                            .get(&key)
                            .map_or(77, |entry| entry.revision);
                        let expect = match expect {
                            ModelExpect::Any => Expect::Any,
                            ModelExpect::Absent => Expect::Absent,
                            ModelExpect::Present => Expect::Present,
                            ModelExpect::Current => Expect::At(Revision(current)),
                            ModelExpect::Other => Expect::At(Revision(current + 1)),
                        };
                        (bucket, key, action, expect)
                    })
                    .collect();
                let ids = ["a", "b"].map(|name| id(&store, name));
                let batch = WriteBatch {
                    writes: writes
                        .iter()
                        .map(|(bucket, key, action, expect)| {
                            let write = Write::new(ids[*bucket], key.as_str(), action.action());
                            write.expecting(*expect)
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
                            touched,
                            deleted,
                            unchanged,
                            ..
                        } = done;
                        let done = (revision.0, created, updated, touched, deleted, unchanged);
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
