//! Which requests a route is for.

use crate::plugin::RequestHead;
use crate::store::lookup::regex_error;
use http::{HeaderName, Method};
use regex::bytes::{Regex, RegexBuilder};

/// Conditions, all of which must hold; none holds always.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matcher {
    /// The host is one of these; none: any.
    pub hosts: Vec<HostPattern>,
    /// The path is one of these; none: any.
    pub paths: Vec<PathPattern>,
    /// The method is one of these; none: any.
    pub methods: Vec<Method>,
    /// Each of these holds.
    pub headers: Vec<(HeaderName, HeaderPattern)>,
    /// The request is a valid one to become a WebSocket.
    pub websocket: bool,
}

/// A host, compared without its port and without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// This host, in lower case; IPv6 addresses in brackets.
    Exact(Box<str>),
    /// Any host that ends so, in lower case and with the leading dot: `.example.com`.
    Suffix(Box<str>),
}

/// A path, compared as received: not decoded, without the query.
#[derive(Debug, Clone, PartialEq)]
pub enum PathPattern {
    /// This path.
    Exact(Box<str>),
    /// Any path that begins so.
    Prefix(Box<str>),
    /// Any path in which this is found.
    Pattern(Pattern),
}

/// What is asked of a header field.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderPattern {
    /// It is there.
    Present,
    /// It is not there.
    Absent,
    /// One of its values is this.
    Exact(Box<str>),
    /// In one of its values this is found.
    Pattern(Pattern),
}

/// A regular expression whose time is linear in what it searches.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

/// Bound of a compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

impl Pattern {
    /// Compiles a pattern, unanchored unless it says so itself.
    ///
    /// # Errors
    /// What is wrong with it, on one line.
    pub fn new(pattern: &str) -> Result<Self, String> {
        RegexBuilder::new(pattern)
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX)
            .build()
            .map(Self)
            .map_err(regex_error)
    }

    fn found_in(&self, bytes: &[u8]) -> bool {
        self.0.is_match(bytes)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Matcher {
    /// Whether it holds for every request.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
            && self.paths.is_empty()
            && self.methods.is_empty()
            && self.headers.is_empty()
            && !self.websocket
    }

    /// Whether the request is for this route.
    pub fn matches(&self, head: &RequestHead) -> bool {
        (!self.websocket || head.websocket)
            && (self.methods.is_empty() || self.methods.contains(&head.method))
            && (self.paths.is_empty() || self.path_matches(head.uri.path()))
            && (self.hosts.is_empty() || self.host_matches(head.authority.host()))
            && self
                .headers
                .iter()
                .all(|(name, pattern)| pattern.matches(head, name))
    }

    fn path_matches(&self, path: &str) -> bool {
        self.paths.iter().any(|pattern| match pattern {
            PathPattern::Exact(exact) => path == &**exact,
            PathPattern::Prefix(prefix) => path.starts_with(&**prefix),
            PathPattern::Pattern(pattern) => pattern.found_in(path.as_bytes()),
        })
    }

    fn host_matches(&self, host: &str) -> bool {
        // `app.example.com.` names the same host.
        let host = host.strip_suffix('.').unwrap_or(host).as_bytes();
        self.hosts.iter().any(|pattern| match pattern {
            HostPattern::Exact(exact) => host.eq_ignore_ascii_case(exact.as_bytes()),
            HostPattern::Suffix(suffix) => {
                host.len() > suffix.len()
                    && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
            }
        })
    }
}

