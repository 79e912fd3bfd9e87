//! Watching: nothing is missed, nothing comes twice, and who would miss something is told.

use super::deadlines::{Hand, put_for};
use super::nodes::{converge, fleet};
use super::*;
use crate::store::log::{Ending, Group};
use std::collections::BTreeMap;
use std::time::Duration;

/// A group as text: `7: a=1 b- c!`, deleted and expired.
fn text(group: &Group) -> String {
    let changes = group.changes().map(|(key, change)| match change {
        Ok(entry) => format!(" {key}={}", entry.value.text().unwrap()),
        Err(Ending::Deleted) => format!(" {key}-"),
        Err(Ending::Expired) => format!(" {key}!"),
    });
    let mut changes: Vec<_> = changes.collect();
    changes.sort();
    format!("{}:{}", group.revision, changes.concat())
}

fn next(watch: &mut Watch) -> Result<String, WatchError> {
    wait(watch.next()).map(|group| text(&group))
}

fn at(revision: u64) -> Option<Position> {
    Some(Position {
        revision: Revision(revision),
        life: None,
    })
}

#[test]
fn each_revision_is_one_group_and_tells_how_an_entry_went() {
    let hand = Hand::new();
    let backends = Backends::new(Path::new(""));
    let store = Store::with_backends(&[memory("m"), memory("other")], backends, hand.clock());
    let store = store.unwrap();
    let (m, other) = (id(&store, "m"), id(&store, "other"));
    let mut watch = store.watch(m, None).unwrap();
    let second = Some(Duration::from_secs(1));
    wait(store.commit(batch(vec![
        write(m, "a", Some("1")),
        write(other, "x", Some("1")),
        write(m, "b", Some("2")),
        write(other, "y", Some("1")),
    ])))
    .unwrap();
    wait(store.commit(put(other, "x", "2"))).unwrap();
    wait(store.commit(put_for(m, "a", "1", second))).unwrap();
    wait(store.commit(put_for(m, "c", "3", second))).unwrap();
    wait(store.commit(put(m, "c", "3"))).unwrap();
    wait(store.commit(batch(vec![write(m, "b", None)]))).unwrap();
    hand.advance(1_000);
    for expected in ["1: a=1 b=2", "3: c=3", "4: b-", "5: a!"] {
        assert_eq!(next(&mut watch).unwrap(), expected);
    }
    assert_eq!(watch.position().revision, Revision(5));
    let mut others = store.watch(other, at(0)).unwrap();
    assert_eq!(next(&mut others).unwrap(), "1: x=1 y=1");
    assert_eq!(next(&mut others).unwrap(), "2: x=2");
}

#[test]
fn a_watch_goes_on_where_another_ended() {
    let store = Store::scratch(&[memory("m")]).unwrap();
    let m = id(&store, "m");
    for value in 1..=5 {
        wait(store.commit(put(m, "k", &value.to_string()))).unwrap();
    }
    for since in 0..5 {
        let mut watch = store.watch(m, at(since)).unwrap();
        for value in since + 1..=5 {
            assert_eq!(next(&mut watch).unwrap(), format!("{value}: k={value}"));
        }
        // The position says which process it is of.
        let mut again = store.watch(m, Some(watch.position())).unwrap();
        wait(store.commit(put(m, "k", &format!("new-{since}")))).unwrap();
        let new = next(&mut watch).unwrap();
        assert_eq!(next(&mut again).unwrap(), new);
        wait(store.commit(put(m, "k", "5"))).unwrap();
    }
}

#[test]
fn a_position_of_another_life_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let buckets = [memory("m"), embedded("e")];
    let store = opened(&buckets, dir.path());
    let (m, e) = (id(&store, "m"), id(&store, "e"));
    wait(store.commit(put(m, "k", "1"))).unwrap();
    wait(store.commit(put(e, "k", "1"))).unwrap();
    let brief = store.watch(m, None).unwrap().position();
    let lasting = store.watch(e, None).unwrap().position();
    assert!(brief.life.is_some() && lasting.life.is_none());
    let ahead = store.watch(e, at(3)).err().unwrap();
    assert!(matches!(ahead, WatchError::Foreign { .. }), "{ahead}");
    store.close();
    drop(store);
    let store = opened(&buckets, dir.path());
    wait(store.commit(put(m, "k", "1"))).unwrap();
    let foreign = store.watch(m, Some(brief)).err().unwrap();
    assert!(matches!(foreign, WatchError::Foreign { .. }), "{foreign}");
    // A bucket on disk has outlived it, but not its log.
    let mut watch = store.watch(e, Some(lasting)).unwrap();
    wait(store.commit(put(e, "k", "2"))).unwrap();
    assert_eq!(next(&mut watch).unwrap(), "4: k=2");
    let older = store.watch(e, at(1)).err().unwrap();
    let expected = WatchError::Compacted {
        since: Revision(1),
        floor: Revision(2),
    };
    assert_eq!(older, expected);
}

