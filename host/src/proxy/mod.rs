//! A request's walk: admit → route → forward → stream → log.

use crate::deadline::Deadlines;
use crate::listener::ClientConnection;
use crate::metrics::{Counters, WorkerCounters};
use crate::plugin::{Forward, Reply, Sessions};
use crate::store::{CommitError, Reader, Store, Target};
use crate::stream::Streams;
use crate::upstream::body::{Home, UpstreamBody};
use crate::upstream::connection::Pool;
use crate::upstream::records::Records;
use crate::upstream::resolve::Resolver;
use arc_swap::ArcSwap;
use body::{RequestBody, ResponseBody};
use bytes::Bytes;
use error::ProxyError;
use forward::{Attempt, Forwarded};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use instances::Instances;
use record::Record;
use request::{Admitted, ConnectionFields};
use route::{Failure, Verdict};
use session::Hooking;
use site::{Site, SiteView};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub mod access_log;
pub mod body;
pub mod encode;
pub mod error;
pub mod forward;
pub mod instances;
pub mod matcher;
pub mod record;
pub mod request;
pub mod route;
pub mod session;
pub mod site;
pub mod upgrade;

/// One worker's proxy: all that its requests share, and no other thread touches.
pub struct Proxy {
    /// Which worker.
    pub worker: usize,
    /// The site that all workers serve.
    pub site: Arc<ArcSwap<Site>>,
    /// Everybody's counters.
    pub counters: Arc<Counters>,
    /// Where plugins' writes go.
    pub store: Store,
    /// The store as this worker sees it.
    pub reader: RefCell<Reader>,
    /// Deadlines of this worker's sockets.
    pub deadlines: Arc<Deadlines>,
    /// Idle connections to endpoints.
    pub pool: Rc<Pool>,
    /// Addresses of host names.
    pub resolver: Resolver,
    /// Warm plugin instances.
    pub instances: RefCell<Instances>,
    /// Balancers of typed records.
    pub records: RefCell<Records>,
    /// Upgraded streams.
    pub streams: Rc<Streams>,
    /// What plugins keep for them.
    pub sessions: Rc<Sessions>,
    /// Access lines.
    pub log: Rc<access_log::AccessLog>,
    /// The site with this worker's own state.
    pub view: RefCell<Rc<SiteView>>,
    /// What request heads are written to.
    pub heads: encode::HeadBuffers,
    /// Requests so far.
    pub requests: Cell<u64>,
    /// What makes their numbers unique among workers and processes.
    pub id_prefix: Box<str>,
}