impl HeaderPattern {
    fn matches(&self, head: &RequestHead, name: &HeaderName) -> bool {
        match self {
            Self::Present => head.headers.contains_key(name),
            Self::Absent => !head.headers.contains_key(name),
            Self::Exact(exact) => head
                .headers
                .get_all(name)
                .iter()
                .any(|value| value.as_bytes() == exact.as_bytes()),
            Self::Pattern(pattern) => head
                .headers
                .get_all(name)
                .iter()
                .any(|value| pattern.found_in(value.as_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    fn head(authority: &str, path: &str) -> RequestHead {
        RequestHead {
            method: Method::GET,
            uri: path.parse().expect("a path"),
            authority: authority.parse().expect("an authority"),
            headers: HeaderMap::new(),
            client: std::net::Ipv4Addr::LOCALHOST.into(),
            scheme: "http",
            websocket: false,
        }
    }

    fn host(pattern: HostPattern) -> Matcher {
        Matcher {
            hosts: vec![pattern],
            ..Matcher::default()
        }
    }

    fn path(pattern: PathPattern) -> Matcher {
        Matcher {
            paths: vec![pattern],
            ..Matcher::default()
        }
    }

    fn header(pattern: HeaderPattern) -> Matcher {
        Matcher {
            headers: vec![(HeaderName::from_static("x-id"), pattern)],
            ..Matcher::default()
        }
    }

    #[test]
    fn empty_matcher_matches_every_request() {
        assert!(Matcher::default().matches(&head("a", "/")));
        assert!(Matcher::default().is_empty());
        assert!(!host(HostPattern::Exact("a".into())).is_empty());
    }

    #[test]
    fn host_ignores_case_port_and_last_dot() {
        let matcher = host(HostPattern::Exact("app.example.com".into()));
        for same in [
            "app.example.com",
            "APP.Example.com:8080",
            "app.example.com.",
        ] {
            assert!(matcher.matches(&head(same, "/")), "{same}");
        }
        for other in ["example.com", "xapp.example.com", "app.example.com.evil"] {
            assert!(!matcher.matches(&head(other, "/")), "{other}");
        }
        assert!(host(HostPattern::Exact("[::1]".into())).matches(&head("[::1]:80", "/")));
    }

    #[test]
    fn host_suffix_needs_a_label_before_it() {
        let matcher = host(HostPattern::Suffix(".example.com".into()));
        assert!(matcher.matches(&head("A.EXAMPLE.COM:1", "/")));
        assert!(matcher.matches(&head("a.b.example.com", "/")));
        assert!(!matcher.matches(&head("example.com", "/")));
        assert!(!matcher.matches(&head("badexample.com", "/")));
    }

    #[test]
    fn path_is_compared_undecoded_and_without_query() {
        let exact = path(PathPattern::Exact("/a%2Fb".into()));
        assert!(exact.matches(&head("h", "/a%2Fb?x=/c")));
        assert!(!exact.matches(&head("h", "/a/b")));
        let prefix = path(PathPattern::Prefix("/ws/".into()));
        assert!(prefix.matches(&head("h", "/ws/")));
        assert!(prefix.matches(&head("h", "/ws/1?q")));
        assert!(!prefix.matches(&head("h", "/ws")));
        assert!(!prefix.matches(&head("h", "/x?/ws/")));
        let pattern = path(PathPattern::Pattern(
            Pattern::new("^/v[0-9]+/$").expect("valid"),
        ));
        assert!(pattern.matches(&head("h", "/v12/")));
        assert!(!pattern.matches(&head("h", "/v12/x")));
    }

    #[test]
    fn header_patterns_look_at_every_value() {
        let mut with = head("h", "/");
        with.headers.append("x-id", HeaderValue::from_static("id1"));
        with.headers.append(
            "x-id",
            HeaderValue::from_bytes(b"7\xff").expect("opaque bytes"),
        );
        let without = head("h", "/");
        let number = || HeaderPattern::Pattern(Pattern::new("^7").expect("valid"));
        assert!(header(HeaderPattern::Present).matches(&with));
        assert!(!header(HeaderPattern::Present).matches(&without));
        assert!(header(HeaderPattern::Absent).matches(&without));
        assert!(!header(HeaderPattern::Absent).matches(&with));
        assert!(header(HeaderPattern::Exact("id1".into())).matches(&with));
        assert!(!header(HeaderPattern::Exact("ID1".into())).matches(&with));
        assert!(header(number()).matches(&with));
        assert!(!header(number()).matches(&without));
    }

    #[test]
    fn every_condition_must_hold() {
        let matcher = Matcher {
            paths: vec![PathPattern::Exact("/ws".into())],
            methods: vec![Method::GET, Method::POST],
            websocket: true,
            ..Matcher::default()
        };
        let mut request = head("h", "/ws");
        assert!(!matcher.matches(&request));
        request.websocket = true;
        assert!(matcher.matches(&request));
        request.method = Method::PUT;
        assert!(!matcher.matches(&request));
    }

    #[test]
    fn pattern_errors_are_one_line_and_size_is_bound() {
        let error = Pattern::new("(").expect_err("unclosed");
        assert_eq!(error, "unclosed group");
        let error = Pattern::new(r"\w{1000}{1000}").expect_err("huge");
        assert!(error.contains("1048576 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn prefix_pattern_agrees_with_regex(path_text in "/[a-c/]{0,6}", prefix in "/[a-c/]{0,3}") {
            let by_prefix = path(PathPattern::Prefix(prefix.as_str().into()));
            let by_regex = path(PathPattern::Pattern(Pattern::new(&format!("^{prefix}")).expect("valid")));
            let request = head("h", &path_text);
            prop_assert_eq!(by_prefix.matches(&request), by_regex.matches(&request));
        }
    }
}
