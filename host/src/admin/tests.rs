//! Requests through the gate and the table, without a socket.

use super::*;
use crate::store::{BackendKind, BucketConfig, ValueKind};
use axum::body::{Body, Bytes};
use http::{HeaderMap, Request, header};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

fn open_gate() -> auth::Gate {
    let config = Config {
        auth: Auth::None,
        ..Config::default()
    };
    auth::Gate::new(&config, None)
}

fn operations() -> Operations {
    Operations::new(Losses::default())
}

/// The routes of the store over two empty buckets in memory, without a token.
struct Api {
    router: Router,
    store: Store,
    /// Ends watches.
    stop: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
    fn header(&self, name: header::HeaderName) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = TowerToHyperService::new(router.clone())
        .call(request)
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

fn request(line: &str, fields: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let (method, path) = line.split_once(' ').unwrap();
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost:2019");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

impl Api {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let buckets = [
            BucketConfig::new("upstreams", BackendKind::Memory, ValueKind::Endpoint),
            BucketConfig::new("notes", BackendKind::Memory, ValueKind::Bytes),
        ];
        let store = Store::open(&buckets, dir.path()).unwrap();
        let stop = watch::Sender::new(false);
        let data = Data {
            store: store.clone(),
            body_bytes_max: 10_000,
            tokens: Tokens::fixed(Vec::new()),
            watches: Arc::new(Watches::new(2)),
            stopping: stop.subscribe(),
        };
        Self {
            router: guarded(data_routes(), open_gate(), operations()).with_state(data),
            store,
            stop,
            _dir: dir,
        }
    }

    async fn send(&self, line: &str, fields: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        send(&self.router, request(line, fields, body)).await
    }

    async fn status(&self, line: &str, fields: &[(&str, &str)], body: impl Into<Body>) -> u16 {
        self.send(line, fields, body).await.status
    }
}

#[test]
fn no_two_routes_share_a_path() {
    // Building the table panics if they do.
    let _ = routes();
}

#[tokio::test]
async fn refusals_of_the_table_are_problem_documents() {
    let router = Router::new()
        .route("/", get(status::index))
        .route("/healthz", get(status::healthz));
    let router = guarded(router, open_gate(), operations());
    let missing = send(&router, request("GET /v2", &[], "")).await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.header(header::CONTENT_TYPE), problem::CONTENT_TYPE);
    assert_eq!(missing.json()["code"], "not-found");
    assert_eq!(
        missing.json()["detail"],
        "no route \"/v2\": GET / lists them"
    );
    let wrong = send(&router, request("POST /healthz", &[], "")).await;
    assert_eq!(wrong.status, 405);
    assert_eq!(wrong.header(header::ALLOW), "GET,HEAD");
    assert_eq!(wrong.json()["code"], "method-not-allowed");
    let foreign = [("origin", "http://evil.example")];
    let foreign = send(&router, request("GET /", &foreign, "")).await;
    assert_eq!(
        (foreign.status, &foreign.json()["code"]),
        (403, &json!("origin"))
    );
    let index = send(&router, request("GET /", &[], "")).await;
    assert!(index.text().contains("/v1/kv/{bucket}"));
    assert_eq!(index.header(header::CACHE_CONTROL), "no-store");
}

#[tokio::test]
async fn without_the_token_even_unknown_paths_are_401() {
    let gate = auth::Gate::new(&Config::default(), None);
    let router = Router::new().route("/healthz", get(status::healthz));
    let router = guarded(router, gate, operations());
    let refused = send(&router, request("GET /nowhere", &[], "")).await;
    assert_eq!(refused.status, 401);
    assert!(
        refused
            .header(header::WWW_AUTHENTICATE)
            .starts_with("Bearer")
    );
    let probe = send(&router, request("GET /healthz", &[], "")).await;
    assert_eq!((probe.status, probe.text()), (200, "ok\n"));
}

