//! Plugins with a view of their own: what an instance is told, when, and what becomes of one that fails.

use super::guest::{Guest, PASS, REPLY};
use super::*;
use crate::store::Snapshot;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// `notes`, listed at 3072.
const NOTES: &str = r#"(data (i32.const 1024) "notes") (data (i32.const 3072) "\80\0c\00\00\01\00\00\00")
    (data (i32.const 3200) "\00\04\00\00\05\00\00\00")"#;
/// Counts calls at 2048 and changes at 2052; keeps the bucket and `more` of the last call at 2056 and 2060, and of its first
/// change the beginning of the key at 2064, and whether there is a value at 2072. Counts calls that others follow at 2076.
const COUNT: &str = "
    (i32.store (i32.const 2048) (i32.add (i32.const 1) (i32.load (i32.const 2048))))
    (i32.store (i32.const 2052) (i32.add (local.get $len) (i32.load (i32.const 2052))))
    (i32.store (i32.const 2056) (local.get $bucket))
    (i32.store (i32.const 2060) (local.get $more))
    (i64.store (i32.const 2064) (i64.load (i32.load (local.get $ptr))))
    (i32.store8 (i32.const 2072) (i32.load8_u offset=8 (local.get $ptr)))
    (i32.store (i32.const 2076) (i32.add (local.get $more) (i32.load (i32.const 2076))))";

fn guest<'a>(data: &'a str, route: &'a str) -> Guest<'a> {
    Guest {
        data,
        init: "",
        route,
    }
}

/// What [`COUNT`] kept.
#[derive(Debug, PartialEq)]
struct Told {
    calls: u32,
    changes: u32,
    bucket: u32,
    more: u32,
    /// Of the last call.
    key: String,
    set: bool,
    /// Calls after which the view was not whole.
    parts: u32,
}

fn told(bench: &Bench, instance: &mut Instance, snapshot: &Arc<Snapshot>) -> Told {
    let routed = instance.route(&mut Some(head()), snapshot);
    let routed = routed.expect("a decision");
    assert!(routed.writes.is_none());
    let Decision::Reply(reply) = routed.decision else {
        panic!("not a reply");
    };
    let number = |at: usize| {
        let bytes = reply.body[at..at + 4].try_into().expect("4 bytes");
        u32::from_le_bytes(bytes)
    };
    let key = &reply.body[16..24];
    let end = key.iter().position(|byte| *byte == 0).unwrap_or(8);
    assert!(bench.active().has_view());
    Told {
        calls: number(0),
        changes: number(4),
        bucket: number(8),
        more: number(12),
        key: String::from_utf8_lossy(&key[..end]).into_owned(),
        set: reply.body[24] == 1,
        parts: number(28),
    }
}

