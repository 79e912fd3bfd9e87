//! Concurrent clients on few keys, beside crashes: what each was told must have an order that explains it.
//!
//! A backend takes part with a [`Nodes`] and a test at the end. One that several processes share has a store for each client;
//! what a store reads from its own memory may then be older than what another was told, so only writes are looked at.

use super::deadlines::Hand;
use super::*;
use checker::{Input, Operation, Output, is_linearizable};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

mod checker;

const CLIENTS: usize = 4;
const KEYS: u64 = 3;

/// Where the stores are.
pub(in crate::store) trait Nodes {
    /// The store of a client.
    fn store(&self, client: usize) -> Store;
    /// Whether what one reads is what any other was told last.
    fn reads_agree(&self) -> bool;
    /// Ends all stores at once, in the midst of what they do.
    fn crash(&mut self);
    /// Opens them again; whoever had one has given it back.
    fn recover(&mut self);
}

/// Who wrote what, on one clock.
#[derive(Default)]
struct History {
    clock: AtomicU64,
    values: AtomicU64,
    operations: Mutex<BTreeMap<u64, Vec<Operation>>>,
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn add(&self, key: u64, operation: Operation) {
        let mut operations = self.operations.lock().unwrap();
        operations.entry(key).or_default().push(operation);
    }

    /// What nobody knows of has had no effect after now.
    fn settle(&self) {
        let now = self.tick();
        for operation in self.operations.lock().unwrap().values_mut().flatten() {
            if operation.output == Output::Unknown {
                operation.end = operation.end.min(now);
            }
        }
    }
}

/// One client: asks one thing after the other until the store is gone, or it has asked enough.
fn client(store: &Store, history: &History, seed: u64, most: usize, reads: bool) {
    let bucket = id(store, "e");
    let mut random = seed | 1;
    let mut next = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    for _ in 0..most {
        let key = next(KEYS);
        let name = key.to_string();
        let known = || {
            let snapshot = store.snapshot();
            let entry = snapshot.bucket(bucket)?.get(&name)?;
            let value = entry.value.text()?.parse().ok()?;
            Some((value, entry.revision.0))
        };
        let value = 1_000 * history.values.fetch_add(1, Ordering::SeqCst) as i64;
        let input = match next(10) {
            0..3 if reads => Input::Get,
            0..7 => Input::CompareAndSet(known().map(|(_, revision)| revision), value),
            7 => Input::Put(value),
            8 => Input::Increment(1),
            _ => Input::Delete,
        };
        let put = |value: i64| Write::put(bucket, name.as_str(), value.to_string().into_bytes());
        let write = match input {
            Input::Get => None,
            Input::Put(value) => Some(put(value)),
            Input::CompareAndSet(None, value) => Some(put(value).expecting(Expect::Absent)),
            Input::CompareAndSet(Some(revision), value) => {
                Some(put(value).expecting(Expect::At(Revision(revision))))
            }
            Input::Increment(by) => {
                let action = Action::Increment { by, ttl: None };
                Some(Write::new(bucket, name.as_str(), action))
            }
            Input::Delete => Some(Write::delete(bucket, name.as_str())),
        };
        let call = history.tick();
        let output = match write.map(|write| wait(store.commit(batch(vec![write])))) {
            None => Output::Got(known()),
            Some(Ok(done)) => match (input, done.entry) {
                (Input::Delete, _) => Output::Deleted,
                (_, Some(revision)) => Output::Written(revision.0, done.number),
                (_, None) => panic!("{input:?} left nothing"),
            },
            Some(Err(CommitError::Conflict { found, .. })) => {
                Output::Conflict(found.map(|revision| revision.0))
            }
            Some(Err(
                CommitError::Unavailable(_) | CommitError::Unknown(_) | CommitError::Unseen { .. },
            )) => Output::Unknown,
            Some(Err(error)) => panic!("{error}"),
        };
        let end = match output {
            Output::Unknown => u64::MAX,
            _ => history.tick(),
        };
        let operation = Operation {
            call,
            end,
            input,
            output,
        };
        history.add(key, operation);
        if output == Output::Unknown {
            return;
        }
    }
}