#[tokio::test]
async fn a_key_is_created_changed_read_and_deleted() {
    let api = Api::new();
    let created = api.send("PUT /v1/kv/notes/a%2Fb/c", &[], "one").await;
    assert_eq!(created.status, 201);
    assert_eq!(created.json()["outcome"], "created");
    let tag = created.header(header::ETAG).to_owned();
    let same = api.send("PUT /v1/kv/notes/a/b/c", &[], "one").await;
    assert_eq!(
        (same.status, &same.json()["outcome"]),
        (200, &json!("unchanged"))
    );
    assert_eq!(same.header(header::ETAG), tag);
    let changed = api.send("PUT /v1/kv/notes/a/b/c", &[], "two").await;
    assert_eq!(
        (changed.status, &changed.json()["outcome"]),
        (200, &json!("changed"))
    );
    let read = api.send("GET /v1/kv/notes/a/b/c", &[], "").await;
    assert_eq!(read.text(), "two");
    assert_eq!(
        read.header(header::CONTENT_TYPE),
        "text/plain; charset=utf-8"
    );
    assert_eq!(read.header(header::ETAG), changed.header(header::ETAG));
    let known = [("if-none-match", changed.header(header::ETAG))];
    assert_eq!(api.status("GET /v1/kv/notes/a/b/c", &known, "").await, 304);
    assert_eq!(api.status("DELETE /v1/kv/notes/a/b/c", &[], "").await, 204);
    assert_eq!(api.status("DELETE /v1/kv/notes/a/b/c", &[], "").await, 404);
    assert_eq!(api.status("GET /v1/kv/notes/a/b/c", &[], "").await, 404);
}

#[tokio::test]
async fn conditions_guard_writes() {
    let api = Api::new();
    let absent = [("if-none-match", "*")];
    let present = [("if-match", "*")];
    let path = "PUT /v1/kv/notes/k";
    assert_eq!(api.status(path, &present, "1").await, 412);
    assert_eq!(api.status(path, &absent, "1").await, 201);
    assert_eq!(api.status(path, &absent, "2").await, 412);
    assert_eq!(api.status(path, &present, "2").await, 200);
    let tag = api.send("GET /v1/kv/notes/k", &[], "").await;
    let tag = tag.header(header::ETAG);
    let stale = [("if-match", "\"0\"")];
    let either = format!("\"0\", {tag}");
    assert_eq!(api.status(path, &stale, "3").await, 412);
    assert_eq!(api.status("DELETE /v1/kv/notes/k", &stale, "").await, 412);
    assert_eq!(api.status(path, &[("if-match", &either)], "3").await, 200);
    assert_eq!(api.status(path, &[("if-match", "0")], "3").await, 400);
}

