//! A request as a plugin may ask about it.

use http::{HeaderMap, Method, Uri};
use std::net::IpAddr;

/// The head of a request, lent to an instance for one call.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Origin form: path and query only.
    pub uri: Uri,
    /// The host and port it names: exactly one, checked.
    pub authority: http::uri::Authority,
    /// Its fields, already rid of hop-by-hop ones.
    pub headers: HeaderMap,
    /// Who asks.
    pub client: IpAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Whether it is a valid request to become a WebSocket.
    pub websocket: bool,
}
