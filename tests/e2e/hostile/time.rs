//! What takes time of a request: it is cut at the plugin's deadline, wherever it is at.

use super::guest::{Guest, TAKES_PATH};
use super::{counted, proxy, serves};
use crate::harness::fixture;

const FOREVER: &str = "(loop (br 0))";

/// Each with how its calls are counted.
fn guests() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    vec![
        (
            "a loop",
            Guest { route: FOREVER, ..Guest::default() }.build(),
            "deadline",
        ),
        (
            "a loop that fills all memory each time",
            Guest {
                route: "(loop (memory.fill (i32.const 4096) (i32.const 1) (i32.const 14680064)) (br 0))",
                pages: 225,
                ..Guest::default()
            }
            .build(),
            "deadline",
        ),
        (
            "a loop that copies all memory each time",
            Guest {
                route: "(loop (memory.copy (i32.const 4096) (i32.const 8192) (i32.const 14680064)) (br 0))",
                pages: 226,
                ..Guest::default()
            }
            .build(),
            "deadline",
        ),
        (
            "a loop when the host asks for memory",
            Guest { items: TAKES_PATH, realloc: FOREVER, ..Guest::default() }.build(),
            "deadline",
        ),
        (
            "a loop after the host has read the decision",
            Guest { after: FOREVER, ..Guest::default() }.build(),
            "deadline",
        ),
        ("a sleep", fixture("sleep"), "trap"),
    ]
}

#[tokio::test]
async fn whatever_takes_too_long_is_cut_and_other_routes_serve_on() {
    let (proxy, upstream) = proxy().await;
    for (name, component, outcome) in guests() {
        proxy.admin().push_ok("hostile", component).await;
        for _ in 0..3 {
            let answer = proxy.get("/hostile", &[("x-sleep", "1")]).await;
            assert_eq!(answer.status, 503, "{name}: {}", answer.text());
            serves(&proxy, &upstream).await;
        }
        let path = format!("/hostile?{}", name.replace(' ', "-"));
        assert_eq!(proxy.get(&path, &[("x-sleep", "1")]).await.status, 503);
        counted(&proxy, outcome, 1.0).await;
    }
    counted(&proxy, "deadline", 20.0).await;
    counted(&proxy, "trap", 4.0).await;
}

#[tokio::test]
async fn requests_of_other_routes_are_answered_while_a_guest_loops_on_each_worker() {
    let (proxy, upstream) = proxy().await;
    let looping = Guest {
        route: FOREVER,
        ..Guest::default()
    };
    proxy.admin().push_ok("hostile", looping.build()).await;
    let address = proxy.address;
    let flood: Vec<_> = (0..20)
        .map(|_| tokio::spawn(crate::harness::Request::get("/hostile").send(address)))
        .collect();
    for _ in 0..5 {
        serves(&proxy, &upstream).await;
    }
    for one in flood {
        assert_eq!(one.await.expect("answered").status, 503);
    }
}
