//! Real servers of engines that proxies share, on loopback ports of their own, ended by their own process ids.

use super::clock::{self, Clock};
use super::eventually;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;
use throwbar_host::store::BackendKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

pub mod guarded;

use guarded::Guard;

/// With this set, a test that does not find its server fails.
const REQUIRED: &str = "THROWBAR_REQUIRE_SERVERS";

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// etcd.
    Etcd,
    /// Redis.
    Redis,
}

impl Engine {
    /// As the config says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Redis => "redis",
        }
    }

    fn is_built(self) -> bool {
        match self {
            Self::Etcd => BackendKind::Etcd.is_built(),
            Self::Redis => BackendKind::Redis.is_built(),
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Redis => "redis-server",
        }
    }
}

/// One server.
pub struct Server {
    place: Place,
    child: Child,
    /// If it has one of its own, and how far ahead that is.
    clock: Option<(Clock, i64)>,
}

/// What a server is started with, and again.
struct Place {
    engine: Engine,
    program: PathBuf,
    dir: TempDir,
    /// Of clients, and of members.
    ports: [u16; 2],
    /// Its name among the members, and all of them, as etcd has to be told.
    member: String,
    members: String,
    guard: Option<Guard>,
}

impl Server {
    /// Starts one; none, with a loud line, if it is not installed or the proxy was built without it, and neither need be.
    pub async fn start(engine: Engine) -> Option<Self> {
        Self::start_all(engine, 1, None, false).await?.pop()
    }

    /// Starts one with a clock of its own; none, with a loud line, also if there can be no such clock.
    pub async fn start_with_clock(engine: Engine) -> Option<Self> {
        let seconds = clock::can_be_set().then_some(0)?;
        Self::start_all(engine, 1, Some(seconds), false)
            .await?
            .pop()
    }

    /// Starts three members of one etcd, each with a clock of its own.
    pub async fn start_members_with_clocks() -> Option<Vec<Self>> {
        let seconds = clock::can_be_set().then_some(0)?;
        Self::start_all(Engine::Etcd, 3, Some(seconds), false).await
    }

    async fn start_all(
        engine: Engine,
        count: usize,
        seconds: Option<i64>,
        guarded: bool,
    ) -> Option<Vec<Self>> {
        if !engine.is_built() {
            missing(&format!("throwbar is built without {}", engine.name()));
            return None;
        }
        let program = installed(engine.program())?;
        loop {
            let ports: Vec<_> = (0..count).map(|_| [free_port(), free_port()]).collect();
            let members: Vec<String> = ports
                .iter()
                .enumerate()
                .map(|(number, [_, peer])| format!("m{number}=http://127.0.0.1:{peer}"))
                .collect();
            let places = ports.into_iter().enumerate().map(|(number, ports)| Place {
                engine,
                program: program.clone(),
                dir: TempDir::new().expect("a directory can be made"),
                ports,
                member: format!("m{number}"),
                members: members.join(","),
                guard: guarded.then(Guard::new),
            });
            let mut servers: Vec<_> = places.map(|place| Self::spawned(place, seconds)).collect();
            let mut all = true;
            for server in &mut servers {
                // Somebody else may have taken a port meanwhile.
                all = all && server.answers().await;
            }
            if all {
                return Some(servers);
            }
        }
    }

    fn spawned(place: Place, seconds: Option<i64>) -> Self {
        let started = Clock::spawn_if(&mut place.command(), seconds);
        let (child, clock) = started.expect("an installed program can be started");
        Self {
            place,
            child,
            clock: clock.zip(seconds),
        }
    }

    /// Where proxies reach it, as `host:port`.
    pub fn address(&self) -> String {
        let guard = self.place.guard.as_ref();
        let port = guard.map_or(self.place.ports[0], |guard| guard.port);
        format!("127.0.0.1:{port}")
    }

    /// What a config says of it.
    pub fn config(&self) -> String {
        Self::config_of(std::slice::from_ref(self))
    }

