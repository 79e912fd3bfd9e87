//! Several processes on one backend: the parts of [`Backend`] that only a shared one needs, on one in memory.

use super::deadlines::{Hand, put_for, until};
use super::*;
use crate::store::backend::{Arrival, Arrived, Backend, Change, Loaded, Wake, WriteError};
use crate::store::table::Record;
use std::collections::BTreeMap;
use std::time::Duration;

/// What the processes share.
#[derive(Default)]
pub(super) struct Shared {
    entries: BTreeMap<(String, String), Entry>,
    revision: Revision,
    bucket_revisions: BTreeMap<String, Revision>,
    nodes: Vec<Inbox>,
}

/// What one process was not told yet.
#[derive(Default)]
struct Inbox {
    wake: Option<Wake>,
    changes: Vec<(Revision, Vec<Change>)>,
    /// Whether changes are lost instead of kept.
    lossy: bool,
    /// Whether some were.
    gap: bool,
}

struct Node {
    shared: Arc<Mutex<Shared>>,
    number: usize,
    buckets: Vec<BucketConfig>,
}

impl Shared {
    fn load(&self, bucket: &str) -> Loaded {
        let entries = self.entries.iter().filter(|((name, _), _)| name == bucket);
        Loaded {
            records: entries
                .map(|((_, key), entry)| Record::new(key, entry.clone()))
                .collect(),
            revision: self
                .bucket_revisions
                .get(bucket)
                .copied()
                .unwrap_or_default(),
        }
    }
}

impl Backend for Node {
    fn revision(&self) -> Revision {
        self.shared.lock().unwrap().revision
    }

    fn load(&mut self, bucket: &BucketConfig) -> Result<Loaded, OpenError> {
        self.buckets.push(bucket.clone());
        Ok(self.shared.lock().unwrap().load(&bucket.name))
    }

    fn write(&mut self, revision: Revision, changes: &[Change]) -> Result<(), WriteError> {
        let mut shared = self.shared.lock().unwrap();
        let inbox = &shared.nodes[self.number];
        if inbox.gap || !inbox.changes.is_empty() {
            return Err(WriteError::Behind);
        }
        assert!(revision >= shared.revision);
        shared.revision = revision;
        for change in changes {
            let key = String::from_utf8(change.key().to_vec()).unwrap();
            let at = (change.bucket.name.clone(), key);
            let entry = |record: &Option<Arc<Record>>| record.as_ref().map(|it| it.entry.clone());
            assert_eq!(
                shared.entries.get(&at).cloned(),
                entry(&change.before),
                "{at:?}"
            );
            match entry(&change.after) {
                Some(entry) => shared.entries.insert(at.clone(), entry),
                None => shared.entries.remove(&at),
            };
            shared.bucket_revisions.insert(at.0, change.bucket_after);
        }
        for (number, inbox) in shared.nodes.iter_mut().enumerate() {
            if number == self.number {
                continue;
            }
            match inbox.lossy {
                true => inbox.gap = true,
                false => inbox.changes.push((revision, changes.to_vec())),
            }
            if let Some(wake) = inbox.wake.as_ref().filter(|_| !inbox.lossy) {
                wake.wake();
            }
        }
        Ok(())
    }

    fn follow(&mut self, wake: Wake) {
        self.shared.lock().unwrap().nodes[self.number].wake = Some(wake);
    }

    fn arrived(&mut self) -> Vec<Arrival> {
        let mut shared = self.shared.lock().unwrap();
        let inbox = &mut shared.nodes[self.number];
        let changes = std::mem::take(&mut inbox.changes);
        if std::mem::take(&mut inbox.gap) {
            let buckets = self.buckets.iter().map(|bucket| &bucket.name);
            let content = buckets.map(|name| Arrival::Content {
                bucket: name.clone(),
                loaded: shared.load(name),
            });
            return content.collect();
        }
        let arrived = |change: Change| Arrived {
            bucket: change.bucket.name.clone(),
            key: String::from_utf8(change.key().to_vec()).unwrap().into(),
            entry: change.after.map(|record| record.entry.clone()),
            expired: change.expired,
        };
        let mut arrivals = Vec::new();
        for (_, group) in changes {
            // A group is several batches, each with a revision of its own.
            for change in group {
                let revision = change.bucket_after;
                match arrivals.last_mut() {
                    Some(Arrival::Changes {
                        revision: last,
                        entries,
                    }) if *last == revision => {
                        entries.push(arrived(change));
                    }
                    _ => arrivals.push(Arrival::Changes {
                        revision,
                        entries: vec![arrived(change)],
                    }),
                }
            }
        }
        arrivals
    }
}

/// Processes on one backend, with one clock.
pub(super) fn fleet(nodes: usize, hand: &Hand) -> (Arc<Mutex<Shared>>, Vec<Store>) {
    let shared = Arc::new(Mutex::new(Shared::default()));
    let stores = (0..nodes).map(|number| {
        shared.lock().unwrap().nodes.push(Inbox::default());
        let node = Node {
            shared: Arc::clone(&shared),
            number,
            buckets: Vec::new(),
        };
        let backends = Backends::with_embedded(Box::new(node));
        Store::with_backends(&[embedded("e"), memory("own")], backends, hand.clock()).unwrap()
    });
    let stores = stores.collect();
    (shared, stores)
}

