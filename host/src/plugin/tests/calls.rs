//! One decision: what a guest may do in it, and how it is stopped.

use super::guest::{Guest, PASS, REPLY};
use super::*;
use crate::store::{Action, Expect};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The body of a reply.
fn body(routed: &Routed) -> &[u8] {
    match &routed.decision {
        Decision::Reply(reply) => &reply.body,
        other => panic!("not a reply: {other:?}"),
    }
}

#[tokio::test]
async fn a_slot_lookup_forwards_to_the_entry_with_the_port_of_the_other_slot() {
    let bench = Bench::new().await;
    let guest = Guest {
        // Slots x-id and x-port, bucket map, and x-id removed from the request; then to(entry(…)).
        data: r#"
            (data (i32.const 0) "\00\00\00\00" "\00\00\00\00\00\00\00\00" "\40\00\00\00\02\00\00\00"
                "\60\00\00\00\01\00\00\00" "\60\04\00\00\01\00\00\00")
            (data (i32.const 64) "\07\00\00\00\00\04\00\00\04\00\00\00" "\07\00\00\00\10\04\00\00\06\00\00\00")
            (data (i32.const 96) "\20\04\00\00\03\00\00\00")
            (data (i32.const 1024) "x-id") (data (i32.const 1040) "x-port") (data (i32.const 1056) "map")
            (data (i32.const 1120) "\00\04\00\00\04\00\00\00")"#,
        init: "",
        route: "(call $entry_at (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 1) (i32.const 2048))
            (i32.store (i32.const 264) (i32.load (i32.const 2052)))",
    };
    let mut instance = bench.instance(&guest).await;
    let routed = bench.route(&mut instance).expect("a decision");
    let Decision::Forward(forward) = routed.decision else {
        panic!("not a forward");
    };
    let host = crate::store::Target::Ip("127.0.0.2".parse().expect("an address"), None);
    assert_eq!(forward.to, RouteTarget::Address(host, 8080));
    assert_eq!(forward.key.as_deref(), Some("id1"));
    assert_eq!(forward.constant.expect("edits").request_remove, ["x-id"]);
    assert!(bench.active().constant_edits().is_some());
    assert!(routed.writes.is_none());
}

#[tokio::test]
async fn a_trap_poisons_the_instance_and_gives_the_head_back() {
    let bench = Bench::new().await;
    let guest = Guest {
        data: PASS,
        init: "",
        route: "unreachable",
    };
    let mut instance = bench.instance(&guest).await;
    let error = bench.route(&mut instance).expect_err("a trap");
    assert!(
        matches!(&error, RouteError::Trap(reason) if reason.contains("unreachable")),
        "{error}"
    );
    assert!(instance.is_poisoned());
}

#[tokio::test]
async fn a_spinning_guest_is_cut_soon_after_its_deadline() {
    let bench = Bench::new().await;
    let guest = Guest {
        data: PASS,
        init: "",
        route: "(loop $l (br $l))",
    };
    let mut instance = bench.instance(&guest).await;
    let began = Instant::now();
    let error = bench.route(&mut instance).expect_err("a cut");
    assert!(matches!(error, RouteError::Deadline(_)), "{error}");
    assert!(
        began.elapsed() >= Duration::from_millis(5),
        "not before the deadline"
    );
    assert!(instance.is_poisoned());
}

