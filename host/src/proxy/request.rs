//! Admission: what a client sent becomes a [`RequestHead`], or is refused.
//!
//! The framing of HTTP/1 was checked byte by byte before (`listener/framing.rs`); here are the rules on fields: one valid
//! host, methods, upgrades, what HTTP/2 must not carry.

use crate::plugin::RequestHead;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Uri};
use http::{Method, StatusCode, Version};
use std::net::IpAddr;

/// A request that may be routed.
#[derive(Debug)]
pub struct Admitted {
    /// What plugins and matchers see.
    pub head: RequestHead,
    /// What the client said about its own connection.
    pub connection: ConnectionFields,
}

/// Fields of one connection, which are not passed on.
#[derive(Debug, Default)]
pub struct ConnectionFields {
    /// Fields named by `Connection`.
    pub named: Vec<HeaderName>,
    /// Whether the client takes trailers.
    pub trailers: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The status.
    pub status: StatusCode,
    /// What was wrong.
    pub reason: &'static str,
}

const fn bad_request(reason: &'static str) -> Refused {
    Refused {
        status: StatusCode::BAD_REQUEST,
        reason,
    }
}

/// Admits a request's head.
///
/// # Errors
/// [`Refused`], with the status that says why.
pub fn admit(
    parts: http::request::Parts,
    client: IpAddr,
    uri_bytes_max: usize,
) -> Result<Admitted, Refused> {
    let http::request::Parts {
        method,
        uri,
        version,
        mut headers,
        ..
    } = parts;
    if method == Method::CONNECT || method == Method::TRACE {
        return Err(Refused {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: "method is not proxied",
        });
    }
    let http2 = version == Version::HTTP_2;
    let (uri, named) = origin_form(uri, &method)?;
    if uri
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > uri_bytes_max)
    {
        return Err(Refused {
            status: StatusCode::URI_TOO_LONG,
            reason: "request target is too long",
        });
    }
    let authority = authority(&headers, named, version)?;
    let mut connection = ConnectionFields::default();
    let mut upgrade = false;
    for (name, value) in &headers {
        // By length, so that most fields cost one comparison.
        match name.as_str().len() {
            10 if *name == header::CONNECTION => upgrade |= connection.take(value)?,
            2 if *name == header::TE => {
                connection.trailers |= value
                    .as_bytes()
                    .trim_ascii()
                    .eq_ignore_ascii_case(b"trailers");
                if http2 && !connection.trailers {
                    return Err(bad_request("TE other than trailers in HTTP/2"));
                }
            }
            _ => {}
        }
    }
    if http2 {
        join_cookies(&mut headers);
    }
    let websocket = !http2 && upgrade && is_websocket(&method, version, &headers)?;
    let head = RequestHead {
        method,
        uri,
        authority,
        headers,
        client,
        scheme: "http",
        websocket,
    };
    Ok(Admitted { head, connection })
}

/// The target without scheme and authority, and the authority it named.
fn origin_form(uri: Uri, method: &Method) -> Result<(Uri, Option<Authority>), Refused> {
    if uri.scheme().is_none() {
        // An authority alone is for CONNECT only (RFC 9112, 3.2.3).
        if uri.authority().is_some() {
            return Err(bad_request("request target is not a path"));
        }
        return match uri.path() {
            "*" if *method == Method::OPTIONS => Ok((uri, None)),
            path if path.starts_with('/') => Ok((uri, None)),
            _ => Err(bad_request("request target is not a path")),
        };
    }
    let mut parts = uri.into_parts();
    if parts
        .scheme
        .as_ref()
        .is_some_and(|scheme| scheme.as_str() != "http" && scheme.as_str() != "https")
    {
        return Err(bad_request(
            "scheme of the request target is neither http nor https",
        ));
    }
    let target = parts
        .path_and_query
        .take()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    Ok((Uri::from(target), parts.authority))
}

/// Exactly one host: an absolute target replaces `Host` (RFC 9112, 3.2.2), and in HTTP/2 both must agree.
fn authority(
    headers: &HeaderMap,
    named: Option<Authority>,
    version: Version,
) -> Result<Authority, Refused> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad_request("more than one Host"));
    }
    let host = match host {
        Some(value) => Some(
            Authority::try_from(value.as_bytes()).map_err(|_| bad_request("Host is invalid"))?,
        ),
        None => None,
    };
    if version == Version::HTTP_11 && host.is_none() {
        return Err(bad_request("Host is missing"));
    }
    if version == Version::HTTP_2
        && let (Some(host), Some(named)) = (&host, &named)
        && !host.as_str().eq_ignore_ascii_case(named.as_str())
    {
        return Err(bad_request("Host and :authority differ"));
    }
    let authority = named.or(host).ok_or(bad_request("no host is named"))?;
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err(bad_request("host has user information or is empty"));
    }
    Ok(authority)
}

impl ConnectionFields {
    /// Whether it says `upgrade`.
    fn take(&mut self, value: &HeaderValue) -> Result<bool, Refused> {
        let mut upgrade = false;
        for token in value
            .as_bytes()
            .split(|&b| b == b',')
            .map(<[u8]>::trim_ascii)
        {
            if token.is_empty()
                || token.eq_ignore_ascii_case(b"keep-alive")
                || token.eq_ignore_ascii_case(b"close")
            {
                continue;
            }
            if token.eq_ignore_ascii_case(b"upgrade") {
                upgrade = true;
                continue;
            }
            let name = HeaderName::from_bytes(token)
                .map_err(|_| bad_request("Connection names no field"))?;
            // Taking these away would change what the message says or who it is from.
            let kept = [
                header::HOST,
                header::CONTENT_LENGTH,
                header::TRANSFER_ENCODING,
                header::AUTHORIZATION,
            ];
            if kept.contains(&name) || name.as_str().starts_with("x-forwarded-") {
                return Err(bad_request(
                    "Connection names a field that is not of the connection",
                ));
            }
            self.named.push(name);
        }
        Ok(upgrade)
    }
}

