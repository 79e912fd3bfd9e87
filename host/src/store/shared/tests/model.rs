//! Any sequence of transactions of two proxies against plain maps.

use super::follower::{Changes, Follower, State, state};
use super::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;

const CASES: u32 = 16;
const KEYS: u8 = 6;

#[derive(Debug, Clone)]
struct Step {
    /// Which proxy does it.
    by: usize,
    conditions: Vec<ModelCondition>,
    writes: BTreeMap<(usize, u8), Option<u8>>,
    /// A third proxy loads before it, and follows from there.
    joins: bool,
}

#[derive(Debug, Clone)]
enum ModelCondition {
    /// The entry as it is.
    Current(usize, u8),
    Absent(usize, u8),
    /// A revision that nothing has.
    Wrong(usize, u8),
    /// Nothing of the bucket since so many transactions ago.
    Unchanged(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..2_usize, 0..KEYS);
    let condition = prop_oneof![
        4 => place().prop_map(|(bucket, key)| ModelCondition::Current(bucket, key)),
        2 => place().prop_map(|(bucket, key)| ModelCondition::Absent(bucket, key)),
        1 => place().prop_map(|(bucket, key)| ModelCondition::Wrong(bucket, key)),
        3 => (0..2_usize, 0..3_usize).prop_map(|(bucket, ago)| ModelCondition::Unchanged(bucket, ago)),
    ];
    (
        0..2_usize,
        prop::collection::vec(condition, 0..3),
        prop::collection::btree_map(place(), prop::option::weighted(0.7, 0..4_u8), 0..5),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(by, conditions, writes, joins)| Step {
            by,
            conditions,
            writes,
            joins,
        })
}

/// What the engine must be, written as plainly as can be.
#[derive(Default)]
struct Model {
    state: State,
    /// Every transaction that changed something.
    log: Vec<(u64, Changes)>,
    /// The revisions that were answered, the newest last.
    revisions: Vec<Revision>,
    /// For each bucket, the last revision that changed it, and the last that tried to: a delete of what is not there.
    changed: [u64; 2],
    touched: [u64; 2],
}

const NAMES: [&str; 2] = [ONE, TWO];

impl Model {
    fn revision_of(&self, bucket: usize, key: u8) -> Option<Revision> {
        let entry = self.state.get(&(NAMES[bucket].to_owned(), key.to_string()));
        entry.map(|(_, revision)| Revision(*revision))
    }

    fn since(&self, ago: usize) -> Revision {
        let newest = self.revisions.iter().rev();
        newest.copied().nth(ago).unwrap_or(self.revisions[0])
    }

    /// The condition as the engine is told, whether it must hold, and whether it may.
    fn condition(&self, condition: &ModelCondition) -> (Condition, bool, bool) {
        let entry = |bucket: usize, key: u8, revision: Option<Revision>| {
            let holds = self.revision_of(bucket, key) == revision;
            (at(NAMES[bucket], &key.to_string(), revision), holds, holds)
        };
        match *condition {
            ModelCondition::Current(bucket, key) => {
                entry(bucket, key, self.revision_of(bucket, key))
            }
            ModelCondition::Absent(bucket, key) => entry(bucket, key, None),
            ModelCondition::Wrong(bucket, key) => {
                entry(bucket, key, Some(Revision(u64::MAX >> 12)))
            }
            ModelCondition::Unchanged(bucket, ago) => {
                let since = self.since(ago);
                let told = Condition::Unchanged {
                    bucket: NAMES[bucket].into(),
                    since,
                };
                (
                    told,
                    self.touched[bucket] <= since.0,
                    self.changed[bucket] <= since.0,
                )
            }
        }
    }