    /// What a config says of several members.
    pub fn config_of(servers: &[Self]) -> String {
        let addresses: Vec<String> = servers.iter().map(Self::address).collect();
        let guarded = match servers[0].place.guard {
            Some(_) => guarded::CONFIG,
            None => "",
        };
        match servers[0].place.engine {
            Engine::Etcd => {
                format!("[store.etcd]\nendpoints = {addresses:?}\ntimeout = \"3s\"\n{guarded}")
            }
            Engine::Redis => {
                let [address] = &addresses[..] else {
                    panic!("there is one Redis");
                };
                format!("[store.redis]\nserver = \"{address}\"\ntimeout = \"3s\"\n{guarded}")
            }
        }
    }

    /// Ends it as kill -9 does.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it was running");
    }

    /// Starts it on what it had.
    pub async fn start_again(&mut self) {
        let seconds = self.clock.as_ref().map(|(_, seconds)| *seconds);
        let started = Clock::spawn_if(&mut self.place.command(), seconds);
        let (child, clock) = started.expect("an installed program can be started");
        (self.child, self.clock) = (child, clock.zip(seconds));
        assert!(self.answers().await, "it starts on its own port");
    }

    /// Makes its clock jump: it is so many seconds ahead of the machine's. Returns when the server itself says so.
    pub async fn set_clock(&mut self, seconds: i64) {
        let (clock, shift) = self.clock.as_mut().expect("it has a clock of its own");
        clock.set(seconds).expect("it runs");
        *shift = seconds;
        eventually("the server's time is the one it was told", async || {
            let (before, told) = (clock::machine_s(), self.told_s().await?);
            let expected = before + seconds - 1..=clock::machine_s() + seconds + 1;
            expected.contains(&told).then_some(())
        })
        .await;
    }

    /// Seconds since 1970, as it says itself.
    async fn told_s(&self) -> Option<i64> {
        let question: &[u8] = match self.place.engine {
            Engine::Etcd => b"GET /health HTTP/1.0\r\n\r\n",
            Engine::Redis => b"TIME\r\nQUIT\r\n",
        };
        let answer = asked(self.place.ports[0], question).await;
        let answer = String::from_utf8_lossy(&answer);
        let mut lines = answer.lines();
        match self.place.engine {
            Engine::Etcd => {
                let date = lines.find_map(|line| line.strip_prefix("Date: "))?;
                let told = httpdate::parse_http_date(date).ok()?;
                let told = told.duration_since(std::time::UNIX_EPOCH).ok()?;
                i64::try_from(told.as_secs()).ok()
            }
            Engine::Redis => lines.nth(2)?.parse().ok(),
        }
    }

    /// Whether it leads the other members of its etcd.
    pub async fn is_leader(&self) -> bool {
        let metrics = asked(self.place.ports[0], b"GET /metrics HTTP/1.0\r\n\r\n").await;
        let metrics = String::from_utf8_lossy(&metrics);
        metrics
            .lines()
            .any(|line| line == "etcd_server_is_leader 1")
    }

    /// Makes it forget what led to what it has: etcd all revisions but the newest, Redis all of the log but its last entry.
    pub async fn forget_log(&self) {
        let port = self.place.ports[0];
        match self.place.engine {
            Engine::Etcd => {
                // Any key: the newest revision is told beside it.
                let found = etcd(port, "kv/range", json!({ "key": "AA==" })).await;
                let newest = found["header"]["revision"].clone();
                assert!(newest.is_string(), "{found}");
                let compacted = etcd(port, "kv/compaction", json!({ "revision": newest })).await;
                assert!(compacted["header"].is_object(), "{compacted}");
            }
            Engine::Redis => {
                let trim = b"XTRIM {throwbar}:log MAXLEN 1\r\nQUIT\r\n";
                let answer = asked(port, trim).await;
                let answer = String::from_utf8_lossy(&answer);
                let removed = answer
                    .strip_prefix(':')
                    .and_then(|rest| rest.lines().next());
                let removed: Option<u64> = removed.and_then(|count| count.parse().ok());
                assert!(removed.is_some_and(|count| count > 0), "{answer}");
            }
        }
    }

    /// Makes a Redis the replica of another one. Returns when it has everything that was written there up to now.
    pub async fn follow(&self, master: &Self) {
        // It would wait for more replicas to come.
        master.does("CONFIG SET repl-diskless-sync-delay 0").await;
        let port = master.place.ports[0];
        self.does(&format!("REPLICAOF 127.0.0.1 {port}")).await;
        master.is_followed().await;
    }

    /// Waits until a replica has everything that was written here up to now.
    pub async fn is_followed(&self) {
        eventually("a replica has everything", async || {
            // It waits for what was written on the same connection.
            let wait = b"INCR waits\r\nWAIT 1 100\r\nQUIT\r\n";
            let answer = asked(self.place.ports[0], wait).await;
            let answer = String::from_utf8_lossy(&answer);
            (answer.lines().nth(1) == Some(":1")).then_some(())
        })
        .await;
    }

    /// Makes a replica a master, with what it has.
    pub async fn promote(&self) {
        self.does("REPLICAOF NO ONE").await;
    }

    /// Has a Redis do a command.
    async fn does(&self, command: &str) {
        let question = format!("{command}\r\nQUIT\r\n");
        let answer = asked(self.place.ports[0], question.as_bytes()).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("+OK"), "{command}: {answer}");
    }

    /// Waits until it answers; false if it ended instead.
    async fn answers(&mut self) -> bool {
        let (engine, port) = (self.place.engine, self.place.ports[0]);
        let child = &mut self.child;
        eventually("the server answers", async || {
            if !matches!(child.try_wait(), Ok(None)) {
                return Some(false);
            }
            is_well(engine, port).await.then_some(true)
        })
        .await
    }
}