#[tokio::test]
async fn memory_beyond_the_limit_is_not_given() {
    let bench = Bench::with(|config| config.limits.memory_bytes_max = 1 << 20).await;
    let guest = Guest {
        data: REPLY,
        init: "",
        route: "(i32.store (i32.const 2048) (memory.grow (i32.const 15)))
            (i32.store (i32.const 2052) (memory.grow (i32.const 1)))",
    };
    let mut instance = bench.instance(&guest).await;
    let routed = bench.route(&mut instance).expect("a decision");
    assert_eq!(body(&routed)[..8], [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[tokio::test]
async fn decisions_that_cannot_be_acted_on_are_refused_and_the_instance_lives() {
    // Text at 1024; 256 holds the decision.
    let address = |text: &str| {
        let len = text.len();
        let text: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
        format!(
            r#"(data (i32.const 1024) "{text}")
            (data (i32.const 256) "\00\00\00\00\01\00\00\00\00\04\00\00\{len:02x}")"#
        )
    };
    let cases = [
        (address("10.0.0.1"), "no port"),
        (address("10.0.0.1:80\r\nx: y"), "address"),
        (address("a b:80"), "address"),
        (r#"(data (i32.const 256) "\00\00\00\00\00\00\00\00\07")"#.to_owned(), "entry 7"),
        (r#"(data (i32.const 256) "\02\00\00\00\64")"#.to_owned(), "status 100"),
        (r#"(data (i32.const 256) "\02\00\00\00\58\02")"#.to_owned(), "status 600"),
        (
            r#"(data (i32.const 256) "\02\00\00\00\cc\00\00\00\00\00\00\00\00\00\00\00\00\08\00\00\01")"#
                .to_owned(),
            "with a body",
        ),
        (
            r#"(data (i32.const 256) "\02\00\00\00\c8\00\00\00\00\02\00\00\01\00\00\00")
            (data (i32.const 512) "\00\04\00\00\04\00\00\00\10\04\00\00\01\00\00\00")
            (data (i32.const 1024) "Host") (data (i32.const 1040) "x")"#
                .to_owned(),
            "header \"Host\"",
        ),
        (
            r#"(data (i32.const 256) "\02\00\00\00\c8\00\00\00\00\02\00\00\01\00\00\00")
            (data (i32.const 512) "\00\04\00\00\03\00\00\00\10\04\00\00\03\00\00\00")
            (data (i32.const 1024) "x-a") (data (i32.const 1040) "a\0ab")"#
                .to_owned(),
            "not a header value",
        ),
    ];
    let bench = Bench::new().await;
    for (data, expected) in cases {
        let guest = Guest {
            data: &data,
            init: "",
            route: "",
        };
        let mut instance = bench.instance(&guest).await;
        let error = bench.route(&mut instance).expect_err(expected);
        assert!(matches!(error, RouteError::Decision(_)), "{error}");
        assert!(
            error.to_string().contains(expected),
            "{error}, expected {expected}"
        );
        assert!(!instance.is_poisoned());
    }
}

#[tokio::test]
async fn more_than_the_limit_returned_is_refused() {
    let bench = Bench::with(|config| config.limits.returned_bytes_max = 100).await;
    let guest = Guest {
        data: REPLY,
        init: "",
        route: "",
    };
    let mut instance = bench.instance(&guest).await;
    let error = bench.route(&mut instance).expect_err("too much");
    assert!(
        error
            .to_string()
            .contains("128 bytes returned, at most 100"),
        "{error}"
    );
}

/// Calls `put("map", "key", "10.0.0.9:99")`, its result at 2048.
const PUT: &str = "(call $put (i32.const 1024) (i32.const 3) (i32.const 1040) (i32.const 3) (i32.const 1056) (i32.const 11) (i32.const 2048))";
const STRINGS: &str = r#"(data (i32.const 1024) "map") (data (i32.const 1040) "key") (data (i32.const 1056) "10.0.0.9:99") (data (i32.const 1072) "notes")"#;

#[tokio::test]
async fn a_call_reads_its_own_writes_and_they_are_one_batch() {
    let bench = Bench::new().await;
    bench.put("map", "key", "10.0.0.1:1").await;
    let revision = bench.store.snapshot().revision();
    let guest = Guest {
        data: &format!("{STRINGS}{REPLY}"),
        init: "",
        // Compare-and-set at the stored revision, read at 2080, compare-and-set at 0 (own write) deleting, read at 2144.
        route: &format!(
            "(call $cas (i32.const 1024) (i32.const 3) (i32.const 1040) (i32.const 3) (i32.const 1) (i64.const {revision})
                (i32.const 1) (i32.const 1056) (i32.const 11) (i32.const 2048))
            (call $get (i32.const 1024) (i32.const 3) (i32.const 1040) (i32.const 3) (i32.const 2080))
            (call $cas (i32.const 1024) (i32.const 3) (i32.const 1040) (i32.const 3) (i32.const 1) (i64.const 0)
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2112))
            (call $get (i32.const 1024) (i32.const 3) (i32.const 1040) (i32.const 3) (i32.const 2144))"
        ),
    };
    let mut instance = bench.instance(&guest).await;
    let routed = bench.route(&mut instance).expect("a decision");
    let body = body(&routed);
    assert_eq!(body[0], 0, "the revision is as expected");
    assert_eq!([body[32], body[40]], [0, 1], "it reads what it wrote");
    assert_eq!((body[52], body[56]), (11, 0), "of this call: revision 0");
    assert_eq!(body[64], 0, "its own write is at revision 0");
    assert_eq!([body[96], body[104]], [0, 0], "deleted");
    let batch = routed.writes.expect("a batch");
    let bucket = bench.store.snapshot().bucket_id("map").expect("a bucket");
    let expected = Write::delete(bucket, "key").expecting(Expect::At(revision));
    assert_eq!(batch.writes, [expected]);
    bench.store.commit(batch).await.expect("a commit");
    let snapshot = bench.store.snapshot();
    let bucket = snapshot
        .bucket(snapshot.bucket_id("map").expect("a bucket"))
        .expect("a bucket");
    assert!(bucket.get("key").is_none());
}

#[tokio::test]
async fn writes_of_one_call_are_not_seen_by_the_next() {
    let bench = Bench::new().await;
    let guest = Guest {
        data: &format!("{STRINGS}{REPLY}"),
        init: "",
        route: &format!(
            "(call $get (i32.const 1024) (i32.const 3) (i32.const 1040) (i32.const 3) (i32.const 2080)) {PUT}"
        ),
    };
    let mut instance = bench.instance(&guest).await;
    for _ in 0..2 {
        let routed = bench.route(&mut instance).expect("a decision");
        assert_eq!(
            [body(&routed)[0], body(&routed)[32], body(&routed)[40]],
            [0, 0, 0]
        );
        assert_eq!(routed.writes.expect("a batch").writes.len(), 1);
    }
}

#[tokio::test]
async fn a_lookup_sees_the_write_of_its_call() {
    let bench = Bench::new().await;
    let guest = Guest {
        data: &format!(
            r#"{STRINGS} (data (i32.const 0) "\00\00\00\00" "\00\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00"
                "\60\00\00\00\01\00\00\00") (data (i32.const 96) "\00\04\00\00\03\00\00\00")"#
        ),
        init: "",
        route: &format!(
            "{PUT} (call $entry (i32.const 0) (i32.const 1040) (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 2112))
            (i32.store (i32.const 264) (i32.load (i32.const 2116)))"
        ),
    };
    let mut instance = bench.instance(&guest).await;
    let routed = bench.route(&mut instance).expect("a decision");
    let Decision::Forward(Forward { to, .. }) = routed.decision else {
        panic!("not a forward");
    };
    let host = crate::store::Target::Ip("10.0.0.9".parse().expect("an address"), None);
    assert_eq!(to, RouteTarget::Address(host, 99));
}

#[tokio::test]
async fn refused_writes_are_typed_errors_and_a_trap_applies_none() {
    let bench = Bench::with(|config| config.limits.writes_max = 1).await;
    let call = |bucket: (u32, u32), key: (u32, u32), value: (u32, u32), result: u32| {
        format!(
            "(call $put (i32.const {}) (i32.const {}) (i32.const {}) (i32.const {}) (i32.const {}) (i32.const {}) (i32.const {result}))",
            bucket.0, bucket.1, key.0, key.1, value.0, value.1
        )
    };
    let (map, key, value) = ((1024, 3), (1040, 3), (1056, 11));
    let guest = Guest {
        data: &format!("{STRINGS}{REPLY}"),
        init: "",
        route: &[
            call(key, key, value, 2048),
            call((1072, 5), key, value, 2072),
            // "map" is a host name, so the two bytes after it make it none.
            call(map, key, (1024, 5), 2096),
            call(map, key, value, 2120),
            call(map, map, value, 2144),
        ]
        .concat(),
    };
    let mut instance = bench.instance(&guest).await;
    let routed = bench.route(&mut instance).expect("a decision");
    let results: Vec<(u8, u8)> = (0..5)
        .map(|i| (body(&routed)[i * 24], body(&routed)[i * 24 + 8]))
        .collect();
    assert_eq!(
        results[..3],
        [(1, 0), (1, 1), (1, 2)],
        "no such bucket, access denied, invalid"
    );
    assert_eq!(results[3].0, 0, "written");
    assert_eq!(results[4], (1, 3), "quota");

    let guest = Guest {
        data: &format!("{STRINGS}{PASS}"),
        init: "",
        route: &format!("{PUT} unreachable"),
    };
    let mut instance = bench.instance(&guest).await;
    assert!(matches!(
        bench.route(&mut instance),
        Err(RouteError::Trap(_))
    ));
}

#[tokio::test]
async fn compare_and_set_of_another_revision_is_a_conflict_that_tells_it() {
    let bench = Bench::new().await;
    bench.put("map", "key", "10.0.0.1:1").await;
    let revision = bench.store.snapshot().revision().0;
    let guest = Guest {
        data: &format!("{STRINGS}{REPLY}"),
        init: "",
        route: "(call $cas (i32.const 1024) (i32.const 3) (i32.const 1040) (i32.const 3) (i32.const 0) (i64.const 0)
            (i32.const 1) (i32.const 1056) (i32.const 11) (i32.const 2048))",
    };
    let mut instance = bench.instance(&guest).await;
    let routed = bench.route(&mut instance).expect("a decision");
    assert_eq!(
        [body(&routed)[0], body(&routed)[8], body(&routed)[16]],
        [1, 4, 1]
    );
    assert_eq!(u64::from(body(&routed)[24]), revision);
    assert!(routed.writes.is_none());
}

#[tokio::test]
async fn keys_are_those_of_the_store_under_the_writes_of_the_call() {
    let bench = Bench::new().await;
    bench.put("map", "id2", "10.0.0.2:1").await;
    bench.put("map", "other", "10.0.0.2:1").await;
    let generation = {
        let guest = Guest {
            data: PASS,
            init: "",
            route: "",
        };
        bench.deploy(guest.build()).await.expect("a version");
        bench.active()
    };
    let mut state = imports::HostState::new(Arc::clone(&generation.sandbox), 0);
    state.begin(&mut Some(head()), &bench.store.snapshot());
    let grant = generation.sandbox.grants["map"];
    state
        .write(grant, "id1", Action::Delete, Expect::Any)
        .expect("granted");
    state
        .put_value(grant, "id0", b"10.0.0.1:1".to_vec(), None)
        .expect("granted");
    assert_eq!(state.list(grant.bucket, "id", None, 10), ["id0", "id2"]);
    assert_eq!(state.list(grant.bucket, "id", None, 1), ["id0"]);
    assert_eq!(
        state.list(grant.bucket, "", Some("id0"), 10),
        ["id2", "other"]
    );
}

#[tokio::test]
async fn settings_are_read_and_unknown_ones_are_none() {
    let bench = Bench::new().await;
    let guest = Guest {
        data: &format!(r#"{REPLY}(data (i32.const 1024) "greeting")"#),
        init: "",
        route: "(call $setting (i32.const 1024) (i32.const 8) (i32.const 2048))
            (call $setting (i32.const 1024) (i32.const 5) (i32.const 2064))
            (memory.copy (i32.const 2080) (i32.load (i32.const 2056)) (i32.const 5))",
    };
    let mut instance = bench.instance(&guest).await;
    let routed = bench.route(&mut instance).expect("a decision");
    let body = body(&routed);
    assert_eq!([body[0], body[4], body[12]], [0, 1, 5]);
    assert_eq!([body[16], body[20]], [0, 0]);
    assert_eq!(&body[32..37], b"hello");
}

#[tokio::test]
async fn log_lines_over_the_rate_are_counted() {
    let bench = Bench::with(|config| config.limits.log_lines_per_second = 10).await;
    let guest = Guest {
        data: PASS,
        init: "",
        route: "(local $i i32) (loop $l
            (call $log (i32.const 2) (i32.const 1024) (i32.const 0) (i32.const 1024) (i32.const 0))
            (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000))))",
    };
    let mut instance = bench.instance(&guest).await;
    bench.route(&mut instance).expect("a decision");
    let dropped = bench.active().stats(0).log_dropped.load(Ordering::Relaxed);
    // A second may end during the call.
    assert!((980..=990).contains(&dropped), "{dropped} dropped");
}

