//! One suite for every backend: any sequence of batches, restarts and faults, against plain sorted maps.
//!
//! What is acknowledged is there, what is refused is not, revisions grow, and who watches sees every change once and in
//! order, also who begins again from an earlier place. A backend takes part with a [`Bed`] and a test at the end of this file.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::deadlines::until;
use super::*;
use crate::store::log::{Ending, Group};

mod beds;
mod model;
mod steps;

pub(in crate::store) use beds::Bed;
use beds::{InMemory, OnDisk};
use model::{Done, Event, Model};
use steps::{Batch, KEYS, key_of};
pub(in crate::store) use steps::{Step, steps};

const NAMES: [&str; 2] = ["a", "b"];
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store on its bed, beside the model of it.
struct Run<B> {
    bed: B,
    buckets: [BucketConfig; 2],
    store: Option<Store>,
    model: Model,
    watches: Vec<Watch>,
    /// How many events of the model each watch has seen, and how many there were when the store was opened.
    seen: [usize; 2],
    opened_at: [usize; 2],
    /// Whether a write was refused that may have reached the backend, which takes it back with the next or when it is closed.
    unsettled: bool,
}

impl<B: Bed> Run<B> {
    fn new(bed: B) -> Self {
        let kind = bed.kind();
        let mut run = Self {
            buckets: NAMES.map(|name| BucketConfig::new(name, kind, ValueKind::Bytes)),
            bed,
            store: None,
            model: Model::default(),
            watches: Vec::new(),
            seen: [0; 2],
            opened_at: [0; 2],
            unsettled: false,
        };
        run.open();
        run
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    fn ids(&self) -> [BucketId; 2] {
        NAMES.map(|name| id(self.store(), name))
    }

    fn open(&mut self) {
        if !self.bed.lasts() {
            self.model = Model::default();
        }
        (self.model.now, self.model.tick) = (self.bed.now(), self.bed.tick());
        self.model.touch_writes = !self.bed.is_exact();
        self.store = Some(self.bed.open(&self.buckets));
        if !self.bed.is_exact() {
            // It counts what others do, and forgets of a bucket all but its entries.
            let snapshot = self.store().snapshot();
            for (id, known) in self.ids().into_iter().zip(&mut self.model.bucket_revisions) {
                *known = snapshot.bucket(id).unwrap().revision().0;
            }
        }
        let places: Vec<_> = self
            .watches
            .drain(..)
            .map(|watch| watch.position())
            .collect();
        for (bucket, id) in self.ids().into_iter().enumerate() {
            // Somebody who watched goes on where he was, if that is known to the store.
            let goes_on = self.bed.lasts() && self.bed.is_exact();
            let since = places.get(bucket).filter(|_| goes_on);
            let watch = self.store().watch(id, since.copied());
            self.watches.push(watch.expect("all of it was seen before"));
            self.seen[bucket] = self.model.events[bucket].len();
        }
        self.opened_at = self.seen;
        self.unsettled = false;
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Commit(batch) => self.commit(batch)?,
            Step::CommitFailing(batch) => {
                if self.bed.fail(true) {
                    self.commit_failing(batch)?;
                    self.bed.fail(false);
                }
            }
            Step::Advance(ticks) if self.bed.is_exact() => self.advance(*ticks),
            // What ends by its clock has tests of its own.
            Step::Advance(_) => {}
            Step::Kill if !self.unsettled => {
                let store = self.store.take().expect("it is open");
                self.bed.kill(store);
                self.open();
            }
            Step::Reopen | Step::Kill => {
                self.store().close();
                self.store = None;
                self.open();
            }
            Step::Rewind(back) => self.rewind(usize::from(*back))?,
        }
        self.watched()?;
        self.agrees()
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), TestCaseError> {
        self.tell_ends_apart();
        let made = self.model.batch(batch, self.ids());
        match wait(self.store().commit(made)) {
            Ok(committed) => self.acknowledged(batch, &committed),
            Err(error) => self.refused(batch, &error),
        }
    }

