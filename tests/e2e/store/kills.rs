//! kill -9 at any moment: what was acknowledged is there, whole, and nothing that was never written.

use super::faults::{NOTES, copy_files, export};
use crate::harness::{Request, Setup, TestProxy, soon};
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

/// Lets all writers write behind their last number, and kills the proxy after so many acknowledgements. Returns what each
/// was told last.
async fn killed_beside_writes(
    proxy: &mut TestProxy,
    last: &[u64; WRITERS as usize],
    acknowledgements: u64,
) -> Vec<u64> {
    let token = std::fs::read_to_string(proxy.file("data/admin.token")).expect("a token");
    let (told, mut acknowledged) = mpsc::unbounded_channel();
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let from = last[number as usize] + 1;
            let token = token.trim().to_owned();
            writer(proxy.admin_address, token, number, from, told.clone())
        })
        .collect();
    for _ in 0..acknowledgements {
        soon("an acknowledgement", acknowledged.recv())
            .await
            .expect("writers go on");
    }
    proxy.kill().await;
    let mut before = Vec::new();
    for writer in writers {
        before.push(soon("a writer ends", writer).await.expect("it ended"));
    }
    before
}

/// Checks that all is there that was acknowledged, whole, and nothing else; returns the count of each writer.
fn counted(
    found: &BTreeMap<String, String>,
    acknowledged: &[u64],
    when: &str,
) -> [u64; WRITERS as usize] {
    let mut counts = [0; WRITERS as usize];
    for (writer, &acknowledged) in acknowledged.iter().enumerate() {
        let count = number(found, &format!("count-{writer}"));
        // One more may have been on its way.
        let expected = acknowledged..=acknowledged + 1;
        assert!(
            expected.contains(&count),
            "{when}: {count}, expected {expected:?}"
        );
        for slot in 0..RING {
            // The newest of this slot that is not after the count; 0 if there was none.
            let back = (count + RING - slot) % RING;
            let newest = count.saturating_sub(back);
            let key = format!("{writer}-{slot}");
            if newest > 0 {
                assert_eq!(number(found, &key), newest, "{when}: {key}");
            }
            let twin = found.get(&format!("twin-{key}"));
            assert_eq!(twin, found.get(&key), "{when}: {key} and its twin");
        }
        counts[writer] = count;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_or_torn_by_kill_9() {
    let mut proxy = TestProxy::start(NOTES).await;
    let mut last = [0; WRITERS as usize];
    let mut random = 88_172_645_463_325_252_u64;
    for round in 0..rounds() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // From the very first on, in the midst of what follows.
        let before = killed_beside_writes(&mut proxy, &last, 1 + random % 60).await;
        proxy.start_again().await;
        let found = export(&proxy).await;
        last = counted(&found, &before, &format!("round {round}"));
    }
    assert!(last.iter().sum::<u64>() > rounds());
}

/// The bytes of the header in which the engine notes how many pages the file has: by its length, before it reads on.
const PAGES: std::ops::Range<usize> = 24..32;

/// What a machine that stops may do to the file beside what a kill does: its end is missing, or is not the file's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_proxys_file_with_a_torn_tail_has_every_write_or_is_refused_and_left_as_it_is() {
    let mut proxy = TestProxy::start(NOTES).await;
    let acknowledged = killed_beside_writes(&mut proxy, &[0; WRITERS as usize], 400).await;
    let whole = std::fs::read(proxy.file("data/store.redb")).expect("the data file");
    let length = whole.len();
    let cut = [1, 100, 4_095, 4_096, 65_536, length / 2, length - 8_192];
    let cut = cut.map(|by| whole[..length - by].to_vec());
    let longer = [0, 1, 1_000, 4_096, 1 << 20].map(|by| [whole.clone(), vec![0x5a; by]].concat());
    let (mut opened, mut refused) = (Vec::new(), Vec::new());
    for torn in cut.into_iter().chain(longer) {
        let bytes = torn.len();
        let when = format!("{bytes} bytes of {length}");
        let mut dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("data/store.redb");
        copy_files(&proxy.file("data/store.redb"), &dir.path().join("data"));
        std::fs::write(&file, &torn).expect("written");
        let text = Setup::new(NOTES).text();
        std::fs::write(dir.path().join("throwbar.toml"), text).expect("written");
        // What is refused once is refused for good.
        let mut times = 0;
        loop {
            match TestProxy::try_start_in(dir, &["serve", "throwbar.toml"]).await {
                Ok(proxy) => {
                    assert_eq!(times, 0, "{when}: it was refused before");
                    counted(&export(&proxy).await, &acknowledged, &when);
                    opened.push(bytes);
                    break;
                }
                Err((same, said)) => {
                    dir = same;
                    assert!(said.contains("exit status: 1\n"), "{when}: {said}");
                    assert!(said.contains("data/store.redb: corrupt"), "{when}: {said}");
                    assert!(!said.contains("panicked"), "{when}: {said}");
                    let mut left = std::fs::read(&file).expect("the data file");
                    left[PAGES].copy_from_slice(&torn[PAGES]);
                    assert!(left == torn, "{when}: it was changed");
                }
            }
            times += 1;
            if times == 2 {
                refused.push(bytes);
                break;
            }
        }
    }
    // Both happen: what a kill alone leaves is no torn tail, and two pages are no store.
    assert!(opened.contains(&length), "{opened:?} {refused:?}");
    assert!(refused.contains(&8_192), "{opened:?} {refused:?}");
}

fn number(found: &BTreeMap<String, String>, key: &str) -> u64 {
    found
        .get(key)
        .map_or(0, |value| value.parse().expect("a number"))
}
