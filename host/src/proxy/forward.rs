//! Forwarding: attempts that pick, connect, send and wait; a retry goes round here and nowhere else.

use super::Proxy;
use super::body::{RequestBody, RequestBodyError};
use super::encode::{self, BodyFraming};
use super::error::ProxyError;
use super::record::Record;
use super::request::ConnectionFields;
use super::site::SiteView;
use crate::deadline::Ticks;
use crate::plugin::{Forward, RouteTarget};
use crate::store::{RecordTls, Target};
use crate::upstream::address::{Address, Place};
use crate::upstream::balance::Picked;
use crate::upstream::connection::Connection;
use crate::upstream::exchange::{self, ExchangeError, Outgoing, Response};
use http::{HeaderMap, Method, header};
use http_body::Body;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Endpoints tried for one request.
const ENDPOINTS_MAX: usize = 3;

/// A response's head, with the connection that its body or stream comes from.
pub struct Forwarded {
    /// The response.
    pub response: Response,
    /// The connection.
    pub connection: Connection,
    /// The endpoint picked from an upstream.
    pub picked: Option<Picked>,
}

/// A request to be forwarded.
pub struct Attempt<'a> {
    /// The decision.
    pub forward: &'a Forward,
    /// Whether the guard's networks and ports do not apply.
    pub trusted: bool,
    /// What the client said about its connection.
    pub fields: &'a ConnectionFields,
    /// The client, as `X-Forwarded-For` names it.
    pub client: &'a str,
}

/// The map of a request's fields, which are all in the encoded head by now. The response's fields go into it, and the
/// server keeps that map for its connection's next request, so that none is allocated. A request to upgrade keeps its
/// own: what answers it is checked against its fields.
fn spare_map(record: &mut Record) -> HeaderMap {
    match &mut record.head {
        Some(head) if !head.websocket => std::mem::take(&mut head.headers),
        _ => HeaderMap::new(),
    }
}

impl Proxy {
    /// Sends the request on and returns the head of the response.
    ///
    /// Nothing is sent twice, but for one case: a connection from the pool that ends before a byte of the response may
    /// have been closed before the request reached the endpoint; a request that is idempotent and has no body is then
    /// sent once more, on a new connection (RFC 9110, 9.2.2).
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub async fn forward(
        &self,
        view: &SiteView,
        attempt: Attempt<'_>,
        body: Option<RequestBody>,
        record: &mut Record,
    ) -> Result<Forwarded, ProxyError> {
        let head = record.head.as_ref().expect("given back by plugins");
        let framing = match &body {
            // A method that may have a body says that it has none.
            None if head.headers.contains_key(header::CONTENT_LENGTH) => BodyFraming::Length(0),
            None => BodyFraming::None,
            Some(body) => body
                .size_hint()
                .exact()
                .map_or(BodyFraming::Chunked, BodyFraming::Length),
        };
        let mut encoded = self.heads.take();
        let forwarded = view.site.limits.forwarded(attempt.client);
        encode::encode(
            &mut encoded,
            head,
            attempt.fields,
            attempt.forward,
            framing,
            forwarded,
        );
        let (method, websocket) = (head.method.clone(), head.websocket);
        let outcome = self
            .attempts(
                view,
                &attempt,
                (&encoded, &method, websocket),
                framing,
                body,
                record,
            )
            .await;
        self.heads.give(encoded);
        outcome
    }

    /// Sends the encoded head, and the body, until there is a response.
    async fn attempts(
        &self,
        view: &SiteView,
        attempt: &Attempt<'_>,
        (head, method, websocket): (&[u8], &Method, bool),
        framing: BodyFraming,
        body: Option<RequestBody>,
        record: &mut Record,
    ) -> Result<Forwarded, ProxyError> {
        let chunked = framing == BodyFraming::Chunked;
        let mut body = pin!(body);
        let varying = attempt.forward.varying.as_deref();
        let mut limits = view.site.ticks.exchange;
        if let Some(timeout) = varying.and_then(|v| v.response_timeout) {
            limits.response = limits.response.min(Ticks::at_least(timeout));
        }
        let mut map = spare_map(record);
        let (mut connection, picked) = self.connect(view, attempt, websocket, record).await?;
        loop {
            let outgoing = Outgoing {
                head,
                method,
                websocket,
                map: &mut map,
            };
            let sent_body = body.as_mut().as_pin_mut().map(|body| (body, chunked));
            let error = match exchange::exchange(&mut connection, outgoing, sent_body, limits).await
            {
                Ok(response) => {
                    record.bytes_in = body.as_ref().as_pin_ref().map_or(0, |body| body.received());
                    return Ok(Forwarded {
                        response,
                        connection,
                        picked,
                    });
                }
                Err(error) => error,
            };
            let again = matches!(error, ExchangeError::Closed(_))
                && connection.reused
                && body.is_none()
                && [
                    Method::GET,
                    Method::HEAD,
                    Method::OPTIONS,
                    Method::PUT,
                    Method::DELETE,
                ]
                .contains(method);
            if !again {
                record.bytes_in = body.as_ref().as_pin_ref().map_or(0, |body| body.received());
                return Err(failed(connection.place().address.clone(), error));
            }
            self.counters().upstream_retries.fetch_add(1, Relaxed);
            connection = self
                .pool
                .dial(
                    connection.place().clone(),
                    &view.site.tls,
                    connect_timeout(view, attempt),
                    self.counters(),
                )
                .await?;
        }
    }

