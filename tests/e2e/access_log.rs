//! The access log: a line of JSON for each request, two for a stream, and never a reason to wait.

use crate::harness::proxy::{BY_HEADER, command};
use crate::harness::{
    Admin, Request, Setup, TestProxy, TestUpstream, fixture_path, soon, websocket,
};
use std::net::SocketAddr;
use std::process::Stdio;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout};

#[tokio::test]
async fn a_request_has_one_line_with_what_became_of_it() {
    let upstream = TestUpstream::echoing().await;
    let proxy = TestProxy::start(BY_HEADER).await;
    proxy.admin().set("upstreams", "id1", "127.0.0.1").await;
    let request =
        Request::post("/p?q=%22", "hello").fields(&[("x-id", "id1"), ("x-port", &upstream.port())]);
    let request = Request::fields(request, &[("host", "example.test")]);
    proxy.send(request).await;
    let line = proxy
        .access_line("the request", |line| line["method"] == "POST")
        .await;
    for (name, expected) in [
        ("kind", "request".into()),
        ("listener", "web".into()),
        ("method", "POST".into()),
        ("authority", "example.test".into()),
        ("path", "/p?q=%22".into()),
        ("protocol", "h1".into()),
        ("route", "by-id".into()),
        ("plugin", "router".into()),
        ("key", "id1".into()),
        ("endpoint", upstream.address.to_string()),
    ] {
        assert_eq!(line[name], expected.as_str(), "{name}: {line}");
    }
    for (name, expected) in [("status", 200), ("bytes_in", 5), ("bytes_out", 5)] {
        assert_eq!(line[name], expected, "{name}: {line}");
    }
    assert!(
        line["decision_ns"].as_u64().is_some_and(|ns| ns > 0),
        "{line}"
    );
    assert!(
        line["duration_us"].is_u64() && line["id"].is_string() && line["version"].is_string(),
        "{line}"
    );
    assert!(
        line["client"]
            .as_str()
            .is_some_and(|c| c.starts_with("127.0.0.1")),
        "{line}"
    );
    assert!(
        line["time"]
            .as_str()
            .is_some_and(|t| t.ends_with('Z') && t.contains('T')),
        "{line}"
    );
    assert_eq!(proxy.access_lines().len(), 1);
}

#[tokio::test]
async fn a_stream_has_a_line_at_its_open_and_one_at_its_close() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    admin.set("upstreams", "id1", "127.0.0.1").await;
    let mut socket =
        websocket::open(proxy.address, &[("x-id", "id1"), ("x-port", &echo.port())]).await;
    socket.echo("hello").await;
    let id = admin.streams_are(1).await[0]["id"].clone();
    let open = proxy
        .access_line("the open", |line| {
            line["kind"] == "stream_open" || line["kind"] == "stream-open"
        })
        .await;
    assert_eq!(
        proxy
            .access_lines()
            .iter()
            .filter(|l| l["kind"].as_str().is_some_and(|k| k.contains("close")))
            .count(),
        0
    );
    socket.close().await;
    let close = proxy
        .access_line("the close", |line| {
            line["kind"]
                .as_str()
                .is_some_and(|k| k.starts_with("stream") && k.contains("close"))
        })
        .await;
    for line in [&open, &close] {
        assert_eq!(line["key"], "id1", "{line}");
        assert_eq!(line["plugin"], "router", "{line}");
        assert_eq!(line["endpoint"], echo.address.to_string(), "{line}");
        assert!(line["version"].is_string(), "{line}");
        assert_eq!(line["stream"], id, "{line}");
    }
    assert!(close["bytes_up"].as_u64().is_some_and(|n| n > 0), "{close}");
    assert!(
        close["bytes_down"].as_u64().is_some_and(|n| n > 0),
        "{close}"
    );
}

#[tokio::test]
async fn control_characters_never_reach_the_log_raw() {
    let proxy = TestProxy::start("[[route]]\nreply = { status = 200 }\n").await;
    let mut client = proxy.raw().await;
    client
        .ask("GET /a%1b[31m HTTP/1.1\r\nHost: a\r\nX-ID: \"\\\r\n\r\n")
        .await;
    proxy
        .access_line("the request", |line| line["kind"] == "request")
        .await;
    let text = std::fs::read(proxy.file("access.log")).expect("a log");
    assert!(text.iter().all(|&b| b == b'\n' || (b >= 0x20 && b != 0x7f)));
}

/// A proxy whose standard output, and whose standard error after its addresses, nobody reads.
struct Unread {
    address: SocketAddr,
    admin: Admin,
    _output: (Child, ChildStdout, Lines<BufReader<ChildStderr>>),
    _dir: TempDir,
}

async fn unread(setup: &Setup) -> Unread {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("t.toml"), setup.text()).expect("written");
    let mut child = command()
        .current_dir(dir.path())
        .args(["serve", "t.toml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let stdout = child.stdout.take().expect("piped");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines();
    let (mut address, mut admin) = (None, None);
    while let Some(line) = soon("its addresses", stderr.next_line())
        .await
        .expect("read")
    {
        let word = line
            .split_whitespace()
            .nth(1)
            .unwrap_or_default()
            .trim_start_matches("http://")
            .to_owned();
        if line.trim_start().starts_with("listener") {
            address = word.parse().ok();
        }
        if line.trim_start().starts_with("admin") {
            admin = word.parse().ok();
        }
        if line.contains("Ctrl-C") {
            break;
        }
    }
    let token = std::fs::read_to_string(dir.path().join("data/admin.token")).expect("a token");
    Unread {
        address: address.expect("printed"),
        admin: Admin::new(admin.expect("printed"), Some(token.trim().into())),
        _output: (child, stdout, stderr),
        _dir: dir,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reading_the_log_stalls_no_request_and_drops_are_counted() {
    let mut setup = Setup::new("[[route]]\nname = \"all\"\nreply = { status = 200 }\n").workers(1);
    setup.frame = setup.frame.replace("access.log", "stdout");
    let proxy = unread(&setup).await;
    let address = proxy.address;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = crate::harness::client::KeptAlive::connect(address)
                    .await
                    .expect("connected");
                // 8 KiB a line: the pipe and all batches are full soon.
                let path = format!("/{}", "x".repeat(8_000));
                for _ in 0..500 {
                    let response = soon("an answer", client.send(Request::get(&path))).await;
                    assert_eq!(response.expect("answered").status, 200);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("every request was answered");
    }
    proxy
        .admin
        .metric_is("throwbar_log_dropped", |count| count > 0.0)
        .await;
}

#[tokio::test]
async fn nobody_reading_standard_error_stalls_no_request_and_drops_are_counted() {
    let setup = Setup::new(format!(
        "[plugins.talks]\nsource = \"{}\"\n\
         limits = {{ deadline = \"10s\", log_lines_per_second = 1000000 }}\n\
         [[route]]\nname = \"all\"\nplugin = \"talks\"\n",
        fixture_path("log-flood").display()
    ));
    let proxy = unread(&setup).await;
    // More than the pipe and the queue hold.
    for _ in 0..4 {
        let flood = Request::get("/").fields(&[("x-lines", "4000"), ("x-bytes", "200")]);
        let response = soon("an answer", flood.try_send(proxy.address)).await;
        assert_eq!(response.expect("answered").status, 200);
    }
    proxy
        .admin
        .metric_is("throwbar_process_log_dropped", |count| count > 0.0)
        .await;
}