/// Waits until all have what the backend has, down to the revisions.
fn converge(shared: &Mutex<Shared>, stores: &[Store]) {
    let (revision, expected) = {
        let shared = shared.lock().unwrap();
        let entries = shared.entries.iter().map(|((_, key), entry)| {
            let value = entry.value.text().unwrap().into_owned();
            (key.clone(), value, entry.revision.0)
        });
        (shared.bucket_revisions["e"], entries.collect::<Vec<_>>())
    };
    for store in stores {
        let e = id(store, "e");
        until(store, |snapshot| {
            snapshot.bucket(e).unwrap().revision() >= revision
        });
        assert_eq!(contents(store, e), expected);
    }
}

#[test]
fn processes_on_one_backend_converge_and_lose_nothing() {
    let hand = Hand::new();
    let (shared, stores) = fleet(3, &hand);
    let e = id(&stores[0], "e");
    let mut watch = stores[2].watch(e, None).unwrap();
    let wins: usize = std::thread::scope(|scope| {
        let writers: Vec<_> = stores
            .iter()
            .enumerate()
            .map(|(node, store)| {
                scope.spawn(move || {
                    let mut wins = 0;
                    for round in 0..60 {
                        let by = Action::Increment { by: 1, ttl: None };
                        let writes = vec![
                            Write::new(e, "sum", by),
                            write(e, &format!("last-{}", round % 7), Some(&node.to_string())),
                        ];
                        wait(store.commit(batch(writes))).unwrap();
                        let own = id(store, "own");
                        wait(store.commit(put(own, "k", &round.to_string()))).unwrap();
                        let first = Write::put(e, format!("first-{round}"), b"x".to_vec());
                        let first = first.expecting(Expect::Absent);
                        match wait(store.commit(batch(vec![first]))) {
                            Ok(_) => wins += 1,
                            Err(CommitError::Conflict { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    wins
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum()
    });
    assert_eq!(wins, 60, "of each key one process was the first");
    converge(&shared, &stores);
    let sum = contents(&stores[1], e).into_iter().find(|it| it.0 == "sum");
    assert_eq!(sum.map(|it| it.1), Some("180".into()));
    // Whoever watches one of them sees what all wrote, in order.
    let last = shared.lock().unwrap().bucket_revisions["e"];
    let (mut before, mut sums) = (Revision(0), 0);
    while before < last {
        let group = wait(watch.next()).unwrap();
        assert!(group.revision > before);
        before = group.revision;
        sums += group.changes().filter(|(key, _)| *key == "sum").count();
    }
    assert_eq!(sums, 180);
}

#[test]
fn after_a_gap_a_process_has_what_there_is_and_no_deleted_key_comes_back() {
    let hand = Hand::new();
    let (shared, stores) = fleet(2, &hand);
    let e = id(&stores[0], "e");
    let writes = ["gone", "kept", "changed"].map(|key| write(e, key, Some("1")));
    wait(stores[0].commit(batch(writes.into()))).unwrap();
    converge(&shared, &stores);
    let mut watch = stores[1].watch(e, None).unwrap();
    shared.lock().unwrap().nodes[1].lossy = true;
    for missed in [
        vec![write(e, "gone", None)],
        vec![write(e, "changed", Some("2"))],
        vec![write(e, "new", Some("1"))],
    ] {
        wait(stores[0].commit(batch(missed))).unwrap();
    }
    assert_eq!(contents(&stores[1], e).len(), 3, "it was told nothing");
    shared.lock().unwrap().nodes[1].lossy = false;
    // Its own write finds that it is behind, and is checked against what there is.
    let stale = Write::put(e, "gone", b"2".to_vec()).expecting(Expect::Present);
    let error = wait(stores[1].commit(batch(vec![stale]))).unwrap_err();
    assert!(
        matches!(error, CommitError::Conflict { found: None, .. }),
        "{error}"
    );
    wait(stores[1].commit(put(e, "mine", "1"))).unwrap();
    converge(&shared, &stores);
    let keys: Vec<_> = contents(&stores[1], e).into_iter().map(|it| it.0).collect();
    assert_eq!(keys, ["changed", "kept", "mine", "new"]);
    let group = wait(watch.next()).unwrap();
    let mut changed: Vec<_> = group
        .changes()
        .map(|(key, entry)| (key, entry.is_ok()))
        .collect();
    changed.sort_unstable();
    assert_eq!(changed, [("changed", true), ("gone", false), ("new", true)]);
}

#[test]
fn what_ends_is_deleted_by_one_of_the_processes() {
    let hand = Hand::new();
    let (shared, stores) = fleet(3, &hand);
    let e = id(&stores[0], "e");
    let ttl = Some(Duration::from_secs(1));
    wait(stores[0].commit(put_for(e, "k", "1", ttl))).unwrap();
    converge(&shared, &stores);
    let mut watch = stores[1].watch(e, None).unwrap();
    hand.advance(1_000);
    for store in &stores {
        until(store, |snapshot| snapshot.bucket(e).unwrap().is_empty());
    }
    assert_eq!(shared.lock().unwrap().bucket_revisions["e"], Revision(2));
    let group = wait(watch.next()).unwrap();
    let how: Vec<_> = group.changes().map(|(_, entry)| entry.err()).collect();
    assert_eq!(how, [Some(crate::store::log::Ending::Expired)]);
}
