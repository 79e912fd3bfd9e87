//! Buckets that are loaded anew, and change while they are compared with what was loaded.

use super::behind::elsewhere;
use super::deadlines::{Hand, put_for};
use super::engine::Shelf;
use super::nodes::{converge, fleet, fleet_of, shared, until_so};
use super::*;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// What others write is missed, so that all is loaded anew, and compared with what readers see now.
fn miss(store: &Store, shelf: &Shelf, writing: impl FnOnce()) {
    let loads = shelf.loads().len();
    shelf.be_silent(true);
    writing();
    shelf.trim();
    shelf.be_silent(false);
    until_so("it is loaded anew", || shelf.loads().len() > loads);
    until_so("it has arrived", || {
        store.health()[0].1.revision == shelf.revision()
    });
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    let within = tokio::time::timeout(Duration::from_secs(20), future);
    within.await.expect("it comes")
}

#[test]
fn what_came_between_the_load_and_its_turn_is_overtaken_by_it() {
    let (shelf, stores, _dir) = fleet(1, &Hand::new());
    let [store] = &stores[..] else {
        panic!("one was asked for")
    };
    for key in ["stays", "changes", "goes", "comes back"] {
        elsewhere(&shelf, "e", key, Some("1"));
    }
    converge(&shelf, &stores);
    // What comes now has no turn, so what is loaded is not compared with it.
    let hold = wait(store.hold(Duration::from_secs(60))).unwrap();
    elsewhere(&shelf, "e", "changes", Some("2"));
    elsewhere(&shelf, "e", "comes back", None);
    elsewhere(&shelf, "e", "brief", Some("1"));
    until_so("it has come", || {
        store.health()[0].1.revision == shelf.revision()
    });
    miss(store, &shelf, || {
        elsewhere(&shelf, "e", "comes back", Some("1"));
        elsewhere(&shelf, "e", "brief", None);
        elsewhere(&shelf, "e", "goes", None);
        elsewhere(&shelf, "e", "new", Some("1"));
    });
    drop(hold);
    converge(&shelf, &stores);
}

#[test]
fn of_what_an_engine_that_went_back_no_longer_has_nobody_is_told() {
    let (shelf, stores, _dir) = fleet(1, &Hand::new());
    let [store] = &stores[..] else {
        panic!("one was asked for")
    };
    let e = id(store, "e");
    elsewhere(&shelf, "e", "stays", Some("1"));
    converge(&shelf, &stores);
    let backup = shelf.backup();
    let hold = wait(store.hold(Duration::from_secs(60))).unwrap();
    for value in ["1", "2", "3"] {
        elsewhere(&shelf, "e", "undone", Some(value));
    }
    until_so("it has come", || {
        store.health()[0].1.revision == shelf.revision()
    });
    let loads = shelf.loads().len();
    shelf.restore(backup);
    until_so("it is loaded anew", || shelf.loads().len() > loads);
    until_so("it has arrived", || {
        store.health()[0].1.revision == shelf.revision()
    });
    drop(hold);
    // Both have their turn together, and the state is as it was: a write of its own comes after them.
    wait(store.commit(put(id(store, "own"), "k", "1"))).unwrap();
    assert_eq!(contents(store, e), shelf.contents("e"));
    let mut watch = store.watch(e, None).unwrap();
    elsewhere(&shelf, "e", "new", Some("1"));
    let told = wait(within(watch.next())).unwrap();
    assert_eq!(told.changes().next().unwrap().0, "new");
}

#[test]
fn what_is_hidden_and_gone_when_all_is_loaded_anew_is_gone() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let [store] = &stores[..] else {
        panic!("one was asked for")
    };
    let e = id(store, "e");
    for key in ["ends", "stays for the engine"] {
        let ttl = Some(Duration::from_secs(10));
        wait(store.commit(put_for(e, key, "1", ttl))).unwrap();
    }
    let mut watch = store.watch(e, None).unwrap();
    shelf.advance(10_000);
    hand.advance(10_000);
    until_so("they are hidden", || contents(store, e).is_empty());
    miss(store, &shelf, || elsewhere(&shelf, "e", "ends", None));
    let missed = wait(within(watch.next()));
    assert!(matches!(missed, Err(WatchError::Compacted { .. })));
    // What the engine still has stays hidden.
    assert_eq!(contents(store, e), []);
    let mut watch = store.watch(e, None).unwrap();
    shelf.expire();
    elsewhere(&shelf, "e", "new", Some("1"));
    let told = wait(within(watch.next())).unwrap();
    assert_eq!(told.changes().count(), 1);
    assert_eq!(told.changes().next().unwrap().0, "stays for the engine");
}

#[test]
fn what_is_loaded_for_one_config_is_read_again_for_the_next() {
    let kinds = [ValueKind::Bytes, ValueKind::Endpoint, ValueKind::Bytes];
    for [before, after] in [[kinds[0], kinds[1]], [kinds[1], kinds[2]]] {
        let of = |values| BucketConfig {
            values,
            ..shared("e")
        };
        let (shelf, stores, _dir) = fleet_of(1, &[of(before)], &Hand::new());
        let [store] = &stores[..] else {
            panic!("one was asked for")
        };
        let e = id(store, "e");
        elsewhere(&shelf, "e", "known", Some("127.0.0.1:80"));
        converge(&shelf, &stores);
        let hold = wait(store.hold(Duration::from_secs(60))).unwrap();
        // The config comes first, and then what was loaded while it had no turn.
        let next = [of(after)];
        let mut reload = pin!(store.reconfigure(&next));
        let asked = wait(poll_fn(|context| {
            Poll::Ready(reload.as_mut().poll(context))
        }));
        assert!(matches!(asked, Poll::Pending));
        miss(store, &shelf, || {
            elsewhere(&shelf, "e", "fits", Some("127.0.0.2:80"));
            elsewhere(&shelf, "e", "fits bytes only", Some("no endpoint!"));
        });
        drop(hold);
        wait(reload).unwrap();
        let expected: &[&str] = match after {
            ValueKind::Bytes => &["fits", "fits bytes only", "known"],
            ValueKind::Endpoint => &["fits", "known"],
        };
        let keys = || contents(store, e).into_iter().map(|(key, ..)| key);
        until_so("it has its turn", || keys().any(|key| key == "fits"));
        assert_eq!(keys().collect::<Vec<_>>(), expected);
        let snapshot = store.snapshot();
        let fits = snapshot.bucket(e).unwrap().get("fits").unwrap();
        let is_target = matches!(fits.value, Value::Target(_));
        assert_eq!(is_target, after == ValueKind::Endpoint);
    }
}