#[test]
fn who_falls_behind_the_log_is_told_and_nobody_else() {
    let store = Store::scratch(&[memory("busy"), memory("quiet")]).unwrap();
    let (busy, quiet) = (id(&store, "busy"), id(&store, "quiet"));
    wait(store.commit(put(quiet, "k", "1"))).unwrap();
    let mut slow = store.watch(busy, None).unwrap();
    let mut patient = store.watch(quiet, at(0)).unwrap();
    let many = |tag: &str| {
        let writes = (0..10_000).map(|key| write(busy, &key.to_string(), Some(tag)));
        batch(writes.collect())
    };
    wait(store.commit(many("a"))).unwrap();
    let mut prompt = store.watch(busy, at(1)).unwrap();
    assert!(next(&mut prompt).unwrap().starts_with("2: "));
    wait(store.commit(many("b"))).unwrap();
    let told = next(&mut slow).unwrap_err();
    let expected = WatchError::Compacted {
        since: Revision(0),
        floor: Revision(2),
    };
    assert_eq!(told, expected);
    assert!(next(&mut prompt).unwrap().starts_with("3: "));
    assert_eq!(next(&mut patient).unwrap(), "1: k=1");
    // Too much for the log by itself.
    let writes = (0..20_000).map(|key| write(busy, &format!("new-{key}"), Some("x")));
    wait(store.commit(batch(writes.collect()))).unwrap();
    assert!(matches!(
        next(&mut prompt),
        Err(WatchError::Compacted { .. })
    ));
    let mut watch = store.watch(busy, at(4)).unwrap();
    wait(store.commit(put(busy, "k", "1"))).unwrap();
    assert_eq!(next(&mut watch).unwrap(), "5: k=1");
}

#[test]
fn a_watch_ends_with_its_bucket_and_with_the_store() {
    let store = Store::scratch(&[memory("a"), memory("b")]).unwrap();
    let (a, b) = (id(&store, "a"), id(&store, "b"));
    let mut gone = store.watch(a, None).unwrap();
    let mut stays = store.watch(b, None).unwrap();
    wait(store.reconfigure(&[memory("b"), memory("c")])).unwrap();
    assert_eq!(next(&mut gone), Err(WatchError::NoSuchBucket));
    assert_eq!(store.watch(a, None).err(), Some(WatchError::NoSuchBucket));
    let c = id(&store, "c");
    let mut new = store.watch(c, None).unwrap();
    wait(store.commit(put(c, "k", "1"))).unwrap();
    assert_eq!(next(&mut new).unwrap(), "1: k=1");
    store.close();
    assert_eq!(next(&mut stays), Err(WatchError::Closed));
}

#[test]
fn what_is_watched_beside_writers_adds_up_to_what_there_is() {
    let store = Store::scratch(&[memory("m")]).unwrap();
    let m = id(&store, "m");
    let mut watch = store.watch(m, None).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..3_u64 {
            let store = store.clone();
            scope.spawn(move || {
                let mut random = writer + 7;
                for _ in 0..300 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let value = (!random.is_multiple_of(4)).then(|| random.to_string());
                    let twins = ["a", "b"]
                        .map(|it| write(m, &format!("{it}{}", random % 20), value.as_deref()));
                    wait(store.commit(batch(twins.into()))).unwrap();
                }
                wait(store.commit(put(m, &format!("end-{writer}"), "1"))).unwrap();
            });
        }
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        let mut last = Revision(0);
        while seen.keys().filter(|key| key.starts_with("end")).count() < 3 {
            let group = wait(watch.next()).unwrap();
            assert!(group.revision > last);
            last = group.revision;
            for (key, change) in group.changes() {
                match change {
                    Ok(entry) => {
                        let value = entry.value.text().unwrap().into_owned();
                        seen.insert(key.to_owned(), value)
                    }
                    Err(_) => seen.remove(key),
                };
            }
            for (key, value) in &seen {
                let twin = key.strip_prefix('a').map(|rest| format!("b{rest}"));
                assert!(twin.is_none_or(|twin| seen.get(&twin) == Some(value)));
            }
        }
        assert_eq!(last, store.snapshot().revision());
        let there = contents(&store, m).into_iter();
        let there: BTreeMap<_, _> = there.map(|(key, value, _)| (key, value)).collect();
        assert_eq!(seen, there);
    });
}

#[test]
fn a_place_where_another_process_was_is_waited_for() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(2, &hand);
    let (one, other) = (&stores[0], &stores[1]);
    let e = id(one, "e");
    wait(one.commit(put(e, "k", "1"))).unwrap();
    converge(&shelf, &stores);
    shelf.be_silent(true);
    let at = |revision| Position {
        revision,
        life: None,
    };
    std::thread::scope(|scope| {
        let commits = shelf.commits();
        let writing = scope.spawn(move || wait(one.commit(put(e, "k", "2"))));
        while shelf.commits() == commits {
            std::thread::yield_now();
        }
        let there = at(shelf.revision());
        assert!(matches!(
            other.watch(e, Some(there)),
            Err(WatchError::Foreign { .. })
        ));
        let watching = scope.spawn(move || {
            let watch = wait(other.watch_from(e, Some(there)));
            watch.map(|watch| watch.position())
        });
        shelf.be_silent(false);
        assert_eq!(watching.join().unwrap().unwrap(), there);
        writing.join().unwrap().unwrap();
    });
    // Not for ever.
    let never = wait(other.watch_from(e, Some(at(Revision(1_000)))));
    assert!(matches!(never, Err(WatchError::Foreign { .. })));
}
