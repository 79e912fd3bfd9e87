//! What goes on with a limited token ends when a reload takes its rights away, and one such token leaves room for others.

use crate::harness::events::{Event, Events};
use crate::harness::proxy::TestProxy;
use crate::harness::{Admin, Raw, Setup, eventually, soon};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};

/// What each reload of these tests begins with.
const CONFIG: &str = r#"
[buckets.ids]
values = "bytes"
[[route]]
reply = { status = 200 }
"#;

/// Values of an export, together more than the sockets between us hold.
const VALUES: usize = 40;
const VALUE_BYTES: usize = 1_000_000;

/// The secret of a token.
fn secret(name: &str) -> String {
    format!("{name:-<32}")
}

/// The table of a token that is good for a bucket.
fn token(name: &str, right: &str, prefix: &str) -> String {
    let secret = secret(name);
    format!(
        "[admin.tokens.{name}]\ntoken = \"{secret}\"\nbuckets = {{ ids = \"{right}\" }}\nprefix = \"{prefix}\"\n"
    )
}

fn text(tokens: &[String]) -> String {
    Setup::new(format!("{CONFIG}{}", tokens.concat())).text()
}

async fn start(tokens: &[String]) -> TestProxy {
    TestProxy::start_text(&text(tokens)).await
}

async fn apply(proxy: &TestProxy, tokens: &[String]) {
    let put = proxy.admin().put("/v1/config", text(tokens)).await;
    assert_eq!(put.status, 200, "{}", put.text());
}

/// The admin API with a limited token.
fn with(proxy: &TestProxy, name: &str) -> Admin {
    Admin::new(proxy.admin_address, Some(secret(name)))
}

/// What a watch is told at its end, and that it is the end.
async fn end_of(events: &mut Events) -> String {
    let event = events.next().await.expect("a last event");
    assert_eq!(event.name, "end", "{event:?}");
    assert_eq!(events.next().await, None);
    event.data["detail"].as_str().expect("a reason").to_owned()
}