#[tokio::test]
async fn a_value_that_is_no_address_is_refused_with_its_key() {
    let api = Api::new();
    let refused = api
        .send("PUT /v1/kv/upstreams/id1", &[], "127.0.0.1:x")
        .await;
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (422, &json!("invalid-value"))
    );
    let detail = refused.json()["detail"].to_string();
    assert!(
        detail.contains("id1") && detail.contains("127.0.0.1:x"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_a_mistyped_one_is_refused() {
    let api = Api::new();
    let dry = api.send("PUT /v1/kv/notes/k?dry_run=true", &[], "1").await;
    assert_eq!(
        (dry.status, &dry.json()["outcome"]),
        (200, &json!("created"))
    );
    let mistyped = api.send("PUT /v1/kv/notes/k?dryrun=true", &[], "1").await;
    assert_eq!(mistyped.status, 400);
    let detail = mistyped.json()["detail"].to_string();
    assert!(
        detail.contains("dryrun") && detail.contains("dry_run"),
        "{detail}"
    );
    assert_eq!(api.status("GET /v1/kv/notes/k", &[], "").await, 404);
}

#[tokio::test]
async fn a_batch_is_all_or_none_and_can_be_the_whole_bucket() {
    let api = Api::new();
    let path = "POST /v1/kv/notes/batch";
    let body = json!({ "set": { "a": "1", "b": "2" } }).to_string();
    let first = api.send(path, &[], body).await;
    assert_eq!((first.status, &first.json()["created"]), (200, &json!(2)));
    let lost = json!({ "writes": [
        { "key": "c", "value": "3" },
        { "key": "a", "value": "9", "if_revision": 0 },
    ] });
    assert_eq!(api.status(path, &[], lost.to_string()).await, 412);
    assert_eq!(api.status("GET /v1/kv/notes/c", &[], "").await, 404);
    let whole = json!({ "set": { "b": "2", "d": "4" }, "replace": true }).to_string();
    let whole = api.send(path, &[], whole).await;
    assert_eq!(whole.json()["deleted"], 1);
    let page = api.send("GET /v1/kv/notes", &[], "").await.json();
    let keys: Vec<_> = page["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["b", "d"]);
    assert_eq!(api.status("POST /v1/kv/notes/other", &[], "").await, 405);
    assert_eq!(
        api.status("PUT /v1/kv/notes/batch", &[], "a key").await,
        201
    );
}

#[tokio::test]
async fn pages_follow_a_cursor_and_a_prefix() {
    let api = Api::new();
    let lines = "a1 x\na2 x\na3 x\nb x";
    let text = [("content-type", "text/plain")];
    let imported = api.send("POST /v1/kv/notes/import", &text, lines).await;
    assert_eq!(imported.json()["created"], 4);
    let first = api.send("GET /v1/kv/notes?prefix=a&limit=2", &[], "").await;
    let first = first.json();
    assert_eq!(first["entries"].as_array().unwrap().len(), 2);
    let cursor = first["cursor"].as_str().unwrap();
    let next = format!("GET /v1/kv/notes?prefix=a&limit=2&cursor={cursor}");
    let next = api.send(&next, &[], "").await.json();
    assert_eq!(next["entries"][0]["key"], "a3");
    assert_eq!(next["cursor"], Value::Null);
    assert_eq!(api.status("GET /v1/kv/notes?limit=0", &[], "").await, 400);
    assert_eq!(api.status("GET /v1/kv/none", &[], "").await, 404);
}

#[tokio::test]
async fn what_is_exported_can_be_imported() {
    let api = Api::new();
    let text = [("content-type", "text/plain")];
    let lines = "id2 127.0.0.3\nid1 127.0.0.2:80\n";
    api.send("POST /v1/kv/upstreams/import", &text, lines).await;
    let export = api
        .send("GET /v1/kv/upstreams?format=ndjson", &[], "")
        .await;
    assert_eq!(export.header(header::CONTENT_TYPE), "application/x-ndjson");
    let first: Value = serde_json::from_str(export.text().lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["key"], &first["value"]),
        (&json!("id1"), &json!("127.0.0.2:80"))
    );
    let ndjson = [("content-type", "application/x-ndjson")];
    let path = "POST /v1/kv/upstreams/import?replace=true";
    let again = api.send(path, &ndjson, export.body).await;
    assert_eq!((again.status, &again.json()["unchanged"]), (200, &json!(2)));
    assert_eq!(again.json()["outcome"], "unchanged");
}

#[tokio::test]
async fn an_import_with_bad_lines_imports_nothing_and_tells_each() {
    let api = Api::new();
    let text = [("content-type", "text/plain")];
    let lines = "id1 127.0.0.2\nid2\nid3 not/a/host\n";
    let refused = api.send("POST /v1/kv/upstreams/import", &text, lines).await;
    assert_eq!(refused.status, 422);
    let told = refused.json();
    assert_eq!(told["errors"][0]["line"], 2);
    assert_eq!(told["errors"][1]["line"], 3);
    assert_eq!(api.store.snapshot().revision().0, 0);
    let large = api
        .send("POST /v1/kv/upstreams/import", &text, "x".repeat(10_001))
        .await;
    assert_eq!(large.status, 413);
}

#[tokio::test]
async fn buckets_are_listed_with_their_sizes() {
    let api = Api::new();
    api.send("PUT /v1/kv/upstreams/id1", &[], "127.0.0.2").await;
    let listed = api.send("GET /v1/kv", &[], "").await.json();
    assert_eq!(listed["buckets"][1]["name"], "upstreams");
    assert_eq!(listed["buckets"][1]["keys"], 1);
    assert_eq!(listed["buckets"][1]["values"], "endpoint");
}

#[tokio::test]
async fn watches_are_bounded_and_end_with_the_api() {
    let api = Api::new();
    let watch = async || {
        let request = request("GET /v1/kv/notes?watch", &[], "");
        let service = TowerToHyperService::new(api.router.clone());
        service.call(request).await.unwrap()
    };
    let first = watch().await;
    let mut second = watch().await.into_body();
    let refused = watch().await;
    assert_eq!(
        (first.status(), refused.status()),
        (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE)
    );
    // A client that goes away leaves its place.
    drop(first);
    let mut third = loop {
        let again = watch().await;
        match again.status() {
            StatusCode::OK => break again.into_body(),
            _ => tokio::task::yield_now().await,
        }
    };
    api.stop.send_replace(true);
    for body in [&mut second, &mut third] {
        while let Some(frame) = body.frame().await {
            frame.unwrap();
        }
    }
}
