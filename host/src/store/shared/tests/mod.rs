//! One suite that every engine passes against real servers, and what is particular to each.
//!
//! Servers are started by each test on free ports of the loopback, with directories of their own, and ended by it. If the
//! program is missing, a test says so loudly and passes, unless `THROWBAR_REQUIRE_SERVERS` is set.

mod artifacts;
mod certificates;
mod ends;
#[cfg(feature = "etcd")]
mod etcd;
mod follower;
mod model;
#[cfg(feature = "redis")]
mod redis;
mod relay;
mod server;
mod sizes;
mod suite;
mod through_store;

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::timeout;

/// What must have happened by now.
const SOON: Duration = Duration::from_secs(30);
/// Longest time for a test.
const TEST: Duration = Duration::from_secs(240);
const ONE: &str = "one";
const TWO: &str = "two";

/// An engine's server, started for one test.
trait Server: Sized {
    type Engine: Engine;

    /// None if it is not installed.
    async fn start() -> Option<Self>;

    fn address(&self) -> String;

    /// A new engine, as another proxy would have, that reaches the server at this address.
    fn engine(&self, address: &str, prefix: &str) -> Self::Engine;

    /// The same, with the settings of a config that says only where the server is.
    fn engine_by_default(&self, prefix: &str) -> Self::Engine;

    /// The same, for a server that is to be slow to remove what is over.
    fn engine_removing_late(&self, prefix: &str) -> Self::Engine;

    /// Gives it that much to remove after this time, if that makes it slow.
    async fn has_much_to_remove(&self, after: Duration);

    /// As kill -9 does.
    fn kill(&mut self);

    /// With the same address and data.
    async fn start_again(&mut self);

    /// Forgets the transactions before the newest one.
    async fn forget_log(&self, prefix: &str);
}

/// Runs a test on a server of its own.
fn with_server<S: Server>(test: impl AsyncFnOnce(S)) {
    run(async {
        if let Some(server) = S::start().await {
            test(server).await;
        }
    });
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let ended = runtime.block_on(async { timeout(TEST, test).await });
    ended.expect("the test ends in time");
}

/// A server of HTTP that takes nothing it is asked, as long as the test runs.
struct HttpServer {
    address: String,
    /// Whether it was asked what it is.
    asked: Arc<AtomicBool>,
}

impl HttpServer {
    async fn start() -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let asked = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = [0; 1024];
                let length = stream.read(&mut question).await.unwrap_or(0);
                if question[..length].starts_with(b"GET /version ") {
                    told.store(true, Relaxed);
                }
                let refused =
                    b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(refused).await;
            }
        });
        Self { address, asked }
    }
}

fn buckets() -> Vec<Box<str>> {
    vec![ONE.into(), TWO.into()]
}

fn set(bucket: &str, key: &str, value: impl AsRef<[u8]>) -> SharedWrite {
    SharedWrite {
        bucket: bucket.into(),
        key: key.into(),
        value: Some(SharedValue {
            bytes: value.as_ref().into(),
            life: Life::Lasting,
        }),
    }
}

fn set_for(bucket: &str, key: &str, value: &str, ttl: Duration) -> SharedWrite {
    let mut write = set(bucket, key, value);
    if let Some(value) = &mut write.value {
        value.life = Life::For(ttl);
    }
    write
}

fn delete(bucket: &str, key: &str) -> SharedWrite {
    SharedWrite {
        bucket: bucket.into(),
        key: key.into(),
        value: None,
    }
}

fn at(bucket: &str, key: &str, revision: Option<Revision>) -> Condition {
    Condition::At {
        bucket: bucket.into(),
        key: key.into(),
        revision,
    }
}

/// Commits what must be applied.
async fn write(engine: &impl Engine, writes: Vec<SharedWrite>) -> Revision {
    match commit(engine, Vec::new(), writes).await {
        Ok(Outcome::Applied(revision)) => revision,
        other => panic!("not applied: {other:?}"),
    }
}

async fn commit(
    engine: &impl Engine,
    conditions: Vec<Condition>,
    writes: Vec<SharedWrite>,
) -> Result<Outcome, EngineError> {
    commit_whole(
        engine,
        Transaction {
            conditions,
            writes,
            ..Transaction::default()
        },
    )
    .await
}

async fn commit_whole(
    engine: &impl Engine,
    transaction: Transaction,
) -> Result<Outcome, EngineError> {
    // Boxed, for without it the stack of a test is hardly enough.
    let done = timeout(SOON, Box::pin(engine.commit(&transaction))).await;
    done.expect("a commit ends in time")
}

/// Commits until it is applied: for servers that come back.
async fn write_when_back(engine: &impl Engine, writes: Vec<SharedWrite>) -> Revision {
    let transaction = Transaction {
        writes,
        ..Transaction::default()
    };
    let applied = async {
        loop {
            match Box::pin(engine.commit(&transaction)).await {
                Ok(Outcome::Applied(revision)) => return revision,
                Err(EngineError::Unavailable(_) | EngineError::Unknown(_)) => {
                    // Another try is the only way to learn that it is back.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => panic!("not applied: {other:?}"),
            }
        }
    };
    timeout(SOON, applied).await.expect("the server comes back")
}

/// Loads until it can: for servers that come back.
async fn load(engine: &impl Engine) -> Loaded {
    let loaded = async {
        loop {
            match engine.load(&buckets()).await {
                Ok(loaded) => return loaded,
                Err(EngineError::Unavailable(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("not loaded: {error}"),
            }
        }
    };
    timeout(SOON, loaded).await.expect("the server comes back")
}