#[tokio::test]
async fn an_instance_is_told_everything_at_first_and_then_what_has_changed() {
    let bench = Bench::new().await;
    for key in ["a", "b", "c"] {
        bench.put("notes", key, "1").await;
    }
    let data = format!("{REPLY} {NOTES}");
    let component = guest(&data, "").watching(COUNT);
    bench.deploy(component).await.expect("a version");
    let mut instance = Instance::new(&bench.active()).expect("an instance");
    let first = bench.store.snapshot();
    let seen = told(&bench, &mut instance, &first);
    assert_eq!((seen.calls, seen.changes), (1, 3));
    assert_eq!((seen.bucket, seen.more, seen.set), (0, 0, true));
    // Nothing it watches: another bucket, an equal value, there and back.
    bench.put("map", "id2", "127.0.0.9").await;
    bench.put("notes", "a", "1").await;
    bench.put("notes", "a", "2").await;
    bench.put("notes", "a", "1").await;
    let seen = told(&bench, &mut instance, &bench.store.snapshot());
    assert_eq!((seen.calls, seen.changes), (1, 3));
    bench.put("notes", "b", "2").await;
    let second = bench.store.snapshot();
    let seen = told(&bench, &mut instance, &second);
    assert_eq!((seen.calls, seen.changes, &*seen.key), (2, 4, "b"));
    bench.put("notes", "d", "1").await;
    let seen = told(&bench, &mut instance, &bench.store.snapshot());
    assert_eq!((seen.calls, seen.set, &*seen.key), (3, true, "d"));
    // A call on an older state has the view of that state.
    let seen = told(&bench, &mut instance, &second);
    assert_eq!((seen.calls, seen.set, &*seen.key), (4, false, "d"));
    let stats = bench.active();
    assert_eq!(stats.stats(0).watch_changes.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn each_change_is_told_of_the_bucket_that_it_is_in() {
    let bench = Bench::new().await;
    // `notes` and `map`, in this order.
    let both = r#"(data (i32.const 1024) "notes") (data (i32.const 1032) "map")
        (data (i32.const 3072) "\80\0c\00\00\02\00\00\00")
        (data (i32.const 3200) "\00\04\00\00\05\00\00\00\08\04\00\00\03\00\00\00")"#;
    let data = format!("{REPLY} {both}");
    let component = guest(&data, "").watching(COUNT);
    bench.deploy(component).await.expect("a version");
    let mut instance = Instance::new(&bench.active()).expect("an instance");
    // What was there before.
    told(&bench, &mut instance, &bench.store.snapshot());
    for (bucket, key, value, place) in [
        ("notes", "a", "1", 0),
        ("map", "id2", "127.0.0.9", 1),
        ("notes", "b", "1", 0),
        ("map", "id3", "127.0.0.9", 1),
    ] {
        bench.put(bucket, key, value).await;
        let seen = told(&bench, &mut instance, &bench.store.snapshot());
        assert_eq!((seen.bucket, &*seen.key), (place, key));
    }
}

#[tokio::test]
async fn every_page_but_the_last_says_that_there_is_more() {
    let bench = Bench::new().await;
    let notes = bench.store.snapshot().bucket_id("notes").expect("a bucket");
    let writes = (0..1_001).map(|n| Write::put(notes, n.to_string(), *b"x"));
    let batch = WriteBatch {
        writes: writes.collect(),
        ..Default::default()
    };
    bench.store.commit(batch).await.expect("a commit");
    let data = format!("{REPLY} {NOTES}");
    let component = guest(&data, "").watching(COUNT);
    bench.deploy(component).await.expect("a version");
    let mut instance = Instance::new(&bench.active()).expect("an instance");
    let seen = told(&bench, &mut instance, &bench.store.snapshot());
    assert_eq!((seen.calls, seen.changes), (2, 1_001));
    assert_eq!((seen.parts, seen.more), (1, 0));
}

#[tokio::test]
async fn an_instance_that_nobody_asks_is_told_and_keeps_no_old_state() {
    let bench = Bench::new().await;
    let data = format!("{REPLY} {NOTES}");
    let watching = guest(&data, "").watching(COUNT);
    for component in [watching, guest(REPLY, "").build()] {
        bench.deploy(component).await.expect("a version");
        let mut instance = Instance::new(&bench.active()).expect("an instance");
        let snapshot = bench.store.snapshot();
        instance
            .route(&mut Some(head()), &snapshot)
            .expect("a decision");
        let old = Arc::downgrade(&snapshot);
        drop(snapshot);
        bench
            .put("notes", "a", &format!("{:?}", Instant::now()))
            .await;
        instance.refresh(&bench.store.snapshot()).expect("told");
        // The writer lets go of it with the next command.
        bench.put("notes", "a", "1").await;
        bench.put("notes", "a", "2").await;
        assert!(old.upgrade().is_none());
    }
}

#[tokio::test]
async fn much_is_told_in_pages_of_which_each_ends_in_time_for_others() {
    let bench = Bench::with(|config| {
        config.settings = BTreeMap::from([("bucket".to_owned(), "notes".to_owned())]);
        config.limits.deadline = Duration::from_secs(1);
        config.limits.watch_deadline = Duration::from_secs(20);
    })
    .await;
    let notes = bench.store.snapshot().bucket_id("notes").expect("a bucket");
    let put = |key: String, value: String| Write::put(notes, key, value.into_bytes());
    let mut writes: Vec<Write> = (0..2_500)
        .map(|n| put(format!("/{n}"), format!("up{n}")))
        .collect();
    // The first alone is as much as a page may be.
    writes.extend(["/large", "/larger"].map(|key| put(key.into(), "x ".repeat(130 << 10))));
    let batch = WriteBatch {
        writes,
        ..Default::default()
    };
    bench.store.commit(batch).await.expect("a commit");
    let component = builtin::component("prefix-rules").expect("it is built in");
    bench.deploy(component.to_vec()).await.expect("a version");
    let mut instance = Instance::new(&bench.active()).expect("an instance");
    let mut pages = 1;
    let first = bench.store.snapshot();
    let mut at = Arc::clone(&first);
    while !instance.tell_page(&at).expect("told") {
        pages += 1;
        // What comes meanwhile makes it no longer.
        bench.put("notes", "/a", &format!("up{pages}")).await;
        at = bench.store.snapshot();
    }
    assert!((5..=8).contains(&pages), "{pages} pages");
    let routed = instance.route(&mut Some(head()), &at).expect("a decision");
    let Decision::Forward(forward) = routed.decision else {
        panic!("not a forward");
    };
    let expected = RouteTarget::Upstream(format!("up{pages}").into(), None);
    assert_eq!(forward.to, expected, "the view is of the call's own state");
}

#[tokio::test]
async fn a_watcher_that_fails_loses_the_instance_and_the_request() {
    type Fits = fn(&RouteError) -> bool;
    let cases: [(&str, Fits); 2] = [
        (
            "unreachable",
            |error| matches!(error, RouteError::Trap(reason) if reason.starts_with("watcher: ") && reason.contains("unreachable")),
        ),
        ("(loop $l (br $l))", |error| {
            *error.to_string() == *"watcher: deadline of 20ms exceeded"
        }),
    ];
    for (at, (instructions, fits)) in cases.into_iter().enumerate() {
        let bench =
            Bench::with(|config| config.limits.watch_deadline = Duration::from_millis(20)).await;
        let data = format!("{PASS} {NOTES}");
        let component = guest(&data, "").watching(instructions);
        bench.deploy(component).await.expect("a version");
        let mut instance = Instance::new(&bench.active()).expect("an instance");
        bench
            .route(&mut instance)
            .expect("there is nothing to tell");
        bench.put("notes", "a", "1").await;
        let began = Instant::now();
        let error = bench.route(&mut instance).expect_err("it fails");
        assert!(fits(&error), "{error}");
        if at == 1 {
            assert!(began.elapsed() >= Duration::from_millis(20));
        }
        assert!(instance.is_poisoned());
        let active = bench.active();
        let stats = active.stats(0);
        let failed = [&stats.watch_traps, &stats.watch_deadlines];
        let failed = failed.map(|kind| kind.load(Ordering::Relaxed));
        assert_eq!(failed, if at == 0 { [1, 0] } else { [0, 1] });
    }
}

#[tokio::test]
async fn a_watcher_reads_the_state_it_is_told_of_and_writes_nothing() {
    let bench = Bench::new().await;
    // Reads `a` of `notes` to 2112, and puts it into `map`, whose result goes to 2144.
    let both = "(call $get (i32.const 1024) (i32.const 5) (i32.const 1032) (i32.const 1) (i32.const 2112))
        (call $put (i32.const 1040) (i32.const 3) (i32.const 1032) (i32.const 1) (i32.const 1048) (i32.const 9) (i32.const 2144))";
    let data = format!(
        r#"{REPLY} {NOTES} (data (i32.const 1032) "a") (data (i32.const 1040) "map") (data (i32.const 1048) "127.0.0.3")"#
    );
    let component = guest(&data, "").watching(both);
    bench.deploy(component).await.expect("a version");
    let mut instance = Instance::new(&bench.active()).expect("an instance");
    bench.put("notes", "a", "1").await;
    let routed = bench.route(&mut instance).expect("a decision");
    let Decision::Reply(reply) = &routed.decision else {
        panic!("not a reply");
    };
    assert_eq!(reply.body[64..66], [0, 0], "no error");
    assert_eq!(reply.body[72], 1, "there");
    assert_eq!(reply.body[96], 1, "an error");
    assert_eq!(reply.body[104], 1, "access-denied");
    assert!(routed.writes.is_none());
}

#[tokio::test]
async fn a_version_that_cannot_watch_is_refused() {
    let bench = Bench::new().await;
    let notes = format!("{PASS} {NOTES}");
    let other = NOTES.replace("\"notes\"", "\"notas\"");
    let other = format!("{PASS} {other}");
    let (notes, other) = (guest(&notes, ""), guest(&other, ""));
    for (component, expected) in [
        (
            other.watching(""),
            "watcher: bucket \"notas\" is not granted to this plugin",
        ),
        (
            notes.watching_wrongly(),
            "export changed of throwbar:plugin/watcher@0.1.0",
        ),
        (
            notes.watching_twice(),
            "exports throwbar:plugin/watcher@0.1.0 and wasi:keyvalue/watcher@0.2.0-draft: expected one of them",
        ),
    ] {
        let error = bench.deploy(component).await.expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
}