/// Rounds of clients, each ended by a crash, and one without.
pub(in crate::store) fn is_explained(nodes: &mut impl Nodes, crashes: usize) {
    let history = History::default();
    for round in 0..=crashes {
        let before = history.values.load(Ordering::SeqCst);
        let reads = nodes.reads_agree();
        std::thread::scope(|scope| {
            for number in 0..CLIENTS {
                let (store, history) = (nodes.store(number), &history);
                let seed = 0x9e37_79b9_7f4a_7c15_u64.rotate_left((round * CLIENTS + number) as u32);
                scope.spawn(move || client(&store, history, seed, 40, reads));
            }
            // In the midst of it, a little later each time.
            let enough = before + 20 + round as u64 * 7 % 60;
            while round < crashes && history.values.load(Ordering::SeqCst) < enough {
                std::thread::yield_now();
            }
            if round < crashes {
                nodes.crash();
            }
        });
        nodes.recover();
        history.settle();
    }
    let operations = history.operations.lock().unwrap();
    let all = || operations.values().flatten();
    let is_win = |it: &&Operation| {
        matches!(it.input, Input::CompareAndSet(..)) && matches!(it.output, Output::Written(..))
    };
    let is_loss = |it: &&Operation| matches!(it.output, Output::Conflict(_));
    assert!(all().filter(is_win).count() > 10 && all().any(|it| is_loss(&it)));
    for (key, operations) in &*operations {
        assert!(is_linearizable(operations), "key {key}: {operations:#?}");
    }
    // Had one of them won twice, it would be noticed.
    let of_some = |it: &&Operation| matches!(it.input, Input::CompareAndSet(Some(_), _));
    let (key, win) = operations
        .iter()
        .find_map(|(key, all)| Some((key, *all.iter().filter(is_win).find(of_some)?)))
        .expect("somebody replaced an entry");
    let after = history.clock.load(Ordering::SeqCst);
    let again = Operation {
        call: after,
        end: after + 1,
        output: Output::Written(u64::MAX, None),
        ..win
    };
    let wrong = [operations[key].as_slice(), &[again]].concat();
    assert!(!is_linearizable(&wrong));
}

/// One store on a disk that dies.
struct OneFile {
    dir: tempfile::TempDir,
    faults: Arc<Faults>,
    store: Option<Store>,
}

impl OneFile {
    fn new() -> Self {
        let mut file = Self {
            dir: tempfile::tempdir().unwrap(),
            faults: Arc::default(),
            store: None,
        };
        file.recover();
        file
    }
}

impl Nodes for OneFile {
    fn store(&self, _client: usize) -> Store {
        self.store.clone().expect("it is open")
    }
    fn reads_agree(&self) -> bool {
        true
    }
    fn crash(&mut self) {
        self.faults.kill();
    }
    fn recover(&mut self) {
        self.store = None;
        self.faults = Arc::default();
        let disk = faulty(
            self.dir.path(),
            SyncPolicy::Always,
            Arc::clone(&self.faults),
        );
        let backends = Backends::with_embedded(disk);
        let store = Store::with_backends(&[embedded("e")], backends, Clock::system());
        self.store = Some(store.unwrap());
    }
}

/// Three stores on one place in memory.
struct Fleet(Vec<Store>);

impl Nodes for Fleet {
    fn store(&self, client: usize) -> Store {
        self.0[client % self.0.len()].clone()
    }
    fn reads_agree(&self) -> bool {
        false
    }
    fn crash(&mut self) {}
    fn recover(&mut self) {}
}

#[test]
fn histories_of_the_embedded_backend_are_linearizable_also_beside_crashes() {
    is_explained(&mut OneFile::new(), 12);
}

#[test]
fn histories_of_several_processes_on_one_backend_are_linearizable() {
    let (_shelf, stores, _dir) = super::nodes::fleet(3, &Hand::new());
    is_explained(&mut Fleet(stores), 0);
}
