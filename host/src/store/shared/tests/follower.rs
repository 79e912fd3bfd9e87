//! A proxy that follows: what it was told, and the state that makes.

use super::*;
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Bucket and key to value and revision.
pub(super) type State = BTreeMap<(String, String), (Vec<u8>, u64)>;
/// What one transaction did: bucket, key, value.
pub(super) type Changes = Vec<(String, String, Option<Vec<u8>>)>;

/// Follows from one revision.
pub(super) struct Follower {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
    pub(super) state: State,
    /// Every transaction it was told of, in order.
    pub(super) told: Vec<(u64, Changes)>,
    /// It has everything up to this one.
    pub(super) at: Revision,
    /// How often the engine was lost.
    pub(super) lost: Vec<String>,
    /// How often it was told that it has everything.
    pub(super) current: usize,
}

impl Follower {
    /// Loads, and follows from there.
    pub(super) async fn start<E: Engine>(engine: &E) -> Self {
        let loaded = load(engine).await;
        Self::from(engine, &buckets(), &loaded)
    }

    pub(super) fn from<E: Engine>(engine: &E, buckets: &[Box<str>], loaded: &Loaded) -> Self {
        let (sender, events) = mpsc::channel(16);
        let (engine, followed, from) = (engine.clone(), buckets.to_vec(), loaded.revision);
        let task = tokio::spawn(async move { engine.follow(followed, from, sender).await });
        Self {
            events,
            task,
            state: state(loaded),
            told: Vec::new(),
            at: from,
            lost: Vec::new(),
            current: 0,
        }
    }

    /// The next event, applied. False after a gap.
    pub(super) async fn next(&mut self) -> bool {
        let event = timeout(SOON, self.events.recv()).await;
        let event = event.expect("a follower is told something in time");
        match event.expect("the last event is a gap") {
            Event::Changes {
                revision, changes, ..
            } => {
                assert!(revision > self.at, "{revision} after {}", self.at);
                assert!(!changes.is_empty(), "nothing at {revision}");
                self.at = revision;
                let mut told: Changes = changes
                    .iter()
                    .map(|change| self.apply(change, revision))
                    .collect();
                told.sort();
                self.told.push((revision.0, told));
            }
            Event::Passed(revision) => {
                assert!(revision > self.at, "{revision} after {}", self.at);
                self.at = revision;
            }
            Event::Current(revision, _) => {
                assert!(revision >= self.at, "{revision} after {}", self.at);
                self.at = revision;
                self.current += 1;
            }
            Event::Lost(reason) => self.lost.push(reason),
            Event::Gap => return false,
        }
        true
    }

    fn apply(
        &mut self,
        change: &SharedChange,
        revision: Revision,
    ) -> (String, String, Option<Vec<u8>>) {
        let place = (change.bucket.to_string(), change.key.to_string());
        let value = change.after.as_ref().map(|entry| {
            assert_eq!(entry.revision, revision);
            assert_eq!((&entry.bucket, &entry.key), (&change.bucket, &change.key));
            entry.value.to_vec()
        });
        match &value {
            Some(value) => self
                .state
                .insert(place.clone(), (value.clone(), revision.0)),
            None => self.state.remove(&place),
        };
        (place.0, place.1, value)
    }

    /// Until it has everything up to this revision.
    pub(super) async fn reaches(&mut self, revision: Revision) {
        let reached = async {
            while self.at < revision {
                assert!(self.next().await, "a gap before {revision}");
            }
        };
        timeout(SOON, reached).await.expect("it gets there in time");
    }

    /// Until it is told of one more loss.
    pub(super) async fn is_lost(&mut self) {
        let before = self.lost.len();
        while self.lost.len() == before {
            assert!(self.next().await, "a gap instead of a loss");
        }
    }

    /// Until it is told that it has everything, once more.
    pub(super) async fn is_current(&mut self) {
        let before = self.current;
        while self.current == before {
            assert!(self.next().await, "a gap instead of everything");
        }
    }

    /// Until there is a gap, which ends it.
    pub(super) async fn has_gap(&mut self) {
        let gap = async { while self.next().await {} };
        timeout(SOON, gap).await.expect("there is a gap in time");
        let ended = timeout(SOON, &mut self.task).await;
        ended.expect("a gap ends it").expect("it does not panic");
    }

    pub(super) fn value(&self, bucket: &str, key: &str) -> Option<&[u8]> {
        let entry = self.state.get(&(bucket.to_owned(), key.to_owned()));
        entry.map(|(value, _)| &value[..])
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What was loaded, as a state.
pub(super) fn state(loaded: &Loaded) -> State {
    let entry = |entry: &SharedEntry| {
        let place = (entry.bucket.to_string(), entry.key.to_string());
        assert!(
            entry.revision <= loaded.revision,
            "{entry:?} is newer than {}",
            loaded.revision
        );
        (place, (entry.value.to_vec(), entry.revision.0))
    };
    let state: State = loaded.entries.iter().map(entry).collect();
    assert_eq!(state.len(), loaded.entries.len(), "a key is loaded twice");
    state
}
