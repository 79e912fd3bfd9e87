//! Imports of any length, whole or in chunks, and what an export takes along.

use super::kv_operations::with_notes;
use crate::harness::{Raw, Request, TestProxy, eventually, soon};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

fn lines(path: &str, body: impl Into<bytes::Bytes>) -> Request {
    Request::post(path, body).field("content-type", "text/plain")
}

/// The most resident memory so far, in KiB.
pub(super) fn peak_kib(proxy: &TestProxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid()));
    let status = status.expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Keys of the bucket of notes.
pub(super) async fn keys(proxy: &TestProxy) -> u64 {
    let listed = proxy.admin().get("/v1/kv").await.json();
    let buckets = listed["buckets"].as_array().expect("a list");
    let notes = buckets.iter().find(|bucket| bucket["name"] == "notes");
    notes.expect("there")["keys"].as_u64().expect("a number")
}

#[tokio::test]
async fn an_import_takes_memory_for_what_it_writes_and_not_for_how_long_it_is() {
    const ROWS: usize = 200_000;
    let notes = "\n[buckets.notes]\nbackend = \"memory\"\nvalues = \"bytes\"\n\
                 [[route]]\nreply = { status = 200 }\n";
    let proxy = TestProxy::start(notes).await;
    // 500 bytes a row, most of them blanks: 100 MB of which 200,000 short entries are left.
    let write = |name: &str, keys: usize| {
        let file = std::fs::File::create(proxy.file(name)).expect("a file");
        let mut file = std::io::BufWriter::new(file);
        for row in 0..ROWS {
            let key = row % keys;
            let line = format!("{{\"key\":\"key-{key:06}\",\"value\":\"{row:06}\"}}");
            writeln!(file, "{line:<499}").expect("written");
        }
        file.flush().expect("written");
    };
    write("few.ndjson", 1_000);
    write("many.ndjson", ROWS);
    let before = peak_kib(&proxy);
    let done = proxy
        .kv(&["import", "notes", "few.ndjson", "--chunk", "1000"])
        .await
        .ok();
    assert!(done.contains("1,000 added, 199,000 changed"), "{done}");
    let in_chunks = peak_kib(&proxy);
    let done = proxy
        .kv(&["import", "notes", "many.ndjson", "--json"])
        .await
        .ok();
    let done: Value = serde_json::from_str(&done).expect("JSON");
    assert_eq!(
        (&done["created"], &done["updated"]),
        (&json!(199_000), &json!(1_000))
    );
    let whole = peak_kib(&proxy);
    println!("peak: {before} KiB, in chunks {in_chunks}, whole {whole}");
    assert!(in_chunks - before < 32 << 10, "{before} -> {in_chunks} KiB");
    assert!(whole - before < 150 << 10, "{before} -> {whole} KiB");
}

#[tokio::test]
async fn chunks_stay_written_up_to_a_bad_row_and_it_is_told_where() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    let body = "a 1\n# a comment\nb 2\nc 3\nd 4\ne 5\nbad\nf 6\n";
    let told = admin.send(lines("/v1/kv/notes/import?chunk=2", body)).await;
    assert_eq!(told.status, 200);
    let text = told.text();
    let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(
        (&last["applied"], &last["line"]),
        (&json!(4), &json!(5)),
        "{last}"
    );
    assert_eq!(last["problem"]["errors"][0]["line"], 7, "{last}");
    assert_eq!(admin.get("/v1/kv/notes/d").await.text(), "4");
    assert_eq!(admin.get("/v1/kv/notes/e").await.status, 404);
    let whole = admin
        .send(lines(
            "/v1/kv/notes/import?chunk=3",
            &b"a 1\nx 1\ny 2\nz 3\n"[..],
        ))
        .await;
    let text = whole.text();
    let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(
        (
            &last["applied"],
            &last["created"],
            &last["unchanged"],
            &last["outcome"]
        ),
        (&json!(4), &json!(3), &json!(1), &json!("changed"))
    );
    // A dry run is answered at once. Within a chunk a key comes once.
    for (rows, answer) in [("z 5\ny 2\nz 6\n", 200), ("z 5\nz 6\n", 422)] {
        let path = "/v1/kv/notes/import?chunk=2&dry_run=true&diff=true";
        let told = admin.send(lines(path, rows)).await;
        assert_eq!(told.status, answer, "{}", told.text());
        if answer == 200 {
            let changes = json!([{ "key": "z", "before": "3", "after": "6" }]);
            assert_eq!(told.json()["changes"], changes);
        }
    }
    for query in ["chunk=0", "chunk=65537", "chunk=2&replace=true"] {
        let path = format!("/v1/kv/notes/import?{query}");
        let refused = admin.send(lines(&path, "q 1\n")).await;
        assert_eq!(refused.status, 400, "{query}: {}", refused.text());
    }
    let batch = admin.post("/v1/kv/notes/batch?chunk=2", "{}").await;
    assert_eq!(batch.status, 400, "{}", batch.text());

    std::fs::write(proxy.file("bad.txt"), body.replace(" ", " new ")).expect("written");
    let stopped = proxy
        .kv(&["import", "notes", "bad.txt", "--chunk", "2"])
        .await;
    assert_eq!(stopped.code, 3, "{}", stopped.stderr);
    for said in [
        "bad.txt: 1 bad line(s)",
        "line 7",
        "4 rows up to line 5 stay written",
    ] {
        assert!(stopped.stderr.contains(said), "{}", stopped.stderr);
    }
    std::fs::write(proxy.file("good.csv"), "key,value\nm,1\nn,\"2\n3\"\no,4\n").expect("written");
    let import = [
        "import", "notes", "good.csv", "--format", "csv", "--chunk", "1",
    ];
    let done = proxy.kv(&import).await.ok();
    assert!(done.starts_with("notes: 3 added"), "{done}");
    assert_eq!(admin.get("/v1/kv/notes/n").await.text(), "2\n3");
}

