//! kill -9 at any moment: what was acknowledged is there, whole, and nothing that was never written.

use super::faults::{NOTES, export};
use crate::harness::{Request, TestProxy, soon};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const WRITERS: u64 = 4;
/// Keys that a writer writes in turns.
const RING: u64 = 50;

/// Rounds of this run.
fn rounds() -> u64 {
    let rounds = std::env::var("THROWBAR_KILL_ROUNDS").ok();
    rounds.map_or(200, |text| {
        text.parse().expect("THROWBAR_KILL_ROUNDS is a number")
    })
}

/// One after the other, a batch of a key of its ring, its twin, and its count, until nobody answers. Returns the number
/// of the last that was acknowledged.
fn writer(
    admin: SocketAddr,
    token: String,
    writer: u64,
    from: u64,
    told: mpsc::UnboundedSender<()>,
) -> JoinHandle<u64> {
    tokio::spawn(async move {
        for number in from.. {
            let value = number.to_string();
            let key = format!("{writer}-{}", number % RING);
            let (twin, count) = (format!("twin-{key}"), format!("count-{writer}"));
            let body = json!({ "set": { key: &value, twin: &value, count: &value } });
            let request = Request::post("/v1/kv/notes/batch", body.to_string())
                .field("authorization", &format!("Bearer {token}"));
            match request.try_send(admin).await {
                Ok(response) => assert_eq!(response.status, 200, "{}", response.text()),
                Err(_) => return number - 1,
            }
            // Nobody listens any more once there are enough.
            let _ = told.send(());
        }
        unreachable!("there is always a next number")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_or_torn_by_kill_9() {
    let mut proxy = TestProxy::start(NOTES).await;
    let token = std::fs::read_to_string(proxy.file("data/admin.token")).expect("a token");
    let mut last = [0; WRITERS as usize];
    let mut random = 88_172_645_463_325_252_u64;
    for round in 0..rounds() {
        let (told, mut acknowledged) = mpsc::unbounded_channel();
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let from = last[number as usize] + 1;
                let token = token.trim().to_owned();
                writer(proxy.admin_address, token, number, from, told.clone())
            })
            .collect();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // From the very first on, in the midst of what follows.
        for _ in 0..1 + random % 60 {
            soon("an acknowledgement", acknowledged.recv())
                .await
                .expect("writers go on");
        }
        proxy.kill().await;
        let mut before = Vec::new();
        for writer in writers {
            before.push(soon("a writer ends", writer).await.expect("it ended"));
        }
        proxy.start_again().await;
        let found = export(&proxy).await;
        for (writer, acknowledged) in before.into_iter().enumerate() {
            let count = number(&found, &format!("count-{writer}"));
            // One more may have been on its way.
            let expected = acknowledged..=acknowledged + 1;
            assert!(
                expected.contains(&count),
                "round {round}: {count}, expected {expected:?}"
            );
            for slot in 0..RING {
                // The newest of this slot that is not after the count; 0 if there was none.
                let back = (count + RING - slot) % RING;
                let newest = count.saturating_sub(back);
                let key = format!("{writer}-{slot}");
                if newest > 0 {
                    assert_eq!(number(&found, &key), newest, "round {round}: {key}");
                }
                let twin = found.get(&format!("twin-{key}"));
                assert_eq!(twin, found.get(&key), "round {round}: {key} and its twin");
            }
            last[writer] = count;
        }
    }
    assert!(last.iter().sum::<u64>() > rounds());
}

fn number(found: &BTreeMap<String, String>, key: &str) -> u64 {
    found
        .get(key)
        .map_or(0, |value| value.parse().expect("a number"))
}