    /// A connection to the target: from the pool, or dialled; of an upstream, to the first endpoint that can be reached.
    async fn connect(
        &self,
        view: &SiteView,
        attempt: &Attempt<'_>,
        websocket: bool,
        record: &mut Record,
    ) -> Result<(Connection, Option<Picked>), ProxyError> {
        let mut way = Way {
            trusted: attempt.trusted,
            websocket,
            tls: None,
        };
        let (balancer, key, port) = match &attempt.forward.to {
            RouteTarget::Address(target, port) => {
                let reached = self.reach(view, attempt, (target, *port), way, record);
                return Ok((reached.await?, None));
            }
            RouteTarget::Record(typed, port) => {
                let now = self.deadlines.now();
                let balancer = self.records.borrow_mut().balancer(typed, now);
                way.tls = typed.tls.as_ref();
                (balancer, record.key.clone(), *port)
            }
            RouteTarget::Upstream(name, key) => {
                let balancer = view.balancer(name);
                let balancer = balancer.ok_or_else(|| ProxyError::NoUpstream(name.to_string()))?;
                way.trusted = true;
                (balancer, key.clone(), None)
            }
        };
        let key = key.as_deref().unwrap_or(attempt.client).as_bytes();
        let mut tried = Vec::new();
        loop {
            let now = self.deadlines.now();
            let picked = balancer
                .pick(key, &tried, now)
                .expect("at least one endpoint, and no more tried than there are");
            let (target, own_port) = picked.place();
            let place = (target, port.unwrap_or(*own_port));
            match self.reach(view, attempt, place, way, record).await {
                Ok(connection) => return Ok((connection, Some(picked))),
                Err(error) => {
                    picked.failed(now);
                    tried.push(picked.index());
                    if tried.len() >= ENDPOINTS_MAX.min(balancer.len()) {
                        return Err(error);
                    }
                    tracing::debug!(
                        error = error.chain(),
                        upstream = picked.upstream().map(|name| &**name),
                        "trying another endpoint"
                    );
                }
            }
        }
    }

    /// A connection to one host and port.
    async fn reach(
        &self,
        view: &SiteView,
        attempt: &Attempt<'_>,
        (target, port): (&Target, u16),
        way: Way<'_>,
        record: &mut Record,
    ) -> Result<Connection, ProxyError> {
        let server_name = way.server_name(target);
        let place = |address: Address| Place {
            address,
            server_name: server_name.clone(),
        };
        let addresses = match target {
            Target::Ip(ip, _) => {
                let place = place(SocketAddr::new(*ip, port).into());
                return self.reach_place(view, attempt, place, way, record).await;
            }
            Target::Unix(path) => {
                let place = place(Address::Unix(Arc::clone(path)));
                return self.reach_place(view, attempt, place, way, record).await;
            }
            Target::Name(name, _) => self
                .resolver
                .resolve(name, port)
                .await
                .map_err(|error| ProxyError::Resolve(name.to_string(), error))?,
        };
        let mut last = None;
        for address in addresses.into_iter().take(ENDPOINTS_MAX) {
            let place = place(address.into());
            match self.reach_place(view, attempt, place, way, record).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("the resolver gives at least one address"))
    }

    async fn reach_place(
        &self,
        view: &SiteView,
        attempt: &Attempt<'_>,
        place: Place,
        way: Way<'_>,
        record: &mut Record,
    ) -> Result<Connection, ProxyError> {
        let guard = &view.site.guard;
        match &place.address {
            Address::Tcp(address) => guard.check(*address, way.trusted),
            Address::Unix(path) => guard.check_socket(path, way.trusted),
        }
        .map_err(ProxyError::Guard)?;
        record.endpoint = Some(place.address.clone());
        // A stream's connection never was anybody else's, and never will be.
        if !way.websocket
            && let Some(connection) = self.pool.take(&place, self.counters())
        {
            return Ok(connection);
        }
        match &place.address {
            Address::Tcp(address) => guard.check_dial(*address),
            Address::Unix(path) => guard.check_dial_socket(path),
        }
        .map_err(ProxyError::Guard)?;
        let timeout = connect_timeout(view, attempt);
        let (tls, counters) = (&view.site.tls, self.counters());
        Ok(self.pool.dial(place, tls, timeout, counters).await?)
    }
}

/// How an endpoint is reached.
#[derive(Clone, Copy)]
struct Way<'a> {
    /// Whether the guard's networks and ports do not apply.
    trusted: bool,
    websocket: bool,
    tls: Option<&'a RecordTls>,
}

impl Way<'_> {
    /// Who has to be there, if that is over TLS.
    fn server_name(&self, target: &Target) -> Option<Arc<str>> {
        let tls = self.tls?;
        Some(match (&tls.sni, target) {
            (Some(sni), _) => Arc::clone(sni),
            (None, Target::Ip(ip, _)) => ip.to_string().into(),
            (None, Target::Name(name, _)) => (**name).into(),
            (None, Target::Unix(path)) => Arc::clone(path),
        })
    }
}

fn connect_timeout(view: &SiteView, attempt: &Attempt<'_>) -> Duration {
    let limit = view.site.limits.connect_timeout;
    let asked = attempt
        .forward
        .varying
        .as_deref()
        .and_then(|varying| varying.connect_timeout);
    asked.map_or(limit, |asked| asked.min(limit))
}

fn failed(address: Address, error: ExchangeError) -> ProxyError {
    let ExchangeError::Client(cause) = error else {
        return ProxyError::Exchange(address, error);
    };
    match cause.downcast_ref::<RequestBodyError>() {
        Some(RequestBodyError::TooLarge(_)) => ProxyError::BodyTooLarge,
        _ => ProxyError::RequestBody(cause),
    }
}
