//! Index, probes, `/v1/status` and `/metrics`: what the process is doing, read without stopping it.

use super::State as AdminState;
use super::kv::bucket_json;
use super::problem::Problem;
use crate::metrics::{
    self, BucketRow, CanaryRow, PluginRow, RouteRow, Scrape, ShadowRow, SharedRow, VersionRow,
    WorkerTotals,
};
use crate::plugin::{PluginInfo, VersionInfo};
use crate::store::{BackendKind, Health, Store};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// How many characters of a digest name a version.
const VERSION_LEN: usize = 12;

const INDEX: &str = "\
throwbar admin API

GET    /healthz                     alive; no token needed
GET    /readyz                      ready for traffic; no token needed
GET    /metrics                     OpenMetrics text
GET    /v1/status                   version, revisions, plugins, listeners, streams
GET    /v1/fleet                    nodes of the fleet, and what they agreed on
DELETE /v1/fleet/plugins/{name}     forget what they agreed on of a plugin that none of them has
GET    /v1/config                   running config (TOML)
PUT    /v1/config                   replace it; If-Match
POST   /v1/config/check             check a config
GET    /v1/plugins[/{name}]         plugins and their versions
PUT    /v1/plugins/{name}           push a version (application/wasm); If-Match
POST   /v1/plugins/{name}/rollback  back to the version before
POST   /v1/plugins/{name}/activate  a version that is kept
DELETE /v1/plugins/{name}/versions/{version}  forget a version
GET    /v1/plugins/{name}/canary    a version that takes a share of the requests
PUT    /v1/plugins/{name}/canary    begin, or change its share: version, percent, by
DELETE /v1/plugins/{name}/canary    abort
POST   /v1/plugins/{name}/canary/promote  make it active
GET    /v1/plugins/{name}/shadow    a version that is compared on live requests: what differs
PUT    /v1/plugins/{name}/shadow    begin: version, sample; or a component with ?sample=
DELETE /v1/plugins/{name}/shadow    end
POST   /v1/batch                    writes to any buckets, and the activation of a version, in one step
GET    /v1/kv                       buckets
GET    /v1/kv/{bucket}              page of keys: prefix, limit, cursor; format=ndjson, csv or lines exports: deadlines
GET    /v1/kv/{bucket}?watch        changes as they happen: prefix, since, heartbeat; Last-Event-ID
GET    /v1/kv/{bucket}/{key}        value; If-None-Match
GET    /v1/kv/{bucket}/{key}?history  what it was, when, and by whom
GET    /v1/kv/{bucket}/{key}?lookup what plugins find by the key, and by which entry
PUT    /v1/kv/{bucket}/{key}        set: ttl; If-Match, If-None-Match: *
PATCH  /v1/kv/{bucket}/{key}        count or renew: increment, ttl; If-Match, If-None-Match: *
DELETE /v1/kv/{bucket}/{key}        delete; If-Match
POST   /v1/kv/{bucket}/batch        sets, deletes, increments, all or none; If-Match, If-None-Match: *
POST   /v1/kv/{bucket}/import       lines of JSON or text, or CSV, all or none; dry_run, diff; If-Match, If-None-Match: *;
                                    chunk: any length, so many rows at a time
POST   /v1/kv/{bucket}/undo         key (to) or revision (skip_changed) back to what was before; diff; If-Match
POST   /v1/store/backup             a copy of the data file as it is now
POST   /v1/store/compact            make the data file smaller; writes wait
GET    /v1/streams                  open streams: key, upstream, route, plugin, version, client, older_than, limit
DELETE /v1/streams/{id}             close one: code, reason
POST   /v1/streams/drain            close those that match, spread over a time
GET    /v1/streams/drain[/{id}]     how far drains are
DELETE /v1/streams/drain/{id}       close no more of them
GET    /id/{id}/mappings            a bucket as Caddy shows a map
PATCH  /id/{id}/mappings            replace it as Caddy does, closing nothing; If-Match

Changes but of /v1/store take ?dry_run=true. Errors are application/problem+json.
";

/// `GET /`
pub(super) async fn index() -> &'static str {
    INDEX
}

