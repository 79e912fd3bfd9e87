//! Requests that change something, or try to: each runs to its end once it has begun, and has its line in the audit log.
//!
//! A handler runs in a task of its own, so what it commits is audited even if its client closes the connection meanwhile. It
//! says in its answer, by [`Told`], what it did; a [`Problem`] says so itself. What says nothing is audited by its status.

use super::connected::Connected;
use super::input::Actor;
use super::problem::Problem;
use super::rights::Caller;
use crate::audit::{self, Losses};
use crate::store::Committed;
use axum::RequestExt;
use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Method, StatusCode};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Operations at once, those without a client included.
const PLACES: u32 = 256;
/// Longest detail of a refusal in the audit log.
const DETAIL_CHARS_MAX: usize = 500;

/// What operations share.
#[derive(Clone)]
pub(super) struct Operations {
    places: Arc<Semaphore>,
    losses: Losses,
    stopping: watch::Sender<bool>,
}

impl Operations {
    /// None is running.
    pub(super) fn new(losses: Losses) -> Self {
        Self {
            places: Arc::new(Semaphore::new(PLACES as usize)),
            losses,
            stopping: watch::Sender::new(false),
        }
    }

    /// Tells those that are running that the process ends.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until none is running.
    pub(super) async fn ended(&self) {
        let all = self.places.acquire_many(PLACES).await;
        drop(all.expect("the semaphore is never closed"));
    }
}

/// What a handler did, in the extensions of its response.
#[derive(Debug, Clone)]
pub(super) enum Told {
    /// A change.
    Done(Done),
    /// It refused, by a [`Problem`] with this code and detail.
    Refused(&'static str, String),
    /// It changed nothing, and was not to.
    Nothing,
    /// It has only begun, and is told of by [`Operation::tell`].
    Later,
}

/// A change as it is audited.
#[derive(Debug, Clone, Default)]
pub(super) struct Done {
    outcome: &'static str,
    revision: Option<u64>,
    keys: Option<u64>,
    plugin: Option<(String, Option<u64>)>,
    digest: Option<String>,
}

impl Done {
    /// In one word.
    pub(super) fn new(outcome: &'static str) -> Self {
        Self {
            outcome,
            ..Self::default()
        }
    }

    /// A write.
    pub(super) fn written(outcome: &'static str, committed: &Committed) -> Self {
        let Committed {
            revision,
            created,
            updated,
            touched,
            deleted,
            ..
        } = *committed;
        Self {
            revision: Some(revision.0),
            keys: Some(created + updated + touched + deleted),
            ..Self::new(outcome)
        }
    }

    /// A version of a plugin, and the generation that it became.
    pub(super) fn of_plugin(self, plugin: &str, generation: Option<u64>) -> Self {
        Self {
            plugin: Some((plugin.to_owned(), generation)),
            ..self
        }
    }

    /// What there is now.
    pub(super) fn with_digest(self, digest: &str) -> Self {
        Self {
            digest: Some(digest.to_owned()),
            ..self
        }
    }
}

impl Told {
    /// A response with what was done, or with nothing for a dry run.
    pub(super) fn with(done: Done, dry_run: bool, response: impl IntoResponse) -> Response {
        let told = if dry_run {
            Self::Nothing
        } else {
            Self::Done(done)
        };
        told.within(response)
    }

    /// A response that says so.
    pub(super) fn within(self, response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// A request that may change something, from its begin to its line. Clones are the same one: it is over when the last is
/// dropped.
#[derive(Clone)]
pub(super) struct Operation(Arc<Running>);

struct Running {
    actor: Actor,
    method: Method,
    path: String,
    is_told: AtomicBool,
    losses: Losses,
    stopping: watch::Sender<bool>,
    _place: OwnedSemaphorePermit,
}

impl Operation {
    /// Who asks.
    pub(super) fn actor(&self) -> Actor {
        self.0.actor.clone()
    }

    /// Whether the process ends, for what would take long.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.0.stopping.subscribe()
    }

    /// Promises another line, for what is begun now.
    pub(super) fn owe(&self) {
        self.0.is_told.store(false, Relaxed);
    }

    /// Writes a line.
    pub(super) fn tell(&self, told: &Told) {
        match told {
            Told::Done(done) => self.0.line(done, None),
            Told::Refused(code, detail) => self.0.line(&Done::new(code), Some(detail)),
            Told::Nothing => {}
            Told::Later => return,
        }
        self.0.is_told.store(true, Relaxed);
    }
}

impl Running {
    fn line(&self, done: &Done, detail: Option<&str>) {
        let detail = detail.map(|detail| match detail.char_indices().nth(DETAIL_CHARS_MAX) {
            Some((end, _)) => &detail[..end],
            None => detail,
        });
        let plugin = done.plugin.as_ref();
        tracing::info!(
            target: audit::TARGET,
            actor = self.actor.0,
            method = self.method.as_str(),
            path = self.path,
            outcome = done.outcome,
            revision = done.revision,
            keys = done.keys,
            plugin = plugin.map(|(name, _)| name.as_str()),
            generation = plugin.and_then(|(_, generation)| *generation),
            digest = done.digest,
            detail,
        );
        self.losses.tell();
    }
}

impl Drop for Running {
    /// A handler that panicked, or was cut by the end of the process, may have changed something.
    fn drop(&mut self) {
        if !*self.is_told.get_mut() {
            self.line(&Done::new("unfinished"), None);
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Operation {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // Every request that may change something has one.
        parts.extensions.get().cloned().ok_or_else(cut)
    }
}

/// Stands behind the gate, before every route.
pub(super) async fn conduct(
    State(operations): State<Operations>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller: Result<Caller, Infallible> = request.extract_parts().await;
    let Ok(caller) = caller;
    let params = request.extract_parts::<RawPathParams>().await.ok();
    let permitted = caller.permit(request.method(), request.uri(), params.as_ref());
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return match permitted {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        };
    }
    let named = request.extract_parts::<Actor>().await;
    let place = operations.places.acquire_owned().await;
    let operation = Operation(Arc::new(Running {
        actor: named.clone().unwrap_or_else(|_| Actor::unnamed(&caller)),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        is_told: AtomicBool::new(false),
        losses: operations.losses,
        stopping: operations.stopping,
        _place: place.expect("the semaphore is never closed"),
    }));
    let connected = Connected::default();
    let request = request.map(|body| connected.body(body));
    let work = async move {
        let mut request = request;
        let response = match permitted.and(named) {
            Ok(_) => {
                request.extensions_mut().insert(operation.clone());
                next.run(request).await
            }
            Err(problem) => problem.into_response(),
        };
        operation.tell(&told(&response));
        response
    };
    let done = tokio::spawn(work).await;
    let response = done.unwrap_or_else(|_| cut().into_response());
    // The body of an answer may be made while that of its request is read.
    response.map(|body| connected.until_answered(body))
}

fn told(response: &Response) -> Told {
    let told = response.extensions().get().cloned();
    told.unwrap_or_else(|| {
        Told::Done(Done::new(match response.status() {
            status if status.is_success() => "done",
            status => status.canonical_reason().unwrap_or("refused"),
        }))
    })
}

fn cut() -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the work was cut",
    )
}