#[tokio::test]
async fn an_instance_has_its_share_of_calls() {
    let bench = Bench::with(|config| config.limits.calls_max = 2).await;
    let guest = Guest {
        data: PASS,
        init: "",
        route: "",
    };
    let mut instance = bench.instance(&guest).await;
    bench.route(&mut instance).expect("a decision");
    assert!(!instance.is_poisoned());
    bench.route(&mut instance).expect("a decision");
    assert!(instance.is_poisoned());
}

#[tokio::test]
async fn handles_of_one_call_are_bounded() {
    let bench = Bench::new().await;
    let guest = Guest {
        data: r#"(data (i32.const 0) "\00\00\00\00" "\00\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00"
            "\60\00\00\00\01\00\00\00") (data (i32.const 96) "\20\04\00\00\03\00\00\00")
            (data (i32.const 1024) "id1") (data (i32.const 1056) "map")"#,
        init: "",
        route: "(loop $l (call $entry (i32.const 0) (i32.const 1024) (i32.const 3) (i32.const 1) (i32.const 80) (i32.const 2048))
            (br $l))",
    };
    let mut instance = bench.instance(&guest).await;
    let error = bench.route(&mut instance).expect_err("too many");
    assert!(
        error.to_string().contains("more than 64 entries"),
        "{error}"
    );
}