    fn apply(&mut self, step: &Step, revision: Revision) {
        let mut changes = Changes::new();
        for ((bucket, key), value) in &step.writes {
            let place = (NAMES[*bucket].to_owned(), key.to_string());
            self.touched[*bucket] = revision.0;
            let value = value.map(|value| vec![value]);
            let changed = match &value {
                Some(value) => {
                    self.state
                        .insert(place.clone(), (value.clone(), revision.0));
                    true
                }
                None => self.state.remove(&place).is_some(),
            };
            if changed {
                self.changed[*bucket] = revision.0;
                changes.push((place.0, place.1, value));
            }
        }
        let newest = *self
            .revisions
            .last()
            .expect("the first is that of the load");
        if changes.is_empty() {
            assert!(revision >= newest, "{revision} after {newest}");
        } else {
            assert!(revision > newest, "{revision} after {newest}");
            changes.sort();
            self.log.push((revision.0, changes));
        }
        self.revisions.push(revision);
    }
}

/// Runs sequences on one server, each below a prefix of its own.
pub(super) async fn any_transactions_are_as_in_a_plain_model<S: Server>(server: S) {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    // The cases are made here and run by this runtime.
    let mut runner = TestRunner::new(config);
    let steps = prop::collection::vec(step(), 1..25);
    let cases = RefCell::new(Vec::new());
    let made = runner.run(&steps, |steps| {
        cases.borrow_mut().push(steps);
        Ok(())
    });
    made.expect("making cases does not fail");
    for (number, steps) in cases.into_inner().into_iter().enumerate() {
        eprintln!("case {number}: {steps:?}");
        case(&server, &format!("case{number}"), &steps).await;
    }
}

async fn case<S: Server>(server: &S, prefix: &str, steps: &[Step]) {
    let engines = [0, 1].map(|_| server.engine(&server.address(), prefix));
    let loaded = load(&engines[0]).await;
    assert_eq!(loaded.entries, []);
    let mut model = Model {
        revisions: vec![loaded.revision],
        ..Model::default()
    };
    let mut all = Follower::start(&engines[0]).await;
    let only_one = [ONE.into()];
    let loaded = engines[1].load(&only_one).await.expect("it can be loaded");
    let mut one = Follower::from(&engines[1], &only_one, &loaded);
    let mut joined = Vec::new();
    for step in steps {
        if step.joins {
            let engine = server.engine(&server.address(), prefix);
            let follower = Follower::start(&engine).await;
            assert_eq!(follower.state, model.state);
            joined.push((follower, model.log.len()));
        }
        let judged: Vec<_> = step
            .conditions
            .iter()
            .map(|condition| model.condition(condition))
            .collect();
        let must = judged.iter().all(|(_, must, _)| *must);
        let may = judged.iter().all(|(_, _, may)| *may);
        let conditions = judged
            .into_iter()
            .map(|(condition, ..)| condition)
            .collect();
        let writes = step
            .writes
            .iter()
            .map(|((bucket, key), value)| match value {
                Some(value) => set(NAMES[*bucket], &key.to_string(), [*value]),
                None => delete(NAMES[*bucket], &key.to_string()),
            });
        match commit(&engines[step.by], conditions, writes.collect()).await {
            Ok(Outcome::Applied(revision)) => {
                assert!(may, "applied against its conditions: {step:?}");
                model.apply(step, revision);
            }
            Ok(Outcome::Conflict(_)) => assert!(!must, "a conflict without a reason: {step:?}"),
            Err(error) => panic!("{error}: {step:?}"),
        }
    }
    let newest = *model.revisions.last().expect("it has the first");
    all.reaches(newest).await;
    assert_eq!(all.told, model.log);
    assert_eq!(all.state, model.state);
    one.reaches(newest).await;
    let in_one = model.log.iter().filter_map(|(revision, changes)| {
        let changes: Changes = changes
            .iter()
            .filter(|(bucket, ..)| bucket == ONE)
            .cloned()
            .collect();
        (!changes.is_empty()).then_some((*revision, changes))
    });
    let in_one: Vec<_> = in_one.collect();
    assert_eq!(one.told, in_one);
    for (mut follower, from) in joined {
        follower.reaches(newest).await;
        assert_eq!(follower.told, model.log[from..]);
        assert_eq!(follower.state, model.state);
    }
    assert_eq!(state(&load(&engines[1]).await), model.state);
}
