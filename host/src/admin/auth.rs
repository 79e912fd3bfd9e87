//! Who may use the admin API: bearer token, and the checks that keep browsers of other sites out.
//!
//! A page on the web can make its visitor's browser send requests to loopback. It cannot choose the `Host` field freely
//! (DNS rebinding makes it a name of the attacker's), and it cannot leave out `Origin` on anything that changes state.

use super::problem::Problem;
use super::revocation::Tokens;
use super::rights::Caller;
use super::token::Token;
use super::{Address, Auth, Config};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use std::net::IpAddr;

/// What stands before every route.
#[derive(Clone)]
pub struct Gate {
    token: Option<Token>,
    /// A Unix socket has no name a browser could be sent to.
    any_host: bool,
    /// Tokens for a part of the store.
    limited: Tokens,
}

impl Gate {
    /// The gate of a config, with its limited tokens. With [`Auth::Token`] and no token, no one passes.
    pub fn new(config: &Config, token: Option<Token>) -> Self {
        Self {
            token: match config.auth {
                Auth::None => None,
                Auth::Token => Some(token.unwrap_or_else(Token::unguessable)),
            },
            any_host: matches!(config.listen, Address::Unix(_)),
            limited: Tokens::fixed(config.tokens.clone()),
        }
    }

    /// The same, with limited tokens that come and go.
    pub(super) fn with(self, limited: Tokens) -> Self {
        Self { limited, ..self }
    }

    /// Whether this request may go on, and for whom.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<Caller, Problem> {
        let host = host(uri, headers)?;
        if !self.any_host && !is_local_name(host) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "host",
                format!("host {host:?} is neither an IP address nor localhost"),
            ));
        }
        check_origin(headers, host)?;
        if is_public(uri.path()) {
            return Ok(Caller::Admin);
        }
        self.check_token(headers)
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let Some(token) = &self.token else {
            return Ok(Caller::Admin);
        };
        let detail = match headers.get(header::AUTHORIZATION) {
            Some(value) if bearer(value).is_some_and(|given| token.matches(given)) => {
                return Ok(Caller::Admin);
            }
            Some(value) if bearer(value).is_some() => {
                match bearer(value).and_then(|given| self.limited.find(given)) {
                    Some(token) => return Ok(Caller::Limited(token)),
                    None => "the token is not the one of this process",
                }
            }
            Some(_) => "expected authorization: Bearer TOKEN",
            None => {
                "expected authorization: Bearer TOKEN, with the token of admin.token in the data directory"
            }
        };
        Err(
            Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).with_header(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"throwbar\""),
            ),
        )
    }
}

/// Lets a request pass or answers it; marks every response as nothing to keep or to guess the type of.
pub(super) async fn gate(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let checked = gate.check(request.uri(), request.headers());
    let mut response = match checked {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// Probes tell no secret and have no token.
fn is_public(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz")
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// The one host that the request names.
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Problem> {
    let mut values = headers.get_all(header::HOST).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Problem::bad_request(
            "host",
            "expected exactly one host field",
        ));
    };
    let host = value
        .to_str()
        .map_err(|_| Problem::bad_request("host", "host is not text"))?;
    match uri.authority() {
        Some(authority) if !authority.as_str().eq_ignore_ascii_case(host) => {
            Err(Problem::bad_request(
                "host",
                format!("host {host:?} is not that of the request line, {authority:?}"),
            ))
        }
        _ => Ok(host),
    }
}

/// Whether a `Host` is one that no name server decides about. The configured address is an IP address itself.
fn is_local_name(host: &str) -> bool {
    let name = without_port(host);
    let bare = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// A browser says where a request comes from: only from our own pages.
fn check_origin(headers: &HeaderMap, host: &str) -> Result<(), Problem> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => Ok(()),
        (Some(origin), None)
            if origin
                .to_str()
                .is_ok_and(|origin| is_same_origin(origin, host)) =>
        {
            Ok(())
        }
        (Some(origin), _) => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "origin",
            format!("origin {origin:?} is not host {host:?}"),
        )),
    }
}