fn keys(event: Option<Event>) -> Vec<String> {
    let event = event.expect("an event");
    assert_eq!(event.name, "change", "{event:?}");
    let changes = event.data["changes"].as_array().expect("a list");
    let keys = changes.iter().filter_map(|change| change["key"].as_str());
    keys.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_watch_ends_with_its_rights_and_reloads_that_leave_them_do_not_touch_it() {
    let robots = token("robots", "write", "");
    let proxy = start(&[token("agents", "write", "eu-"), robots.clone()]).await;
    let (admin, agents) = (proxy.admin(), with(&proxy, "agents"));
    let path = "/v1/kv/ids?watch&prefix=eu-1";
    let mut mine = Events::open(&agents, path, None).await;
    let mut others = [
        Events::open(&with(&proxy, "robots"), "/v1/kv/ids?watch", None).await,
        Events::open(&admin, "/v1/kv/ids?watch", None).await,
    ];
    // It may do less, and more, and what it watches all the same.
    apply(&proxy, &[token("agents", "read", "eu-1"), robots.clone()]).await;
    apply(&proxy, &[token("agents", "write", "e"), robots.clone()]).await;
    admin.set("ids", "eu-1", "a").await;
    assert_eq!(keys(mine.next().await), ["eu-1"]);
    // Not a change that was made later is told.
    apply(&proxy, &[token("agents", "write", "eu-2"), robots.clone()]).await;
    admin.set("ids", "eu-1", "b").await;
    let told = end_of(&mut mine).await;
    assert!(
        told.contains("\"agents\"") && told.contains("\"eu-2\""),
        "{told}"
    );
    let again = agents.get(&format!("{path}&since={}", mine.last_id)).await;
    assert_eq!(again.status, 403, "{}", again.text());
    for events in &mut others {
        assert_eq!(keys(events.next().await), ["eu-1"]);
        assert_eq!(keys(events.next().await), ["eu-1"]);
    }
}

#[tokio::test]
async fn a_watch_ends_when_sighup_reads_a_config_without_its_token_or_with_another_secret() {
    let other = token("agents", "read", "").replace(&secret("agents"), &secret("other"));
    for tokens in [vec![], vec![other]] {
        let proxy = start(&[token("agents", "read", "")]).await;
        let agents = with(&proxy, "agents");
        let mut events = Events::open(&agents, "/v1/kv/ids?watch", None).await;
        std::fs::write(proxy.file("throwbar.toml"), text(&tokens)).expect("written");
        proxy.signal(Signal::HUP);
        let told = end_of(&mut events).await;
        assert_eq!(told, "token \"agents\" is good no longer");
        let path = format!("/v1/kv/ids?watch&since={}", events.last_id);
        assert_eq!(agents.get(&path).await.status, 401);
    }
}

#[tokio::test]
async fn the_command_that_watches_says_why_it_ends() {
    let proxy = start(&[token("agents", "read", "")]).await;
    proxy.admin().set("ids", "k", "v").await;
    let mut watch = proxy
        .command()
        .env("THROWBAR_TOKEN", secret("agents"))
        .args(["kv", "watch", "ids", "--since", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let line = soon("a change", lines.next_line()).await.expect("read");
    assert_eq!(line.as_deref(), Some("1 put k v"));
    apply(&proxy, &[]).await;
    let ended = soon("its end", watch.wait_with_output()).await;
    let ended = ended.expect("it can be waited for");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.contains("token \"agents\" is good no longer"),
        "{said}"
    );
}

#[tokio::test]
async fn an_export_breaks_off_when_its_token_is_gone_and_others_come_whole() {
    let proxy = start(&[token("agents", "read", ""), token("robots", "read", "")]).await;
    let value = "x".repeat(VALUE_BYTES);
    for n in 0..VALUES {
        proxy.admin().set("ids", &format!("k{n}"), &value).await;
    }
    let begun = async |name: &str| {
        let admin = with(&proxy, name);
        let mut raw = Raw::connect(admin.address()).await;
        let (to, token) = (admin.address(), admin.authorization());
        let head = "GET /v1/kv/ids?format=ndjson HTTP/1.1";
        raw.send(format!(
            "{head}\r\nhost: {to}\r\n{token}connection: close\r\n\r\n"
        ))
        .await;
        assert_eq!(raw.line().await.expect("a line"), "HTTP/1.1 200 OK\r\n");
        raw
    };
    let (mut mine, mut others) = (begun("agents").await, begun("robots").await);
    apply(&proxy, &[token("robots", "write", "")]).await;
    let is_whole = |answer: &[u8]| {
        let length = answer.len();
        let all = length > VALUES * VALUE_BYTES;
        assert_eq!(all, answer.ends_with(b"\r\n0\r\n\r\n"), "{length} bytes");
        all
    };
    assert!(!is_whole(&mine.rest().await));
    assert!(is_whole(&others.rest().await));
}

#[tokio::test]
async fn imports_stop_where_their_token_is_gone() {
    let proxy = start(&[token("agents", "write", "eu-")]).await;
    let agents = with(&proxy, "agents");
    let begun = async |query: &str, row: &str| {
        let mut raw = Raw::connect(agents.address()).await;
        let (to, token) = (agents.address(), agents.authorization());
        raw.send(format!(
            "POST /v1/kv/ids/import{query} HTTP/1.1\r\nhost: {to}\r\n{token}content-type: text/plain\r\n\
             transfer-encoding: chunked\r\n\r\n{:x}\r\n{row}\r\n",
            row.len()
        ))
        .await;
        raw
    };
    let mut whole = begun("", "eu-2 a\n").await;
    let mut chunks = begun("?chunk=1", "eu-1 a\n").await;
    eventually("the first chunk is there", async || {
        (proxy.admin().get("/v1/kv/ids/eu-1").await.status == 200).then_some(())
    })
    .await;
    apply(&proxy, &[token("agents", "write", "us-")]).await;
    let rest = "7\r\neu-3 a\n\r\n0\r\n\r\n";
    let answer = chunks.ask(rest).await;
    assert_eq!(answer.status, 200);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["applied"], 1, "{last}");
    assert_eq!(last["problem"]["status"], 403, "{last}");
    apply(&proxy, &[]).await;
    let answer = whole.ask(rest).await;
    assert_eq!(answer.status, 401);
    let page = proxy.admin().get("/v1/kv/ids").await.json();
    let keys = page["entries"].as_array().expect("a list").iter();
    let keys: Vec<&Value> = keys.map(|entry| &entry["key"]).collect();
    assert_eq!(keys, [&json!("eu-1")]);
}

#[tokio::test]
async fn limited_tokens_have_a_share_of_the_watches_and_the_rest_is_for_the_own_one() {
    let names = ["a", "b", "c", "d"];
    let tokens = names.map(|name| token(name, "read", ""));
    let proxy = start(&tokens).await;
    let path = "/v1/kv/ids?watch";
    let refused = async |name: &str, why: &str| {
        let refused = with(&proxy, name).get(path).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        let told = refused.json();
        assert_eq!(told["code"], "too-many-watches");
        let detail = told["detail"].as_str().expect("a reason");
        assert!(detail.contains(why), "{detail}");
    };
    let mut open = Vec::new();
    for name in &names[..3] {
        for _ in 0..32 {
            open.push(Events::open(&with(&proxy, name), path, None).await);
        }
        refused(name, &format!("token \"{name}\" has 32 watches open")).await;
    }
    refused("d", "96 watches of limited tokens are open").await;
    let mut own = Events::open(&proxy.admin(), path, None).await;
    proxy.admin().set("ids", "k", "v").await;
    assert_eq!(keys(own.next().await), ["k"]);
    // What a reload takes away is free for others.
    apply(&proxy, &tokens[3..]).await;
    for events in &mut open {
        assert_eq!(keys(events.next().await), ["k"]);
        end_of(events).await;
    }
    Events::open(&with(&proxy, "d"), path, None).await;
}
