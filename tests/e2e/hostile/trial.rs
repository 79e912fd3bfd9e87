//! What compiles and is refused by its trial: it is instantiated, and `init` is called, under the limits of the plugin.

use super::guest::Guest;
use super::{grows_by_less_than, proxy, serves};
use crate::harness::fixture;

fn items(items: &str) -> Vec<u8> {
    Guest {
        items,
        ..Guest::default()
    }
    .build()
}

fn init(init: &str) -> Vec<u8> {
    let items = "(func $deeper (param i32) (result i32) (i32.add (call $deeper (local.get 0)) (i32.const 1)))";
    Guest {
        items,
        init,
        ..Guest::default()
    }
    .build()
}

fn beside(items: &str) -> Vec<u8> {
    super::guest::beside(items)
}

#[tokio::test]
async fn what_fails_its_trial_is_refused_with_a_reason_and_the_old_version_serves() {
    let (proxy, upstream) = proxy().await;
    let admin = proxy.admin();
    let memories = "(core module $one (memory 1))".to_owned()
        + &"(core instance (instantiate $one))".repeat(200);
    let instances =
        "(core module $one)".to_owned() + &"(core instance (instantiate $one))".repeat(10_000);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a trap in init", fixture("trap-init"), "trap: "),
        (
            "a loop in init",
            fixture("spin-init"),
            "deadline of 1s exceeded",
        ),
        (
            "no end of calls in init",
            init("(drop (call $deeper (i32.const 0)))"),
            "call stack exhausted",
        ),
        (
            "a trap at the start",
            items("(func $s unreachable) (start $s)"),
            "unreachable",
        ),
        (
            "a loop at the start",
            items("(func $s (loop (br 0))) (start $s)"),
            "deadline of 1s exceeded",
        ),
        (
            "4 GiB of memory",
            beside("(core module $big (memory 65536)) (core instance (instantiate $big))"),
            "memory",
        ),
        (
            "more memory than the plugin may have",
            fixture("big-memory"),
            "memory",
        ),
        (
            "a table of 400,000,000",
            beside(
                "(core module $big (table 400000000 funcref)) (core instance (instantiate $big))",
            ),
            "table",
        ),
        (
            "a table of 10,000,000",
            beside(
                "(core module $big (table 10000000 funcref)) (core instance (instantiate $big))",
            ),
            "table",
        ),
        ("200 memories", beside(&memories), "maximum"),
        (
            "200 memories in a module",
            beside(&format!(
                "(core module $many {}) (core instance (instantiate $many))",
                "(memory 1)".repeat(200)
            )),
            "memor",
        ),
        ("10,000 instances", beside(&instances), "instances"),
        (
            "data outside of its memory",
            items("(data (i32.const 65536) \"x\")"),
            "out of bounds",
        ),
    ];
    let active = admin.plugin("router").await["active"].clone();
    grows_by_less_than(&proxy, 64, async {
        for (name, component, expected) in cases {
            let response = admin.push("router", component).await;
            let told = response.text();
            assert_eq!(response.status, 422, "{name}: {told}");
            assert!(told.contains(expected), "{name}: {told}");
            assert_eq!(admin.plugin("router").await["active"], active, "{name}");
            serves(&proxy, &upstream).await;
        }
    })
    .await;
}
