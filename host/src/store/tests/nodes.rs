//! Stores on one engine, which is in memory, and waiting for what they do.

use super::deadlines::{Hand, until};
use super::engine::Shelf;
use super::*;
use crate::store::shared::link::Link;
use std::time::Duration;

pub(super) fn shared(name: &str) -> BucketConfig {
    BucketConfig::new(name, BackendKind::Etcd, ValueKind::Bytes)
}

/// A store on the shelf, with a directory for copies.
pub(super) fn node(shelf: &Shelf, dir: &Path, hand: &Hand) -> Result<Store, OpenError> {
    node_with(&[shared("e"), memory("own")], shelf, dir, hand)
}

pub(super) fn node_with(
    buckets: &[BucketConfig],
    shelf: &Shelf,
    dir: &Path,
    hand: &Hand,
) -> Result<Store, OpenError> {
    node_within(buckets, shelf, dir, hand, Duration::from_secs(20))
}

/// The same, with this timeout of the engine.
pub(super) fn node_within(
    buckets: &[BucketConfig],
    shelf: &Shelf,
    dir: &Path,
    hand: &Hand,
    timeout: Duration,
) -> Result<Store, OpenError> {
    let links = Links::new(SharedSettings::default(), dir);
    let shelf = shelf.clone();
    links.add(BackendKind::Etcd, move |wake| {
        Link::start(shelf.clone(), "shelf", timeout, wake).map_err(|error| error.to_string())
    });
    let backends = Backends::with_links(dir, Arc::new(links));
    Store::with_backends(buckets, backends, hand.clock())
}

/// A store on a shelf of its own, for tests of what is built on stores.
pub(crate) fn node_on_its_own(
    buckets: &[BucketConfig],
    dir: &Path,
    timeout: Duration,
) -> (Store, Shelf) {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let store = node_within(buckets, &shelf, dir, &hand, timeout).unwrap();
    (store, shelf)
}

/// Stores on one shelf, with one clock.
pub(super) fn fleet(nodes: usize, hand: &Hand) -> (Shelf, Vec<Store>, tempfile::TempDir) {
    fleet_of(nodes, &[shared("e"), memory("own")], hand)
}

/// The same with these buckets.
pub(super) fn fleet_of(
    nodes: usize,
    buckets: &[BucketConfig],
    hand: &Hand,
) -> (Shelf, Vec<Store>, tempfile::TempDir) {
    let (shelf, dir) = (Shelf::new(), tempfile::tempdir().unwrap());
    let stores = (0..nodes).map(|number| {
        let dir = dir.path().join(number.to_string());
        fs::create_dir(&dir).unwrap();
        node_with(buckets, &shelf, &dir, hand).unwrap()
    });
    let stores = stores.collect();
    (shelf, stores, dir)
}

/// Waits until all have what the shelf has, down to the revisions.
pub(super) fn converge(shelf: &Shelf, stores: &[Store]) {
    let (revision, expected) = (shelf.revision(), shelf.contents("e"));
    for store in stores {
        let e = id(store, "e");
        until(store, |snapshot| {
            snapshot.bucket(e).unwrap().revision() >= revision
        });
        assert_eq!(contents(store, e), expected);
    }
}

/// Waits until the store knows whether the engine is there.
pub(crate) fn until_lost(store: &Store, lost: bool) {
    let is_lost = || store.health()[0].1.lost.is_some() == lost;
    let began = std::time::Instant::now();
    while !is_lost() {
        assert!(began.elapsed() < Duration::from_secs(20), "lost: {}", !lost);
        std::thread::yield_now();
    }
}

/// Waits for what an engine's thread does.
pub(super) fn until_so(what: &str, so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}
