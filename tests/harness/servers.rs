//! Real servers of engines that proxies share, on loopback ports of their own, ended by their own process ids.

use super::eventually;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;
use throwbar_host::store::BackendKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

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
    engine: Engine,
    program: PathBuf,
    dir: TempDir,
    /// Of clients, and of members.
    ports: [u16; 2],
    child: Child,
}

impl Server {
    /// Starts one; none, with a loud line, if it is not installed or the proxy was built without it, and neither need be.
    pub async fn start(engine: Engine) -> Option<Self> {
        if !engine.is_built() {
            missing(&format!("throwbar is built without {}", engine.name()));
            return None;
        }
        let program = installed(engine.program())?;
        loop {
            let dir = TempDir::new().expect("a directory can be made");
            let ports = [free_port(), free_port()];
            let child = spawn(engine, &program, &dir, ports);
            let mut server = Self {
                engine,
                program: program.clone(),
                dir,
                ports,
                child,
            };
            // Somebody else may have taken a port meanwhile.
            if server.answers().await {
                return Some(server);
            }
        }
    }

    /// Where it is, as `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// What a config says of it.
    pub fn config(&self) -> String {
        let address = self.address();
        match self.engine {
            Engine::Etcd => {
                format!("[store.etcd]\nendpoints = [\"{address}\"]\ntimeout = \"3s\"\n")
            }
            Engine::Redis => format!("[store.redis]\nserver = \"{address}\"\ntimeout = \"3s\"\n"),
        }
    }

    /// Ends it as kill -9 does.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it was running");
    }

    /// Starts it on what it had.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.engine, &self.program, &self.dir, self.ports);
        assert!(self.answers().await, "it starts on its own port");
    }

    /// Waits until it answers; false if it ended instead.
    async fn answers(&mut self) -> bool {
        let (engine, port) = (self.engine, self.ports[0]);
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

fn spawn(engine: Engine, program: &Path, dir: &TempDir, [port, peer]: [u16; 2]) -> Child {
    let dir = dir.path().display();
    let arguments = match engine {
        Engine::Etcd => vec![
            "--name=m".to_owned(),
            format!("--data-dir={dir}/etcd"),
            format!("--listen-client-urls=http://127.0.0.1:{port}"),
            format!("--advertise-client-urls=http://127.0.0.1:{port}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-cluster=m=http://127.0.0.1:{peer}"),
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
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("an installed program can be started")
}

async fn is_well(engine: Engine, port: u16) -> bool {
    let (ask, expected): (&[u8], &[u8]) = match engine {
        Engine::Etcd => (b"GET /health HTTP/1.0\r\n\r\n", b"\"health\":\"true\""),
        Engine::Redis => (b"PING\r\nQUIT\r\n", b"+PONG"),
    };
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(ask).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = asked.await.unwrap_or_default();
    answer.windows(expected.len()).any(|part| part == expected)
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

fn missing(what: &str) {
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
