//! What the tests stand on: a proxy process, upstreams, and clients that speak to both through real sockets.
//!
//! Nothing here sleeps for a guess: every wait is for an event and ends in a panic that says what did not happen.

pub mod admin;
pub mod certificates;
pub mod client;
pub mod clock;
pub mod events;
pub mod proxy;
pub mod raw;
pub mod relay;
pub mod servers;
pub mod upstream;
pub mod websocket;

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use admin::Admin;
pub use client::Request;
pub use proxy::{Setup, TestProxy};
pub use raw::Raw;
pub use upstream::{Answer, TestUpstream};

/// How long anything may take that should happen at once: long, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits for a future.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// Looks again and again until there is something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Says aloud why a test has tested nothing. Not by a macro: what these print is shown of failed tests only.
pub fn not_tested(why: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "!!! {why}: nothing was tested with it");
}

/// The component of a guest in `fixtures/guests/examples`.
pub fn fixture(name: &str) -> Vec<u8> {
    let path = fixture_path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Where that component is.
pub fn fixture_path(name: &str) -> PathBuf {
    PathBuf::from(env!("THROWBAR_FIXTURES"))
        .join(name)
        .with_extension("wasm")
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that no one has by accident: the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}