fn is_same_origin(origin: &str, host: &str) -> bool {
    let explicit = |authority: &str| {
        let authority = authority.to_ascii_lowercase();
        match authority.strip_suffix(":80") {
            Some(name) if without_port(&authority) == name => name.to_owned(),
            _ => authority,
        }
    };
    origin
        .strip_prefix("http://")
        .is_some_and(|authority| explicit(authority) == explicit(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::LimitedToken;
    use std::path::PathBuf;
    use std::sync::Arc;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn open_gate() -> Gate {
        Gate::new(
            &Config {
                auth: Auth::None,
                ..Config::default()
            },
            None,
        )
    }

    fn status(gate: &Gate, path: &str, fields: &[(&'static str, &str)]) -> u16 {
        let uri = path.parse().unwrap();
        gate.check(&uri, &headers(fields))
            .map_or_else(|problem| problem.status.as_u16(), |_| 200)
    }

    #[test]
    fn only_the_token_passes_and_a_refusal_names_the_scheme() {
        let dir = tempfile::tempdir().unwrap();
        let token = Token::load_or_create(dir.path()).unwrap();
        let gate = Gate::new(&Config::default(), Some(token.clone()));
        let host = ("host", "127.0.0.1:2019");
        let good = format!("Bearer {}", token.as_str());
        let lower = format!("bearer {}", token.as_str());
        let basic = format!("Basic {}", token.as_str());
        assert_eq!(
            status(&gate, "/v1/kv", &[host, ("authorization", &good)]),
            200
        );
        assert_eq!(
            status(&gate, "/v1/kv", &[host, ("authorization", &lower)]),
            200
        );
        for bad in ["Bearer", "Bearer ", "Bearer 00", "x", &basic] {
            assert_eq!(
                status(&gate, "/v1/kv", &[host, ("authorization", bad)]),
                401,
                "{bad}"
            );
        }
        let problem = gate
            .check(&"/".parse().unwrap(), &headers(&[host]))
            .unwrap_err();
        assert_eq!(problem.headers[0].0, header::WWW_AUTHENTICATE);
        assert!(problem.detail.contains("admin.token"));
    }

    #[test]
    fn a_limited_token_passes_and_its_caller_is_known() {
        let secret = "0123456789abcdef0123456789abcdef";
        let limited = LimitedToken {
            name: "agents".to_owned(),
            token: Token::given(secret).unwrap(),
            buckets: [("ids".to_owned(), crate::plugin::Access::Write)].into(),
            prefix: String::new(),
        };
        let config = Config {
            tokens: vec![Arc::new(limited)],
            ..Config::default()
        };
        let gate = Gate::new(&config, None);
        let bearer = format!("Bearer {secret}");
        let fields = [("host", "localhost"), ("authorization", &*bearer)];
        assert_eq!(status(&gate, "/v1/kv/ids", &fields), 200);
        // What it is good for is looked at where the path is known.
        let caller = gate.check(&"/v1/kv/ids/a".parse().unwrap(), &headers(&fields));
        assert!(matches!(caller.unwrap(), Caller::Limited(token) if token.name == "agents"));
        let longer = format!("{bearer}0");
        let fields = [("host", "localhost"), ("authorization", &*longer)];
        assert_eq!(status(&gate, "/v1/kv/ids", &fields), 401);
    }

    #[test]
    fn without_a_token_file_a_gate_that_wants_one_lets_no_one_in() {
        let gate = Gate::new(&Config::default(), None);
        let fields = [("host", "localhost"), ("authorization", "Bearer ")];
        assert_eq!(status(&gate, "/v1/status", &fields), 401);
    }

    #[test]
    fn probes_need_no_token_but_nothing_else_goes_without() {
        let gate = Gate::new(&Config::default(), None);
        let host = [("host", "10.0.0.1:2019")];
        assert_eq!(status(&gate, "/healthz", &host), 200);
        assert_eq!(status(&gate, "/readyz", &host), 200);
        for path in ["/metrics", "/healthz/", "/", "/HEALTHZ"] {
            assert_eq!(status(&gate, path, &host), 401, "{path}");
        }
    }

    #[test]
    fn a_host_that_a_name_server_decides_about_is_refused() {
        let gate = open_gate();
        for good in [
            "localhost",
            "LocalHost:2019",
            "127.0.0.1",
            "127.0.0.1:2019",
            "[::1]",
            "[::1]:2019",
        ] {
            assert_eq!(status(&gate, "/", &[("host", good)]), 200, "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:2019",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            ":2019",
            "localhost:x",
        ] {
            assert_eq!(status(&gate, "/", &[("host", bad)]), 403, "{bad}");
        }
    }

    #[test]
    fn a_request_names_exactly_one_host() {
        let gate = open_gate();
        assert_eq!(status(&gate, "/", &[]), 400);
        let two = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(status(&gate, "/", &two), 400);
        let local = [("host", "localhost")];
        assert_eq!(status(&gate, "http://evil.example/", &local), 400);
        assert_eq!(status(&gate, "http://localhost/", &local), 200);
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let gate = open_gate();
        let from = |origin, host| status(&gate, "/", &[("host", host), ("origin", origin)]);
        assert_eq!(from("http://localhost:2019", "localhost:2019"), 200);
        assert_eq!(from("http://localhost", "localhost:80"), 200);
        assert_eq!(from("http://[::1]:80", "[::1]"), 200);
        assert_eq!(from("https://evil.example", "localhost:2019"), 403);
        assert_eq!(from("http://localhost:3000", "localhost:2019"), 403);
        assert_eq!(from("null", "localhost:2019"), 403);
        assert_eq!(from("http://evil.example", "evil.example"), 403);
    }

    #[test]
    fn a_unix_socket_takes_any_host() {
        let config = Config {
            listen: Address::Unix(PathBuf::from("throwbar.sock")),
            auth: Auth::None,
            ..Config::default()
        };
        let gate = Gate::new(&config, None);
        assert_eq!(status(&gate, "/", &[("host", "throwbar")]), 200);
        let foreign = [("host", "throwbar"), ("origin", "http://evil.example")];
        assert_eq!(status(&gate, "/", &foreign), 403);
    }
}