    /// By a clock of its own, which rounds, what is put for as long later may end at the same time: nothing does that is put
    /// for longer.
    fn tell_ends_apart(&mut self) {
        if !self.bed.is_exact() {
            self.bed.advance(self.bed.tick() / 1000);
            self.model.now = self.bed.now();
        }
    }

    fn acknowledged(&mut self, batch: &Batch, done: &Committed) -> Result<(), TestCaseError> {
        let before = self.model.revision;
        let revision = done.revision.0;
        let expected = self.model.commit(batch, revision);
        prop_assert_eq!(Some(Done::of(done)), expected.as_ref().map(copied));
        let changed = expected.is_some_and(|done| done.is_change());
        match (changed, self.bed.is_exact()) {
            (true, true) => prop_assert_eq!(revision, before + 1),
            (true, false) => prop_assert!(revision > before),
            (false, true) => prop_assert_eq!(revision, before),
            (false, false) => prop_assert!(revision >= before),
        }
        let last = batch.writes.last().filter(|_| !batch.dry_run);
        if let Some(&(bucket, key, ..)) = last {
            let known = self.model.buckets[bucket].get(&key_of(key));
            prop_assert_eq!(done.entry, known.map(|known| Revision(known.revision)));
        }
        Ok(())
    }

    fn refused(&mut self, batch: &Batch, error: &CommitError) -> Result<(), TestCaseError> {
        let is_conflict = matches!(
            error,
            CommitError::Conflict { .. }
                | CommitError::BucketConflict { .. }
                | CommitError::Changed { .. }
        );
        prop_assert!(is_conflict, "{}", error);
        let expected = self.model.commit(batch, self.model.revision + 1);
        prop_assert_eq!(None, expected.as_ref().map(copied));
        Ok(())
    }

    /// What the backend would have to write is refused, and nothing else.
    fn commit_failing(&mut self, batch: &Batch) -> Result<(), TestCaseError> {
        self.tell_ends_apart();
        let made = self.model.batch(batch, self.ids());
        match wait(self.store().commit(made)) {
            Ok(committed) => {
                let done = Done::of(&committed);
                let writes = done.is_change() || done.touched > 0;
                // One that syncs later takes it, and is told later that the disk does not.
                prop_assert!(!writes || batch.dry_run || !self.bed.refuses());
                self.acknowledged(batch, &committed)
            }
            // Nothing can come through, so it was not applied.
            Err(CommitError::Unavailable(_) | CommitError::Unknown(_)) => {
                self.unsettled = true;
                Ok(())
            }
            Err(error) => self.refused(batch, &error),
        }
    }

    fn advance(&mut self, ticks: u8) {
        let millis = u64::from(ticks) * self.bed.tick();
        self.bed.advance(millis);
        self.model.now = self.bed.now();
        if self.model.ends_by(self.model.now) {
            let ids = self.ids();
            let mut ended = self.model.clone();
            ended.end(0);
            until(self.store(), |snapshot| {
                let len = |bucket: usize| snapshot.bucket(ids[bucket]).unwrap().len() as usize;
                (0..2).all(|bucket| len(bucket) == ended.buckets[bucket].len())
            });
            let revision = self.store().snapshot().revision().0;
            self.model.end(revision);
        }
    }

    /// Who watches has seen what changed since the last step, and no more.
    fn watched(&mut self) -> Result<(), TestCaseError> {
        for bucket in 0..2 {
            let new = &self.model.events[bucket][self.seen[bucket]..];
            for expected in new {
                prop_assert_eq!(&next(&mut self.watches[bucket]), expected);
            }
            prop_assert!(is_at_end(&mut self.watches[bucket]), "an event too many");
            self.seen[bucket] = self.model.events[bucket].len();
        }
        Ok(())
    }