impl Place {
    fn command(&self) -> Command {
        let (dir, [port, peer]) = (self.dir.path().display(), self.ports);
        let mut arguments = match self.engine {
            Engine::Etcd => vec![
                format!("--name={}", self.member),
                format!("--data-dir={dir}/etcd"),
                format!("--listen-client-urls=http://127.0.0.1:{port}"),
                format!("--advertise-client-urls=http://127.0.0.1:{port}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster={}", self.members),
            ],
            Engine::Redis => vec![
                "--bind".to_owned(),
                "127.0.0.1".to_owned(),
                "--port".to_owned(),
                port.to_string(),
                "--dir".to_owned(),
                dir.to_string(),
                "--appendonly".to_owned(),
                "yes".to_owned(),
                "--appendfsync".to_owned(),
                "always".to_owned(),
                "--save".to_owned(),
                String::new(),
            ],
        };
        if let Some(guard) = &self.guard {
            arguments.extend(guard.arguments(self.engine, self.dir.path(), port));
        }
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

async fn is_well(engine: Engine, port: u16) -> bool {
    let (question, expected): (&[u8], &[u8]) = match engine {
        Engine::Etcd => (b"GET /health HTTP/1.0\r\n\r\n", b"\"health\":\"true\""),
        Engine::Redis => (b"PING\r\nQUIT\r\n", b"+PONG"),
    };
    let answer = asked(port, question).await;
    answer.windows(expected.len()).any(|part| part == expected)
}

/// What etcd answers to a call, as JSON.
async fn etcd(port: u16, call: &str, body: Value) -> Value {
    let body = body.to_string();
    let question = format!(
        "POST /v3/{call} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = asked(port, question.as_bytes()).await;
    let answer = String::from_utf8_lossy(&answer);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    let body = body.and_then(|body| serde_json::from_str(body).ok());
    body.unwrap_or_else(|| panic!("{call}: {answer}"))
}

/// What is answered to a question before the connection is closed; nothing if there is none.
async fn asked(port: u16, question: &[u8]) -> Vec<u8> {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(question).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    asked.await.unwrap_or_default()
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        missing(&format!("{program} is not installed"));
    }
    found
}

/// Says aloud that something cannot be tested here; where all tests have to run, it panics.
pub fn missing(what: &str) {
    assert!(
        std::env::var_os(REQUIRED).is_none(),
        "{what}, and {REQUIRED} is set"
    );
    super::not_tested(what);
}

/// A port of the loopback that nobody had a moment ago, below those that Linux gives to clients: one of these, trying to
/// reach a server that is away, could be given the very port it waits for, and keep it.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Other processes of the same tests look for some, too.
    let begin = std::process::id().wrapping_mul(7_919);
    let ports = std::iter::repeat_with(|| {
        let at = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        u16::try_from(FIRST + at).expect("it is below the last port")
    });
    let mut ports = ports.take(COUNT as usize);
    let free = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("a port is free")
}