#[tokio::test]
async fn rows_are_written_while_others_are_yet_to_come() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    let token = std::fs::read_to_string(proxy.file("data/admin.token")).expect("a token");
    let mut raw = Raw::connect(proxy.admin_address).await;
    let head = format!(
        "POST /v1/kv/notes/import?chunk=1 HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
         content-type: text/plain\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        proxy.admin_address,
        token.trim()
    );
    raw.send(head).await;
    for key in ["a", "b"] {
        raw.send(format!("4\r\n{key} 1\n\r\n")).await;
        eventually("the row is written", async || {
            let found = admin.get(&format!("/v1/kv/notes/{key}")).await;
            (found.status == 200).then_some(())
        })
        .await;
    }
    assert_eq!(raw.line().await.expect("a line"), "HTTP/1.1 200 OK\r\n");
    // The answer tells how far it is, and not oftener than somebody would read it.
    let mut sent: u64 = 2;
    let told = eventually(
        "a line of the answer before the end of the body",
        async || {
            sent += 1;
            let row = format!("key-{sent} 1\n");
            raw.send(format!("{:x}\r\n{row}\r\n", row.len())).await;
            let line = tokio::time::timeout(Duration::from_millis(20), raw.line());
            let line = line.await.ok()?.expect("the answer goes on");
            let told = serde_json::from_str(&line).ok();
            told.filter(Value::is_object)
        },
    )
    .await;
    let applied = told["applied"].as_u64().expect("a number");
    assert!((1..=sent).contains(&applied), "{told}");
    assert_eq!(
        (&told["line"], &told["revision"]),
        (&json!(applied), &json!(applied))
    );
    assert!(told["outcome"].is_null(), "{told}");
    assert!(keys(&proxy).await >= applied, "{told}");
    raw.send("0\r\n\r\n").await;
    let answer = raw.rest().await;
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.contains(&format!("\"created\":{sent},")), "{answer}");
}

#[tokio::test]
async fn an_import_that_breaks_off_leaves_nothing() {
    let proxy = TestProxy::start(&with_notes()).await;
    let import = endless_import(&proxy, &[], |row| format!("key-{row} value\n"));
    // More than pipes and sockets hold: the proxy is in the middle of it.
    import.takes(3 << 20).await;
    // As Ctrl-C does, which a process that was started in the background may ignore.
    let pid = import.process();
    rustix::process::kill_process(pid, Signal::TERM).expect("the process is ours");
    let (status, said) = import.ended().await;
    assert_eq!(status.code(), Some(143), "{said}");
    assert_eq!(
        said,
        "error: standard input: a signal ended it: nothing was written\n"
    );
    assert_eq!(keys(&proxy).await, 0);
    // What is cut in the middle of a row, or of a body of a known length, is no import either.
    let token = std::fs::read_to_string(proxy.file("data/admin.token")).expect("a token");
    for framing in [
        "content-length: 100\r\n\r\na 1\nb 2\n",
        "transfer-encoding: chunked\r\n\r\n8\r\na 1\nb 2\n\r\n",
    ] {
        let mut raw = Raw::connect(proxy.admin_address).await;
        raw.send(format!(
            "POST /v1/kv/notes/import HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
             content-type: text/plain\r\n{framing}",
            proxy.admin_address,
            token.trim()
        ))
        .await;
        drop(raw);
    }
    proxy.kv(&["set", "notes", "after=1"]).await.ok();
    assert_eq!(keys(&proxy).await, 1);
}