    /// From an earlier place the same comes again.
    fn rewind(&mut self, back: usize) -> Result<(), TestCaseError> {
        for (bucket, id) in self.ids().into_iter().enumerate() {
            let events = &self.model.events[bucket];
            // From before the store was opened nothing is kept.
            let from = events
                .len()
                .saturating_sub(back)
                .max(self.opened_at[bucket]);
            if from == events.len() || from == self.opened_at[bucket] {
                continue;
            }
            let since = Position {
                revision: Revision(events[from - 1].0),
                life: self.watches[bucket].position().life,
            };
            let mut again = self.store().watch(id, Some(since)).expect("it is kept");
            for expected in &events[from..] {
                prop_assert_eq!(&next(&mut again), expected);
            }
            prop_assert!(is_at_end(&mut again));
        }
        Ok(())
    }

    fn agrees(&self) -> Result<(), TestCaseError> {
        let snapshot = self.store().snapshot();
        if self.bed.is_exact() {
            prop_assert_eq!(snapshot.revision().0, self.model.revision);
        }
        for (index, id) in self.ids().into_iter().enumerate() {
            let bucket = snapshot.bucket(id).unwrap();
            let known = &self.model.buckets[index];
            let expected: Vec<(String, String, u64)> = known
                .iter()
                .map(|(key, known)| (key.clone(), known.value.clone(), known.revision))
                .collect();
            prop_assert_eq!(contents(self.store(), id), expected.clone());
            prop_assert_eq!(bucket.revision().0, self.model.bucket_revisions[index]);
            prop_assert_eq!(bucket.len(), expected.len() as u64);
            let ending = known.values().filter(|known| known.deadline.is_some());
            prop_assert_eq!(bucket.table.ending(), ending.count() as u64);
            let bytes: usize = expected
                .iter()
                .map(|(key, value, _)| key.len() + value.len())
                .sum();
            prop_assert_eq!(bucket.bytes(), bytes as u64);
            for key in (0..KEYS).map(key_of) {
                let found = bucket
                    .get(&key)
                    .map(|entry| entry.deadline.map(Deadline::millis));
                let expected = known.get(&key).map(|known| known.deadline);
                match self.bed.is_exact() {
                    true => prop_assert_eq!(found, expected),
                    false => {
                        let ends = |it: Option<Option<u64>>| it.map(|end| end.is_some());
                        prop_assert_eq!(ends(found), ends(expected));
                    }
                }
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
}

fn copied(done: &Done) -> Done {
    Done { ..*done }
}

fn next(watch: &mut Watch) -> Event {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().unwrap();
    let within = async { tokio::time::timeout(PATIENCE, watch.next()).await };
    let group = runtime
        .block_on(within)
        .expect("it comes")
        .expect("it goes on");
    event(&group)
}

fn event(group: &Group) -> Event {
    let changes = group.changes().map(|(key, change)| {
        let value = change.map(|entry| entry.value.text().unwrap().into_owned());
        (key.to_owned(), value)
    });
    (group.revision.0, changes.collect::<BTreeMap<_, _>>())
}

/// Whether there is nothing more now.
fn is_at_end(watch: &mut Watch) -> bool {
    let waker = std::task::Waker::noop();
    let mut context = std::task::Context::from_waker(waker);
    let next = std::pin::pin!(watch.next());
    next.poll(&mut context).is_pending()
}

pub(in crate::store) fn conforms(bed: impl Bed, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut run = Run::new(bed);
    steps.iter().try_for_each(|step| run.step(step))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_conforms(steps in steps()) {
        conforms(InMemory::new(), &steps)?;
    }

    #[test]
    fn embedded_conforms(steps in steps()) {
        conforms(OnDisk::new(SyncPolicy::Always), &steps)?;
    }

    #[test]
    fn embedded_conforms_when_it_syncs_later(steps in steps()) {
        conforms(OnDisk::new(SyncPolicy::Interval(Duration::from_millis(2))), &steps)?;
    }
}
