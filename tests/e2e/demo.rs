//! The demonstration leaves nothing behind, whatever ends it.

use crate::harness::proxy::command;
use crate::harness::{eventually, soon, websocket};
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout};

/// A running demonstration, with a directory of its own for temporary files.
struct Demo {
    child: Child,
    output: BufReader<ChildStdout>,
    temporary: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        let temporary = tempfile::tempdir().expect("a directory");
        let mut child = command()
            .args(["demo", "--listen", "127.0.0.1:0"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command under test runs");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            output,
            temporary,
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.temporary.path()).expect("a directory");
        entries.map(|entry| entry.expect("read").path()).collect()
    }

    /// Reads on until a line holds a text, and gives that line.
    async fn says(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = soon(text, self.output.read_line(&mut line)).await;
            assert!(read.expect("read") > 0, "it ended before {text:?}");
        }
        line
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().expect("it runs") as i32);
        kill_process(pid.expect("a process id"), signal).expect("the process is ours");
    }

    async fn code(&mut self) -> Option<i32> {
        let ended = soon("the end of the demonstration", self.child.wait()).await;
        ended.expect("it can be waited for").code()
    }
}

#[tokio::test]
async fn ctrl_c_in_the_middle_of_the_start_removes_its_directory() {
    let mut demo = Demo::start();
    eventually("its directory", async || {
        demo.directories().first().map(|_| ())
    })
    .await;
    demo.signal(Signal::INT);
    assert_eq!(demo.code().await, Some(1));
    assert_eq!(demo.directories(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn one_ctrl_c_ends_it_in_good_order_and_a_second_one_at_once() {
    for signals in [1, 2] {
        let mut demo = Demo::start();
        let proxy = demo.says("http://").await;
        let proxy = proxy.trim().rsplit("http://").next().expect("an address");
        let curl = demo.says("X-Port: ").await;
        let port = curl.split("X-Port: ").nth(1).expect("a port");
        let port = &port[..port.find('\'').expect("the end of the port")];
        demo.says("streams ls").await;
        let proxy = proxy.parse().expect("an address");
        // An open stream holds the drain up.
        let mut stream = None;
        if signals == 2 {
            let fields = [("x-id", "id1"), ("x-port", port)];
            stream = Some(websocket::open(proxy, &fields).await);
        }
        for _ in 0..signals {
            demo.signal(Signal::INT);
            let refused = async || tokio::net::TcpStream::connect(proxy).await.err();
            eventually("the end of accepting", refused).await;
        }
        assert_eq!(demo.code().await, Some(signals - 1));
        drop(stream);
        assert_eq!(demo.directories(), [] as [PathBuf; 0]);
    }
}