/// An import of rows without end.
struct Endless {
    import: tokio::process::Child,
    writing: tokio::task::JoinHandle<()>,
    /// Bytes that it has taken.
    taken: Arc<AtomicUsize>,
}

fn endless_import(proxy: &TestProxy, more: &[&str], row: fn(usize) -> String) -> Endless {
    let mut import = proxy
        .command()
        .current_dir(proxy.dir())
        .args(["kv", "import", "notes", "-"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command under test runs");
    let mut stdin = import.stdin.take().expect("piped");
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let writing = tokio::spawn(async move {
        for first in (0..).step_by(100) {
            let rows: String = (first..first + 100).map(row).collect();
            if stdin.write_all(rows.as_bytes()).await.is_err() {
                return;
            }
            counter.fetch_add(rows.len(), Relaxed);
        }
    });
    Endless {
        import,
        writing,
        taken,
    }
}

impl Endless {
    /// Waits until it has taken so many bytes.
    async fn takes(&self, bytes: usize) {
        eventually("much of it is taken", async || {
            (self.taken.load(Relaxed) > bytes).then_some(())
        })
        .await;
    }

    fn process(&self) -> Pid {
        let pid = self.import.id().and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw).expect("a process id")
    }

    /// How it ends, and what it says then.
    async fn ended(self) -> (ExitStatus, String) {
        let ended = soon("the end of the import", self.import.wait_with_output());
        let ended = ended.await.expect("it ended");
        self.writing.await.expect("nobody reads any more");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        (ended.status, said)
    }

    /// Ends the proxy while it imports; what the import says then.
    async fn outlives(self, proxy: &mut TestProxy) -> String {
        proxy.signal(Signal::TERM);
        let ((ended, said), status) = tokio::join!(self.ended(), proxy.ended());
        assert_eq!(status.code(), Some(0), "{}", proxy.stderr());
        assert_eq!(ended.code(), Some(1), "{said}");
        said
    }
}

#[tokio::test]
async fn an_import_in_chunks_says_what_it_wrote_before_the_proxy_ended() {
    let mut proxy = TestProxy::start(&with_notes()).await;
    let row = |row| format!("key-{row} value\n");
    let import = endless_import(&proxy, &["--chunk", "300"], row);
    eventually("rows are written", async || {
        (keys(&proxy).await > 0).then_some(())
    })
    .await;
    let said = import.outlives(&mut proxy).await;
    let told = "error: standard input: the proxy is ending (503)\n  ";
    let written = said.strip_prefix(told).and_then(|it| {
        let (rows, rest) = it.split_once(" rows up to line ")?;
        let line = rest.strip_suffix(" stay written\n")?;
        Some((rows.replace(',', "").parse().ok()?, line.parse().ok()?))
    });
    let (rows, line): (u64, u64) = written.unwrap_or_else(|| panic!("{said}"));
    assert_eq!((rows % 300, line), (0, rows));
    proxy.start_again().await;
    assert_eq!(keys(&proxy).await, rows);
    let last = format!("/v1/kv/notes/key-{}", rows - 1);
    assert_eq!(proxy.admin().get(&last).await.text(), "value");
}

#[tokio::test]
async fn a_whole_import_that_the_proxy_does_not_wait_for_leaves_nothing_and_says_so() {
    let mut proxy = TestProxy::start(&with_notes()).await;
    let row = |row| match row {
        0 => "key value\n".to_owned(),
        _ => format!("# {row:>1000}\n"),
    };
    let import = endless_import(&proxy, &[], row);
    // More than pipes and sockets hold: the proxy is in the middle of it.
    import.takes(16 << 20).await;
    let said = import.outlives(&mut proxy).await;
    let told = "the proxy is ending: nothing was written (503)";
    assert!(said.contains(told), "{said}");
    proxy.start_again().await;
    assert_eq!(keys(&proxy).await, 0);
}

#[tokio::test]
async fn a_row_without_end_is_refused_with_its_line() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    for query in ["", "?chunk=10"] {
        let mut body = b"a 1\nb ".to_vec();
        body.resize(9 << 20, b'x');
        body.extend_from_slice(b"\nc 1\n");
        let refused = admin
            .send(lines(&format!("/v1/kv/notes/import{query}"), body))
            .await;
        let mut told = refused.json();
        if !query.is_empty() {
            told = told["problem"].take();
        }
        assert_eq!(
            (&told["status"], &told["errors"][0]["line"]),
            (&json!(422), &json!(2)),
            "{told}"
        );
        assert!(
            told.to_string().contains("longer than 8388608 bytes"),
            "{told}"
        );
    }
    assert_eq!(keys(&proxy).await, 0);
}