/// `GET /healthz`
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`
pub(super) async fn readyz(State(state): State<AdminState>) -> Response {
    match state.control.ready() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

/// `GET /v1/status`
pub(super) async fn status(State(state): State<AdminState>) -> Response {
    let running = state.control.running();
    let snapshot = state.store.snapshot();
    let ready = state.control.ready();
    let buckets: Map<String, Value> = snapshot
        .buckets()
        .map(|(_, bucket)| (bucket.config().name.clone(), bucket_json(bucket)))
        .collect();
    let plugins: Map<String, Value> = state
        .plugins
        .list()
        .into_iter()
        .map(|plugin| {
            let streams: u64 = plugin.versions.iter().map(|version| version.streams).sum();
            let shown = json!({
                "active": plugin.active,
                "generation": plugin.generation,
                "streams": streams,
            });
            (plugin.name, shown)
        })
        .collect();
    let listeners: Map<String, Value> = running
        .bound
        .iter()
        .map(|(name, address)| (name.clone(), address.to_string().into()))
        .collect();
    let totals = WorkerTotals::sum(&state.counters.workers);
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": state.control.uptime_s(),
        "ready": ready.is_ok(),
        "not_ready": ready.err(),
        "workers": state.counters.workers.len(),
        "config": { "digest": &*running.digest },
        "store": {
            "revision": snapshot.revision(),
            "buckets": buckets,
            "shared": shared_json(&state.store),
        },
        "plugins": plugins,
        "listeners": listeners,
        "streams": { "open": totals.streams_open() },
        "fleet": state.fleet.as_ref().map(|fleet| fleet.status()),
    }))
    .into_response()
}

/// How what proxies share is, by backend.
fn shared_json(store: &Store) -> Value {
    let shared = store.health().into_iter().map(|(backend, health)| {
        let shown = json!({
            "revision": health.revision,
            "lost": health.lost,
            "losses": health.losses,
            "staleness_ms": health.staleness().map(|age| age.as_millis()),
        });
        (backend.as_str().to_owned(), shown)
    });
    Value::Object(shared.collect())
}

/// `GET /metrics`
pub(super) async fn metrics(State(state): State<AdminState>) -> Result<Response, Problem> {
    let text = metrics::encode(gather(&state)).map_err(|_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "metrics cannot be encoded",
        )
    })?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

fn gather(state: &AdminState) -> Scrape {
    let running = state.control.running();
    let snapshot = state.store.snapshot();
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let routes = running
        .routes
        .iter()
        .map(|(name, workers)| {
            let mut row = RouteRow {
                route: name.to_string(),
                ..RouteRow::default()
            };
            for worker in workers.iter() {
                for (sum, counter) in row.by_class.iter_mut().zip(&worker.by_class) {
                    *sum += load(counter);
                }
                row.plugin_failures += load(&worker.plugin_failures);
            }
            row
        })
        .collect();
    let buckets = snapshot
        .buckets()
        .map(|(_, bucket)| BucketRow {
            bucket: bucket.config().name.clone(),
            keys: bucket.len(),
            bytes: bucket.bytes(),
        })
        .collect();
    Scrape {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: state.control.uptime_s(),
        ready: state.control.ready().is_ok(),
        workers: WorkerTotals::sum(&state.counters.workers),
        routes,
        plugins: gather_plugins(state),
        buckets,
        store_revision: snapshot.revision().0,
        fleet: state.fleet.as_ref().map(|fleet| fleet.row()),
        shared: state.store.health().iter().map(shared_row).collect(),
        drains_running: state.drains.running() as u64,
        swaps: state.own.swaps.rows(),
        process_log_dropped: state
            .log_dropped
            .as_ref()
            .map_or(0, |lines| lines.dropped_lines() as u64),
        audit_log_lost: state.audit_losses.lines(),
    }
}

fn shared_row((backend, health): &(BackendKind, Health)) -> SharedRow {
    SharedRow {
        backend: backend.as_str(),
        is_up: health.lost.is_none(),
        revision: health.revision.0,
        losses: health.losses,
        staleness_s: health.staleness().map(|age| age.as_secs_f64()),
    }
}

fn gather_plugins(state: &AdminState) -> Vec<PluginRow> {
    let row = |plugin: PluginInfo| PluginRow {
        calls: plugin.totals,
        active: plugin
            .active
            .as_deref()
            .map(|digest| short(digest).to_owned()),
        versions: plugin.versions.iter().map(version_row).collect(),
        canary: plugin.canary.map(|canary| CanaryRow {
            version: short(&canary.version).to_owned(),
            percent: canary.percent,
        }),
        shadow: plugin.shadow.map(|shadow| ShadowRow {
            version: short(&shadow.version).to_owned(),
            compared: shadow.compared,
            differing: shadow.differing,
            dropped: shadow.dropped,
        }),
        guard_trips: plugin.guard_trips,
        plugin: plugin.name,
    };
    state.plugins.list().into_iter().map(row).collect()
}

fn version_row(version: &VersionInfo) -> VersionRow {
    VersionRow {
        version: short(&version.digest).to_owned(),
        state: version.state.as_str(),
        streams: version.streams,
        sessions: version.sessions,
        memory_bytes: version.memory_bytes,
        calls: version.generation.map(|_| version.totals),
    }
}

fn short(digest: &str) -> &str {
    digest.get(..VERSION_LEN).unwrap_or(digest)
}