/// Whether it is a valid request to become a WebSocket (RFC 6455, 4.2.1); another protocol is not upgraded to, and the
/// request is an ordinary one.
fn is_websocket(method: &Method, version: Version, headers: &HeaderMap) -> Result<bool, Refused> {
    let mut upgrades = headers.get_all(header::UPGRADE).iter();
    let (Some(upgrade), None) = (upgrades.next(), upgrades.next()) else {
        return Ok(false);
    };
    if !upgrade.as_bytes().eq_ignore_ascii_case(b"websocket") {
        return Ok(false);
    }
    if *method != Method::GET || version != Version::HTTP_11 {
        return Err(bad_request("upgrade to websocket needs GET and HTTP/1.1"));
    }
    if headers.contains_key(header::CONTENT_LENGTH)
        || headers.contains_key(header::TRANSFER_ENCODING)
    {
        return Err(bad_request("request to upgrade has a body"));
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(Refused {
            status: StatusCode::UPGRADE_REQUIRED,
            reason: "Sec-WebSocket-Version is not 13",
        });
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) if key.len() == 24 => Ok(true),
        _ => Err(bad_request("Sec-WebSocket-Key is missing or invalid")),
    }
}

/// HTTP/2 may split cookies over several fields; HTTP/1 wants one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let crumbs: Vec<&[u8]> = headers
            .get_all(header::COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        let joined = HeaderValue::from_maybe_shared(Bytes::from(crumbs.join(&b"; "[..])))
            .expect("valid values joined by valid characters");
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit_request(request: http::request::Builder) -> Result<Admitted, Refused> {
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        admit(parts, [127, 0, 0, 1].into(), 1024)
    }

    fn get(uri: &str) -> http::request::Builder {
        http::Request::get(uri)
    }

    #[test]
    fn host_rules_hold() {
        assert_eq!(
            admit_request(get("/").header("host", "a:1"))
                .expect("admitted")
                .head
                .authority
                .as_str(),
            "a:1"
        );
        let absolute = admit_request(get("http://b/x?y").header("host", "a"))
            .expect("admitted")
            .head;
        assert_eq!(
            (
                absolute.authority.as_str(),
                absolute.uri.to_string().as_str()
            ),
            ("b", "/x?y")
        );
        for bad in [
            get("/"),
            get("/").header("host", "a").header("host", "a"),
            get("/").header("host", "u@a"),
            get("/").header("host", "a b"),
            get("/").header("host", ""),
            get("ftp://a/").header("host", "a"),
            get("https://b/")
                .header("host", "a")
                .version(Version::HTTP_2),
        ] {
            assert_eq!(admit_request(bad).expect_err("refused").status, 400);
        }
        assert_eq!(
            admit_request(get("/").version(Version::HTTP_10))
                .expect_err("refused")
                .status,
            400
        );
    }

    #[test]
    fn connection_may_not_name_what_the_message_needs() {
        let named =
            |value: &str| admit_request(get("/").header("host", "a").header("connection", value));
        assert_eq!(
            named("close, X-Hop").expect("admitted").connection.named,
            ["x-hop"]
        );
        for bad in [
            "host",
            "Content-Length",
            "x-forwarded-for",
            "transfer-encoding",
            "a b",
        ] {
            assert_eq!(named(bad).expect_err("refused").status, 400, "{bad}");
        }
    }

    #[test]
    fn only_a_valid_websocket_request_is_one() {
        let ask = || {
            get("/")
                .header("host", "a")
                .header("connection", "Upgrade")
                .header("upgrade", "WebSocket")
        };
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let full = || {
            ask()
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", key)
        };
        assert!(admit_request(full()).expect("admitted").head.websocket);
        assert_eq!(admit_request(ask()).expect_err("refused").status, 426);
        assert_eq!(
            admit_request(full().header("sec-websocket-key", key))
                .expect_err("refused")
                .status,
            400
        );
        assert_eq!(
            admit_request(full().header("content-length", "0"))
                .expect_err("refused")
                .status,
            400
        );
        assert_eq!(
            admit_request(full().method("POST"))
                .expect_err("refused")
                .status,
            400
        );
        let other = get("/")
            .header("host", "a")
            .header("connection", "upgrade")
            .header("upgrade", "h2c");
        assert!(!admit_request(other).expect("admitted").head.websocket);
    }

    #[test]
    fn http2_cookies_are_joined() {
        let request = get("http://a/")
            .version(Version::HTTP_2)
            .header("cookie", "a=1")
            .header("cookie", "b=2");
        assert_eq!(
            admit_request(request).expect("admitted").head.headers[header::COOKIE],
            "a=1; b=2"
        );
    }

    #[test]
    fn connect_and_trace_are_not_proxied() {
        assert_eq!(
            admit_request(http::Request::connect("a:1").header("host", "a"))
                .expect_err("refused")
                .status,
            405
        );
        assert_eq!(
            admit_request(http::Request::trace("/").header("host", "a"))
                .expect_err("refused")
                .status,
            405
        );
    }
}
