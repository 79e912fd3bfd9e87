//! The admin API: plugins, store, streams, config, metrics, on a thread of its own.
//!
//! A request passes [`auth`] first, then meets one handler of the table in `routes`. Errors are [`problem`] documents.
//! `GET` and `HEAD` never change anything; whatever else is asked for goes through `operation`, which has it audited. Changes
//! take `?dry_run=true`.
//!
//! With `auth = "none"` on loopback, Caddy's `PATCH /id/{id}/mappings` works as its users wrote it; with a token, they add
//! one `Authorization` field.

use crate::app::Control;
use crate::audit::Losses;
use crate::drains::Drains;
use crate::fleet::Fleet;
use crate::metrics::{Counters, Swaps};
use crate::plugin::{CompileBounds, Plugins};
use crate::store::Store;
use crate::worker::Workers;
use axum::Router;
use axum::extract::FromRef;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, patch, post};
use http::{Method, StatusCode, Uri};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use tracing_appender::non_blocking::ErrorCounter;

pub mod auth;
mod batch;
pub(crate) mod caddy;
mod config;
mod connected;
mod drains;
mod fleet;
mod handed;
mod input;
mod kv;
mod operation;
mod plugins;
pub mod problem;
mod revocation;
mod rights;
mod rollout;
mod serve;
mod staleness;
mod status;
mod store_file;
mod streams;
pub mod token;
mod transfer;

pub(crate) use batch::{check_batch, check_writes};
pub(crate) use input::BYTE_ORDER_MARK;
pub use rights::LimitedToken;
pub use serve::{Bound, bind};
pub use token::{Token, TokenError};
pub(crate) use transfer::check_write;

use kv::Watches;
use operation::Operations;
use problem::Problem;
use revocation::Tokens;

/// Where the admin API listens and who may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The address.
    pub listen: Address,
    /// Who may use it.
    pub auth: Auth,
    /// Largest component that may be uploaded, in bytes.
    pub component_bytes_max: usize,
    /// What compiling one may take.
    pub compile: CompileBounds,
    /// Largest other body, in bytes.
    pub body_bytes_max: usize,
    /// Tokens that are good for a part of the store only.
    pub tokens: Vec<Arc<LimitedToken>>,
}

/// A TCP address or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket: its file mode is 0660.
    Unix(PathBuf),
}

/// Who may use the admin API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Whoever has the token kept in `admin.token` of the data directory.
    Token,
    /// Everyone who can connect: only on loopback or a Unix socket.
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 2019))),
            auth: Auth::Token,
            component_bytes_max: 32 << 20,
            compile: CompileBounds::default(),
            body_bytes_max: 256 << 20,
            tokens: Vec::new(),
        }
    }
}

