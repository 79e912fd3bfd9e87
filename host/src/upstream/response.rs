//! The head of an endpoint's response: parsed strictly, rid of what concerns one connection only.

use super::body::Coding;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use std::mem::MaybeUninit;

/// A parsed head.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// End-to-end fields; of a 101 also `sec-websocket-*`.
    pub headers: HeaderMap,
    /// How the body is framed.
    pub coding: Coding,
    /// Whether another exchange may follow on the connection.
    pub keep_alive: bool,
    /// Of a 101: whether it switches to `websocket`.
    pub websocket: bool,
}

/// Fields of a response head.
pub const FIELDS_MAX: usize = 100;

/// Parses the head at the beginning of `received`: with the bytes it takes, or none while it is incomplete. Its fields go
/// into `map`, which is taken, so that a map no longer needed serves again.
///
/// # Errors
/// What is wrong with it.
pub fn parse(
    received: &Bytes,
    method: &Method,
    map: &mut HeaderMap,
) -> Result<Option<(ResponseHead, usize)>, &'static str> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        received,
        &mut fields,
    );
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err("response head has too many fields"),
        Err(_) => return Err("response head is malformed"),
    };
    let version = if response.version == Some(1) {
        Version::HTTP_11
    } else {
        Version::HTTP_10
    };
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or("response status is invalid")?;
    let mut framing = Framing {
        keep_alive: version == Version::HTTP_11,
        ..Framing::default()
    };
    let mut headers = std::mem::take(map);
    headers.clear();
    headers.reserve(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| "response field name is invalid")?;
        if framing.take(&name, field.value)? {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(received.slice_ref(field.value))
            .map_err(|_| "response field value is invalid")?;
        headers.append(name, value);
    }
    for name in &framing.named {
        headers.remove(name);
    }
    let coding = framing.coding(status, method, version)?;
    let keep_alive = framing.keep_alive && coding != Coding::UntilClose;
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        headers.remove(header::CONTENT_LENGTH);
    }
    Ok(Some((
        ResponseHead {
            status,
            headers,
            coding,
            keep_alive,
            websocket: framing.websocket,
        },
        length,
    )))
}

/// What a head says about its connection.
#[derive(Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
    keep_alive: bool,
    websocket: bool,
    /// Fields named by `Connection`.
    named: Vec<HeaderName>,
}

impl Framing {
    /// Whether the field is of the connection, and not to be passed on.
    fn take(&mut self, name: &HeaderName, value: &[u8]) -> Result<bool, &'static str> {
        // By length, so that most fields cost one comparison.
        match name.as_str().len() {
            10 if *name == header::CONNECTION => self.connection(value),
            14 if *name == header::CONTENT_LENGTH => {
                let length =
                    parse_length(value).ok_or("response Content-Length is not a number")?;
                if self.length.replace(length).is_some() {
                    return Err("response has more than one Content-Length");
                }
                return Ok(false);
            }
            17 if *name == header::TRANSFER_ENCODING => {
                if std::mem::replace(&mut self.chunked, true)
                    || !value.trim_ascii().eq_ignore_ascii_case(b"chunked")
                {
                    return Err("response Transfer-Encoding is not exactly chunked");
                }
            }
            7 if *name == header::UPGRADE => {
                self.websocket = value.trim_ascii().eq_ignore_ascii_case(b"websocket")
            }
            10 if name.as_str() == "keep-alive" => {}
            16 if name.as_str() == "proxy-connection" => {}
            2 if *name == header::TE => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn connection(&mut self, value: &[u8]) {
        for token in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.keep_alive = false;
            } else if !token.eq_ignore_ascii_case(b"keep-alive")
                && !token.eq_ignore_ascii_case(b"upgrade")
                && let Ok(name) = HeaderName::from_bytes(token)
                // Whoever names these would change what the message is.
                && name != header::CONTENT_LENGTH
                && name != header::TRANSFER_ENCODING
            {
                self.named.push(name);
            }
        }
    }

    /// RFC 9112, 6.3.
    fn coding(
        &self,
        status: StatusCode,
        method: &Method,
        version: Version,
    ) -> Result<Coding, &'static str> {
        if self.chunked && self.length.is_some() {
            return Err("response has both Content-Length and Transfer-Encoding");
        }
        if self.chunked && version == Version::HTTP_10 {
            return Err("response has Transfer-Encoding in HTTP/1.0");
        }
        let bodyless = status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || *method == Method::HEAD;
        Ok(match (bodyless, self.chunked, self.length) {
            (true, ..) => Coding::Length(0),
            (false, true, _) => Coding::chunked(),
            (false, false, Some(length)) => Coding::Length(length),
            (false, false, None) => Coding::UntilClose,
        })
    }
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let value = value.trim_ascii();
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        value
            .iter()
            .fold(0, |n, digit| n * 10 + u64::from(digit - b'0')),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<ResponseHead>, &'static str> {
        let received = Bytes::copy_from_slice(text.as_bytes());
        parse(&received, &Method::GET, &mut HeaderMap::new()).map(|parsed| {
            parsed.map(|(head, length)| {
                assert_eq!(length, text.len());
                head
            })
        })
    }

    #[test]
    fn framing_follows_the_fields_and_the_status() {
        let coding = |text: &str| head(text).expect("valid").expect("complete").coding;
        assert_eq!(
            coding("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
            Coding::Length(5)
        );
        assert_eq!(
            coding("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
            Coding::chunked()
        );
        assert_eq!(coding("HTTP/1.1 200 OK\r\n\r\n"), Coding::UntilClose);
        assert_eq!(coding("HTTP/1.1 204 No Content\r\n\r\n"), Coding::Length(0));
        assert_eq!(
            coding("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
            Coding::Length(0)
        );
    }

    #[test]
    fn ambiguous_or_malformed_heads_are_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
            "HTTP/1.1 000 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
            "<html>hello</html>\r\n\r\n",
        ] {
            assert!(head(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn connection_fields_are_taken_away() {
        let head = head(
            "HTTP/1.1 200 OK\r\nconnection: X-Hop, close\r\nx-hop: 1\r\nkeep-alive: 5\r\nx-end: 2\r\ncontent-length: 0\r\n\r\n",
        )
        .expect("valid")
        .expect("complete");
        let mut names: Vec<&str> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "x-end"]);
        assert!(!head.keep_alive);
    }
}