impl Proxy {
    /// This worker's counters.
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters.workers[self.worker]
    }

    /// The number of the next request on this worker.
    pub fn next_request_id(&self) -> u64 {
        self.requests.replace(self.requests.get() + 1)
    }

    /// The newest site.
    pub fn view(&self) -> Rc<SiteView> {
        let newest = self.site.load();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&newest, &view.site) {
            *view = SiteView::new(newest.clone(), Some(&view));
            self.streams.configure(newest.streams.clone());
        }
        view.clone()
    }

    /// A request, from its head to the head of its response; its body is the response's own.
    pub async fn handle(
        self: Rc<Self>,
        connection: Rc<ClientConnection>,
        mut request: http::Request<Incoming>,
    ) -> Response<ResponseBody> {
        let view = self.view();
        let mut record = Box::new(Record::new(&self, view.clone(), &connection));
        let client = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let http2 = connection.http2;
        let fields = match request::admit(
            parts,
            connection.client.ip(),
            view.site.limits.uri_bytes_max,
        ) {
            Ok(Admitted { head, connection }) => {
                record.head = Some(head);
                connection
            }
            Err(refused) => return failure(ProxyError::Refused(refused), record),
        };
        let body = (!body.is_end_stream()).then(|| {
            let stall = http2.then_some(view.site.limits.body_timeout);
            RequestBody::new(body, view.site.limits.body_bytes_max, stall)
        });
        if let Some(length) = body.as_ref().and_then(|body| body.size_hint().exact())
            && view.site.limits.body_bytes_max != 0
            && length > view.site.limits.body_bytes_max
        {
            return failure(ProxyError::BodyTooLarge, record);
        }
        let mut again = false;
        let (forward, trusted, hook) = loop {
            let (mut forward, trusted, hooks) = match self.route(&view, &mut record).await {
                Ok(Verdict::Forward {
                    forward,
                    trusted,
                    hooks,
                }) => (forward, trusted, hooks),
                Ok(Verdict::Reply(answer)) => return reply(answer, record),
                Err(error) => return failure(error, record),
            };
            record.key = forward.key.take();
            let Some(generation) = hooks else {
                break (forward, trusted, None);
            };
            let opening = self.open_session(&view, &generation, &mut forward, &mut record);
            match opening.await {
                Ok(Hooking::Taken(hook)) => break (forward, trusted, hook),
                Ok(Hooking::Refused(answer)) => return reply(answer, record),
                // Another version migrated the data between the two, and decides from now on.
                Err(ProxyError::Commit {
                    error: CommitError::Marked { .. },
                    ..
                }) if !again => again = true,
                Err(error) => return failure(error, record),
            }
        };
        let attempt = Attempt {
            forward: &forward,
            trusted,
            fields: &fields,
            client: &connection.client_ip_text,
        };
        match self.forward(&view, attempt, body, &mut record).await {
            Err(error) => failure(error, record),
            Ok(forwarded) if forwarded.response.head.status == StatusCode::SWITCHING_PROTOCOLS => {
                let pending = upgrade::Pending {
                    forwarded,
                    client,
                    varying: None,
                    follow: None,
                    hook,
                };
                self.switch(&view, &connection, forward, pending, record)
            }
            Ok(forwarded) => self.respond(&view, &forward, &fields, forwarded, http2, record),
        }
    }

    /// An endpoint's response, with its body to come.
    fn respond(
        &self,
        view: &SiteView,
        forward: &Forward,
        fields: &ConnectionFields,
        forwarded: Forwarded,
        http2: bool,
        mut record: Box<Record>,
    ) -> Response<ResponseBody> {
        let Forwarded {
            response: exchanged,
            connection,
            picked,
        } = forwarded;
        let mut response_head = exchanged.head;
        edit(&mut response_head.headers, forward);
        if view.site.limits.via {
            response_head
                .headers
                .append(header::VIA, HeaderValue::from_static("1.1 throwbar"));
        }
        if !http2 && !fields.trailers {
            response_head.headers.remove(header::TRAILER);
        }
        // A request to upgrade that was answered otherwise ends the connection.
        let asked_to_upgrade = record.head.as_ref().is_some_and(|head| head.websocket);
        if asked_to_upgrade {
            end_connection(&mut response_head.headers);
        }
        record.status = response_head.status.as_u16();
        let home = Home {
            pool: self.pool.clone(),
            limits: view.site.ticks.pool,
            counters: self.counters.clone(),
            worker: self.worker,
        };
        let keep_alive = response_head.keep_alive && exchanged.sent_all && !asked_to_upgrade;
        let idle = view.site.ticks.response_body;
        let body = UpstreamBody::new(
            connection,
            response_head.coding,
            keep_alive,
            exchanged.received,
            idle,
            home,
        );
        let mut response = Response::new(ResponseBody::upstream(body, record, picked));
        *response.status_mut() = response_head.status;
        *response.headers_mut() = response_head.headers;
        response
    }

    /// A 101: both sockets become a stream.
    fn switch(
        self: &Rc<Self>,
        view: &Rc<SiteView>,
        connection: &Rc<ClientConnection>,
        mut forward: Forward,
        mut pending: upgrade::Pending,
        mut record: Box<Record>,
    ) -> Response<ResponseBody> {
        let address = pending.forwarded.connection.place().address.clone();
        let mut headers = std::mem::take(&mut pending.forwarded.response.head.headers);
        let head = record.head.as_ref().expect("given back by plugins");
        let key = head
            .headers
            .get(header::SEC_WEBSOCKET_KEY)
            .expect("admission checked it");
        if !upgrade::accepts(key, headers.get(header::SEC_WEBSOCKET_ACCEPT)) {
            return failure(
                ProxyError::Upgrade(address, "Sec-WebSocket-Accept does not answer the key"),
                record,
            );
        }
        if pending.hook.is_some() && headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
            return failure(
                ProxyError::Upgrade(address, "Sec-WebSocket-Extensions was not offered"),
                record,
            );
        }
        edit(&mut headers, &forward);
        upgrade::switching(&mut headers);
        pending.varying = forward.varying.take();
        pending.follow = forward.follow.take();
        if let Err(error) = self.join(view, connection, pending, &record) {
            return failure(error, record);
        }
        record.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        let mut response = Response::new(ResponseBody::full(Bytes::new(), record));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        response
    }
}

/// The edits of a decision to a response.
fn edit(headers: &mut HeaderMap, forward: &Forward) {
    let constant = forward.constant.as_deref();
    let varying = forward.varying.as_deref().map(|varying| &varying.edits);
    for edits in [constant, varying].into_iter().flatten() {
        for name in &edits.response_remove {
            headers.remove(name);
        }
        for (name, value) in &edits.response_set {
            headers.insert(name.clone(), value.clone());
        }
    }
}