#[tokio::test]
async fn entries_take_their_deadlines_along_and_what_has_ended_is_left_out() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    proxy
        .kv(&["set", "notes", "day=1", "--ttl", "1d"])
        .await
        .ok();
    proxy.kv(&["set", "notes", "stays=2"]).await.ok();
    let listed = proxy.kv(&["ls", "notes", "--json"]).await.ok();
    for format in ["ndjson", "csv"] {
        proxy
            .kv(&["export", "notes", "all", "--format", format, "--force"])
            .await
            .ok();
        // The very same once more changes nothing.
        let import: &[&str] = match format {
            "csv" => &["import", "notes", "all", "--format", "csv", "--replace"],
            _ => &["import", "notes", "all", "--replace"],
        };
        let same = proxy.kv(import).await.ok();
        assert!(same.starts_with("notes: 2 as before "), "{format}: {same}");
        proxy.kv(&["del", "notes", "day", "stays"]).await.ok();
        proxy.kv(import).await.ok();
        let again = proxy.kv(&["ls", "notes", "--json"]).await.ok();
        let told = |listed: &str| -> Vec<[Value; 3]> {
            let listed: Value = serde_json::from_str(listed).expect("JSON");
            let entries = listed["entries"].as_array().expect("a list");
            let told =
                |entry: &Value| ["key", "value", "expires_at"].map(|name| entry[name].clone());
            entries.iter().map(told).collect()
        };
        assert_eq!(told(&again), told(&listed), "{format}");
    }
    for (arguments, said) in [
        (&["export", "notes"][..], "lines cannot say"),
        (
            &["export", "notes", "--format", "json"],
            "one JSON object cannot say",
        ),
    ] {
        let refused = proxy.kv(arguments).await;
        assert_eq!(refused.code, 1, "{}", refused.stderr);
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
        assert!(!refused.stdout.contains("day"), "{}", refused.stdout);
        proxy
            .kv(&[arguments, &["--without-deadlines"]].concat())
            .await
            .ok();
    }
    let without = proxy
        .kv(&["export", "notes", "--without-deadlines"])
        .await
        .ok();
    assert_eq!(without, "day 1\nstays 2\n");
    let csv = ["export", "notes", "--format", "csv", "--without-deadlines"];
    assert!(
        proxy
            .kv(&csv)
            .await
            .ok()
            .starts_with("key,value,revision\n")
    );
    let alone = admin.get("/v1/kv/notes?deadlines=false").await;
    assert_eq!(alone.status, 400, "{}", alone.text());

    let ended = "{\"key\":\"day\",\"value\":\"1\",\"expires_at\":\"2020-01-01T00:00:00.000Z\"}\n\
                 {\"key\":\"new\",\"value\":\"1\"}\n";
    std::fs::write(proxy.file("old.ndjson"), ended).expect("written");
    let done = proxy
        .kv(&["import", "notes", "old.ndjson", "--replace"])
        .await
        .ok();
    assert!(
        done.contains("1 added, 2 deleted, 1 left out, for they have ended"),
        "{done}"
    );
    assert_eq!(proxy.kv(&["export", "notes"]).await.ok(), "new 1\n");
}

#[tokio::test]
async fn a_diff_of_a_replacement_counts_from_nothing_as_the_replacement_does() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    admin.set("notes", "n", "5").await;
    let body = json!({ "writes": [{ "key": "n", "increment": 1 }] }).to_string();
    let path = "/v1/kv/notes/batch?replace=true";
    let dry = format!("{path}&dry_run=true&diff=true");
    let shown = admin.post(&dry, body.clone()).await.json();
    let change = json!([{ "key": "n", "before": "5", "after": "1" }]);
    assert_eq!(shown["changes"], change, "{shown}");
    assert_eq!(admin.post(path, body).await.status, 200);
    assert_eq!(admin.get("/v1/kv/notes/n").await.text(), "1");
}
