//! Configs with other buckets on an engine that processes share.

use super::deadlines::Hand;
use super::engine::Shelf;
use super::nodes::{fleet, shared, until_so};
use super::*;
use crate::store::shared::link::Link;
use std::time::Duration;

#[test]
fn a_config_that_waits_for_an_engine_keeps_no_other_write_waiting() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let store = &stores[0];
    shelf.be_stuck(true);
    std::thread::scope(|scope| {
        let more = [shared("e"), memory("own"), shared("more")];
        let reload = scope.spawn(move || wait(store.reconfigure(&more)));
        until_so("it is asked", || shelf.waiting() == 1);
        wait(store.commit(put(id(store, "own"), "k", "1"))).unwrap();
        wait(store.commit(put(id(store, "e"), "k", "1"))).unwrap();
        assert!(!reload.is_finished(), "the engine has not answered yet");
        assert!(store.snapshot().bucket_id("more").is_none());
        shelf.be_stuck(false);
        reload.join().unwrap().unwrap();
    });
    wait(store.commit(put(id(store, "more"), "k", "1"))).unwrap();
}

#[test]
fn what_a_refused_config_would_have_is_not_followed_and_nothing_is_twice() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let store = &stores[0];
    let twice = [
        shared("e"),
        memory("own"),
        shared("more"),
        shared("more"),
        shared("other"),
    ];
    for _ in 0..2 {
        let refused = wait(store.reconfigure(&twice));
        assert!(
            matches!(refused, Err(OpenError::Duplicate { .. })),
            "{refused:?}"
        );
    }
    wait(store.reconfigure(&[shared("e"), memory("own"), shared("more")])).unwrap();
    // Seen, it is followed.
    wait(store.commit(put(id(store, "more"), "k", "1"))).unwrap();
    // The engine went back: all that is followed is loaded at once.
    let (backup, before) = (shelf.backup(), shelf.loads().len());
    shelf.restore(backup);
    until_so("it is loaded anew", || shelf.loads().len() > before);
    let mut loaded = shelf.loads().pop().unwrap();
    loaded.sort();
    let all: [Box<str>; 3] = ["e".into(), "more".into(), "throwbar:marks".into()];
    assert_eq!(loaded, all);
}

#[test]
fn an_engine_whose_settings_were_wrong_is_started_once_they_are_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let links = Links::new(SharedSettings::default(), dir.path());
    let (shelf, ca) = (Shelf::new(), dir.path().join("ca.pem"));
    let wanted = ca.clone();
    links.add(BackendKind::Etcd, move |wake| {
        fs::read(&wanted).map_err(|_| "no such file ca.pem".to_owned())?;
        let timeout = Duration::from_secs(20);
        Link::start(shelf.clone(), "shelf", timeout, wake).map_err(|error| error.to_string())
    });
    let backends = Backends::with_links(dir.path(), Arc::new(links));
    let store = Store::with_backends(&[memory("own")], backends, Hand::new().clock()).unwrap();
    let both = [memory("own"), shared("e")];
    for _ in 0..2 {
        let refused = wait(store.reconfigure(&both)).unwrap_err().to_string();
        assert_eq!(refused, "etcd: no such file ca.pem");
    }
    fs::write(&ca, "").unwrap();
    wait(store.reconfigure(&both)).unwrap();
    wait(store.commit(put(id(&store, "e"), "k", "1"))).unwrap();
}