/// A reply of the config or a plugin.
fn reply(answer: Reply, mut record: Box<Record>) -> Response<ResponseBody> {
    record.status = answer.status.as_u16();
    let websocket = record.head.as_ref().is_some_and(|head| head.websocket);
    let mut response = Response::new(ResponseBody::full(answer.body, record));
    *response.status_mut() = answer.status;
    for (name, value) in answer.headers {
        response.headers_mut().append(name, value);
    }
    if websocket {
        end_connection(response.headers_mut());
    }
    response
}

/// Nobody knows what the client sent after such a request.
fn end_connection(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// The client gets a status and the request's id, the log gets the reason.
fn failure(failure: impl Into<Failure>, mut record: Box<Record>) -> Response<ResponseBody> {
    let Failure { error, status } = failure.into();
    let status = status.unwrap_or_else(|| error.status());
    record.error = Some(error.chain());
    let id = record.request_id();
    let what = match &error {
        ProxyError::Refused(refused) => refused.reason,
        _ => status.canonical_reason().unwrap_or("error"),
    };
    let body = Bytes::from(format!("{} {what}\nrequest {id}\n", status.as_u16()));
    let headers = vec![
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain")),
        (
            REQUEST_ID,
            HeaderValue::from_str(&id).expect("hexadecimal digits"),
        ),
    ];
    let malformed = matches!(error, ProxyError::Refused(_)) && !record.is_http2();
    let answer = Reply {
        status,
        headers,
        body,
    };
    let mut response = reply(answer, record);
    if malformed {
        end_connection(response.headers_mut());
    }
    response
}

const REQUEST_ID: http::HeaderName = http::HeaderName::from_static("x-request-id");

impl From<ProxyError> for Failure {
    fn from(error: ProxyError) -> Self {
        Self {
            error,
            status: None,
        }
    }
}

/// A route of the config: the first that matches decides.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    /// Its name in logs and metrics.
    pub name: String,
    /// Which requests it is for.
    pub matcher: matcher::Matcher,
    /// What becomes of them.
    pub handler: Handler,
    /// Of its streams, in place of the times of all.
    pub streams: crate::stream::RouteTimes,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Handler {
    /// A plugin decides.
    Plugin {
        /// The plugin's name.
        plugin: String,
        /// When it gives no decision.
        on_failure: OnFailure,
    },
    /// An address.
    To(Target, u16),
    /// An upstream.
    Upstream(String),
    /// A reply; `${header.NAME}` in its body is replaced, escaped for JSON if the content type is JSON.
    Reply(Reply),
}

/// What becomes of a request when its plugin gives no decision: trap, deadline, bad decision, refused write, no
/// version yet.
#[derive(Debug, Clone, PartialEq)]
pub enum OnFailure {
    /// An empty reply with this status.
    Reply(http::StatusCode),
    /// The version before the active one decides; if it fails too, 503.
    LastGood,
    /// An upstream of the config.
    Upstream(String),
}

impl Default for OnFailure {
    fn default() -> Self {
        Self::Reply(http::StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// Bounds of requests and connections. Timeouts are kept with a resolution of [`TICK`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Accept to first byte.
    pub first_byte_timeout: Duration,
    /// First byte of a head to its end.
    pub head_timeout: Duration,
    /// Between requests of a connection.
    pub idle_timeout: Duration,
    /// Between two reads of a request body.
    pub body_timeout: Duration,
    /// While a client takes nothing of a response.
    pub write_timeout: Duration,
    /// A request head, in bytes.
    pub head_bytes_max: usize,
    /// Fields of a head.
    pub headers_max: usize,
    /// Path and query, in bytes.
    pub uri_bytes_max: usize,
    /// A request body, in bytes; 0: no bound.
    pub body_bytes_max: u64,
    /// Connections of one worker.
    pub connections_max: usize,
    /// Connections of one client address on one worker.
    pub connections_per_client_max: usize,
    /// Concurrent streams of an HTTP/2 connection.
    pub h2_streams_max: u32,
    /// Dialling an endpoint.
    pub connect_timeout: Duration,
    /// Request sent to response head.
    pub response_timeout: Duration,
    /// Between two reads of a response body.
    pub response_body_timeout: Duration,
    /// Idle connections kept to one endpoint, on each worker.
    pub pool_per_endpoint_max: usize,
    /// How long an idle connection is kept.
    pub pool_idle_timeout: Duration,
    /// Adds a `Via` field both ways.
    pub via: bool,
}

/// Resolution of all timeouts of the data plane.
pub const TICK: Duration = Duration::from_millis(100);

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_byte_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            head_bytes_max: 64 << 10,
            headers_max: 100,
            uri_bytes_max: 16 << 10,
            body_bytes_max: 0,
            connections_max: 16_384,
            connections_per_client_max: 16_384,
            h2_streams_max: 100,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(60),
            response_body_timeout: Duration::from_secs(60),
            pool_per_endpoint_max: 256,
            pool_idle_timeout: Duration::from_secs(30),
            via: false,
        }
    }
}
