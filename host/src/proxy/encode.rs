//! The head of a request as it is sent to an endpoint: written in one pass, leaving out what is of the client's
//! connection, what we say ourselves, and what the plugin takes away.

use super::request::ConnectionFields;
use crate::plugin::RequestHead;
use crate::plugin::decision::{Edits, Forward};
use http::HeaderName;
use http::header;
use std::cell::RefCell;
use std::io::Write;

/// How the body goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// What we say about the client and ourselves.
#[derive(Debug, Clone, Copy)]
pub struct Forwarded<'a> {
    /// The client's address.
    pub client: &'a str,
    /// Whether `Via` is added.
    pub via: bool,
}

/// Writes the head into `out`, which is emptied first.
pub fn encode(
    out: &mut Vec<u8>,
    head: &RequestHead,
    connection: &ConnectionFields,
    forward: &Forward,
    framing: BodyFraming,
    forwarded: Forwarded<'_>,
) {
    let constant = forward.constant.as_deref();
    let varying = forward.varying.as_deref();
    let path = varying
        .and_then(|v| v.path.as_ref())
        .or(head.uri.path_and_query());
    out.clear();
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.map_or("/", |path| path.as_str()).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, "host", head.authority.as_str().as_bytes());
    let edits = [constant, varying.map(|v| &v.edits)];
    for (name, value) in &head.headers {
        if is_ours(name)
            || connection.named.contains(name)
            || edits.iter().flatten().any(|e| replaces(e, name))
        {
            continue;
        }
        field(out, name.as_str(), value.as_bytes());
    }
    set(out, edits);
    field(out, "x-forwarded-for", forwarded.client.as_bytes());
    field(out, "x-forwarded-proto", head.scheme.as_bytes());
    field(out, "x-forwarded-host", head.authority.as_str().as_bytes());
    if forwarded.via {
        field(out, "via", b"1.1 throwbar");
    }
    if connection.trailers {
        field(out, "te", b"trailers");
        field(out, "connection", b"te");
    }
    if head.websocket {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
    }
    match framing {
        BodyFraming::None => {}
        BodyFraming::Length(length) => {
            write!(out, "content-length: {length}\r\n").expect("writing to memory");
        }
        BodyFraming::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Fields of the client's connection, and those we write ourselves. By length, so that most cost one comparison.
fn is_ours(name: &HeaderName) -> bool {
    let text = name.as_str();
    match text.len() {
        2 => *name == header::TE,
        4 => *name == header::HOST,
        6 => *name == header::EXPECT,
        7 => *name == header::UPGRADE,
        9 => text == "forwarded",
        10 => *name == header::CONNECTION || text == "keep-alive",
        14 => *name == header::CONTENT_LENGTH || text == "http2-settings",
        15 => text == "x-forwarded-for",
        16 => text == "proxy-connection" || text == "x-forwarded-host",
        17 => *name == header::TRANSFER_ENCODING || text == "x-forwarded-proto",
        18 => *name == header::PROXY_AUTHENTICATE,
        19 => *name == header::PROXY_AUTHORIZATION,
        _ => false,
    }
}

fn replaces(edits: &Edits, name: &HeaderName) -> bool {
    edits.request_remove.contains(name) || edits.request_set.iter().any(|(set, _)| set == name)
}

/// Writes the fields that the edits set: the later edits win.
fn set(out: &mut Vec<u8>, [constant, varying]: [Option<&Edits>; 2]) {
    for (name, value) in constant.iter().flat_map(|e| &e.request_set) {
        if !varying.is_some_and(|later| replaces(later, name)) {
            field(out, name.as_str(), value.as_bytes());
        }
    }
    for (name, value) in varying.iter().flat_map(|e| &e.request_set) {
        field(out, name.as_str(), value.as_bytes());
    }
}

/// Buffers that heads are encoded into, as many as were in use at once.
#[derive(Default)]
pub struct HeadBuffers(RefCell<Vec<Vec<u8>>>);

/// Buffers kept for the next requests of a worker, and the largest kept.
const BUFFERS_MAX: usize = 128;
const BUFFER_BYTES_MAX: usize = 4 << 10;

impl HeadBuffers {
    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        let kept = self.0.borrow_mut().pop();
        kept.unwrap_or_else(|| Vec::with_capacity(1 << 10))
    }

    /// Keeps a buffer for the next request.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < BUFFERS_MAX && buffer.capacity() <= BUFFER_BYTES_MAX {
            buffer.clear();
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::decision::{RouteTarget, Varying};
    use crate::store::Target;
    use http::{HeaderMap, HeaderValue, Method};
    use std::sync::Arc;

    fn head(fields: &[(&'static str, &'static str)]) -> RequestHead {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        RequestHead {
            method: Method::GET,
            uri: "/a?b".parse().expect("a path"),
            authority: "site:8080".parse().expect("an authority"),
            headers,
            client: [10, 0, 0, 9].into(),
            scheme: "http",
            websocket: false,
        }
    }

    fn forward(constant: Edits, varying: Option<Varying>) -> Forward {
        Forward {
            to: RouteTarget::Address(Target::Ip([127, 0, 0, 1].into(), None), 80),
            key: None,
            constant: Some(Arc::new(constant)),
            varying: varying.map(Box::new),
            follow: None,
        }
    }

    fn text(
        head: &RequestHead,
        named: &[&'static str],
        forward: &Forward,
        framing: BodyFraming,
    ) -> String {
        let connection = ConnectionFields {
            named: named.iter().map(|n| HeaderName::from_static(n)).collect(),
            trailers: false,
        };
        let mut out = b"left over".to_vec();
        encode(
            &mut out,
            head,
            &connection,
            forward,
            framing,
            Forwarded {
                client: "10.0.0.9",
                via: false,
            },
        );
        String::from_utf8(out).expect("text")
    }

    const OURS: &str =
        "x-forwarded-for: 10.0.0.9\r\nx-forwarded-proto: http\r\nx-forwarded-host: site:8080\r\n";

    #[test]
    fn fields_of_the_connection_and_forged_ones_are_left_out() {
        let head = head(&[
            ("host", "evil"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "secret"),
            ("x-forwarded-for", "1.2.3.4"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
        ]);
        let sent = text(
            &head,
            &["x-hop"],
            &forward(Edits::default(), None),
            BodyFraming::None,
        );
        assert_eq!(
            sent,
            format!("GET /a?b HTTP/1.1\r\nhost: site:8080\r\naccept: */*\r\n{OURS}\r\n")
        );
    }

    #[test]
    fn later_edits_win_and_the_path_is_rewritten() {
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let constant = Edits {
            request_remove: vec![name("x-id")],
            request_set: vec![(name("a"), value("1")), (name("b"), value("1"))],
            ..Edits::default()
        };
        let varying = Varying {
            edits: Edits {
                request_set: vec![(name("b"), value("2"))],
                ..Edits::default()
            },
            path: Some("/new".parse().expect("a path")),
            ..Varying::default()
        };
        let head = head(&[("x-id", "id1"), ("a", "0"), ("c", "0")]);
        let sent = text(
            &head,
            &[],
            &forward(constant, Some(varying)),
            BodyFraming::Length(3),
        );
        let expected = format!(
            "GET /new HTTP/1.1\r\nhost: site:8080\r\nc: 0\r\na: 1\r\nb: 2\r\n{OURS}content-length: 3\r\n\r\n"
        );
        assert_eq!(sent, expected);
    }
}
