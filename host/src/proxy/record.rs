//! What is noted of a request while it is handled: counted and logged when it is dropped, whatever happened.

use super::Proxy;
use super::site::SiteView;
use crate::listener::ClientConnection;
use crate::listener::socket::InFlight;
use crate::metrics;
use crate::plugin::RequestHead;
use crate::plugin::generation::GenerationLabel;
use crate::upstream::address::Address;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// What is noted of one request.
pub struct Record {
    proxy: Rc<Proxy>,
    view: Rc<SiteView>,
    connection: Rc<ClientConnection>,
    _in_flight: InFlight,
    started: Instant,
    /// Unique on this worker.
    pub id: u64,
    /// The request's head, when it is not lent to a plugin.
    pub head: Option<RequestHead>,
    /// The status answered; 0 while there is none.
    pub status: u16,
    /// The route that decided.
    pub route: Option<usize>,
    /// The version that decided.
    pub label: Option<Arc<GenerationLabel>>,
    /// The key looked up.
    pub key: Option<Box<str>>,
    /// Where it went.
    pub endpoint: Option<Address>,
    /// Nanoseconds of all plugin calls.
    pub decision_ns: u64,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// What went wrong.
    pub error: Option<String>,
}

impl Record {
    /// At the beginning of a request.
    pub fn new(proxy: &Rc<Proxy>, view: Rc<SiteView>, connection: &Rc<ClientConnection>) -> Self {
        Self {
            proxy: proxy.clone(),
            view,
            connection: connection.clone(),
            _in_flight: connection.state.begin(),
            started: Instant::now(),
            id: proxy.next_request_id(),
            head: None,
            status: 0,
            route: None,
            label: None,
            key: None,
            endpoint: None,
            decision_ns: 0,
            bytes_in: 0,
            bytes_out: 0,
            error: None,
        }
    }

    /// Whether it came by HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.connection.http2
    }

    /// The request's id, as clients and logs are told.
    pub fn request_id(&self) -> String {
        format!("{}{}", self.proxy.id_prefix, self.id)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(route) = self.route {
            let counters = &self.view.site.routes[route].counters[self.proxy.worker];
            metrics::add(&counters.by_class[usize::from(self.status / 100).min(5)], 1);
        }
        let ended = Instant::now();
        self.proxy.log.line("request", ended, |line| {
            line.numbered("id", &self.proxy.id_prefix, self.id);
            line.prepared(&self.connection.log);
            if let Some(head) = &self.head {
                line.plain("method", head.method.as_str());
                line.text("authority", head.authority.as_str());
                line.text(
                    "path",
                    head.uri
                        .path_and_query()
                        .map_or("/", |target| target.as_str()),
                );
            }
            line.plain("protocol", if self.connection.http2 { "h2" } else { "h1" });
            line.number("status", self.status.into());
            line.number("bytes_in", self.bytes_in);
            line.number("bytes_out", self.bytes_out);
            line.number(
                "duration_us",
                ended.saturating_duration_since(self.started).as_micros() as u64,
            );
            if let Some(route) = self.route {
                line.prepared(&self.view.site.routes[route].log);
            }
            if let Some(label) = &self.label {
                line.plain("plugin", &label.plugin);
                line.plain("version", label.version());
                line.number("decision_ns", self.decision_ns);
            }
            if let Some(key) = &self.key {
                line.text("key", key);
            }
            if let Some(endpoint) = &self.endpoint {
                line.endpoint("endpoint", endpoint);
            }
            match &self.error {
                Some(error) => line.text("error", error),
                None if self.status == 0 => {
                    line.plain("error", "client went away before a response")
                }
                None => {}
            }
        });
    }
}