impl Address {
    /// The path, of a Unix socket.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(path) => Some(path),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What the handlers work on; clones share it.
#[derive(Clone)]
pub struct State {
    /// Routing data.
    pub store: Store,
    /// Plugins.
    pub plugins: Arc<Plugins>,
    /// Data-plane threads.
    pub workers: Workers,
    /// The running process.
    pub control: Control,
    /// Drains of streams.
    pub drains: Arc<Drains>,
    /// The fleet, if this is a node of one.
    pub fleet: Option<Arc<Fleet>>,
    /// What the workers count.
    pub counters: Arc<Counters>,
    /// Counts the lines of the process's own log that were dropped, if it has one.
    pub log_dropped: Option<ErrorCounter>,
    /// Lines of the audit log that could not be written.
    pub audit_losses: Losses,
    /// The token that callers need; with [`Auth::Token`] and none, nobody is let in.
    pub token: Option<Token>,
    /// The config of this API.
    pub config: Config,
    /// What only this API keeps; `Default::default()`.
    pub own: Arc<Own>,
}

/// What only the admin API keeps.
#[derive(Debug)]
pub struct Own {
    /// Deploys by result, for metrics.
    swaps: Swaps,
    /// Plugins with a deploy between the check of its conditions and its end.
    deploying: plugins::Deploying,
    /// Held from the check of a config's `If-Match` to the end of its apply.
    configuring: tokio::sync::Mutex<()>,
    /// Clients that watch a bucket.
    watches: Arc<Watches>,
    /// Set when the API stops, for answers that do not end by themselves.
    stopping: watch::Sender<bool>,
}

impl Default for Own {
    fn default() -> Self {
        Self {
            swaps: Swaps::default(),
            deploying: plugins::Deploying::default(),
            configuring: tokio::sync::Mutex::default(),
            watches: Arc::default(),
            stopping: watch::Sender::new(false),
        }
    }
}

/// What the handlers of the store work on: they need nothing else of the process.
#[derive(Clone)]
struct Data {
    store: Store,
    body_bytes_max: usize,
    tokens: Tokens,
    watches: Arc<Watches>,
    stopping: watch::Receiver<bool>,
}

impl FromRef<State> for Data {
    fn from_ref(state: &State) -> Self {
        Self {
            store: state.store.clone(),
            body_bytes_max: state.config.body_bytes_max,
            tokens: Tokens::following(state.control.tokens()),
            watches: state.own.watches.clone(),
            stopping: state.own.stopping.subscribe(),
        }
    }
}

/// Serves the admin API until `stop`, then lets running requests end for a few seconds. For the control runtime.
///
/// # Errors
/// If the listener cannot be given to the runtime. Dropping the future cuts every connection.
pub async fn serve(
    state: State,
    listener: Bound,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let own = state.own.clone();
    let stop = async move {
        stop.await;
        own.stopping.send_replace(true);
    };
    let operations = Operations::new(state.audit_losses.clone());
    serve::run(
        router(state, operations.clone()),
        listener,
        stop,
        &operations,
    )
    .await
}

fn router(state: State, operations: Operations) -> Router {
    let tokens = Tokens::following(state.control.tokens());
    let gate = auth::Gate::new(&state.config, state.token.clone()).with(tokens);
    let staleness = from_fn_with_state(state.store.clone(), staleness::tell);
    guarded(routes().layer(staleness), gate, operations).with_state(state)
}

/// Every route.
fn routes() -> Router<State> {
    Router::new()
        .route("/", get(status::index))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .route("/metrics", get(status::metrics))
        .route("/v1/status", get(status::status))
        .route("/v1/fleet", get(fleet::get))
        .route(
            "/v1/fleet/plugins/{name}",
            axum::routing::delete(fleet::forget),
        )
        .route("/v1/batch", post(batch::post))
        .route("/v1/config", get(config::get).put(config::put))
        .route("/v1/config/check", post(config::check))
        .route("/v1/plugins", get(plugins::list))
        .route("/v1/plugins/{name}", get(plugins::get).put(plugins::put))
        .route("/v1/plugins/{name}/rollback", post(plugins::rollback))
        .merge(rollout::routes())
        .route("/v1/streams", get(streams::list))
        .route("/v1/streams/drain", get(drains::list).post(drains::start))
        .route(
            "/v1/streams/drain/{id}",
            get(drains::get).delete(drains::cancel),
        )
        .route("/v1/streams/{id}", axum::routing::delete(streams::close))
        .route("/id/{id}/mappings", patch(caddy::patch).get(caddy::get))
        .merge(data_routes())
}

/// The routes of the store.
fn data_routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Data: FromRef<S>,
{
    Router::new()
        .route("/v1/store/backup", post(store_file::backup))
        .route("/v1/store/compact", post(store_file::compact))
        .route("/v1/kv", get(kv::buckets))
        .route("/v1/kv/{bucket}", get(kv::list))
        // A key may be any path, `batch` and `import` included: the method tells them apart.
        .route(
            "/v1/kv/{bucket}/{*key}",
            get(kv::get)
                .put(kv::put)
                .patch(kv::patch)
                .delete(kv::delete)
                .post(transfer::post),
        )
}

/// Puts the gate before everything, unknown paths included, and after it what looks at rights and has operations audited.
fn guarded<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    gate: auth::Gate,
    operations: Operations,
) -> Router<S> {
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(operations, operation::conduct))
        .layer(from_fn_with_state(gate, auth::gate))
}

async fn unknown_path(uri: Uri) -> Problem {
    Problem::not_found(
        "not-found",
        format!("no route {:?}: GET / lists them", uri.path()),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("{method} is not allowed on {:?}", uri.path()),
    )
}

#[cfg(test)]
mod tests;
