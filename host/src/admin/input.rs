//! What a request gives a handler: path, query, body and conditions, each refused with what was expected.

use super::problem::Problem;
use super::rights::Caller;
use crate::config::decode::units;
use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::extract::rejection::{PathRejection, QueryRejection};
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a body may pause.
const BODY_PAUSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(600);
/// The field that says who asks, for the audit log.
const ACTOR: HeaderName = HeaderName::from_static("x-throwbar-actor");
const ACTOR_BYTES_MAX: usize = 128;

/// Parts of the path, percent-decoded.
pub(super) struct Path<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for Path<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|rejection: PathRejection| {
                Problem::bad_request("path", rejection.body_text().to_lowercase())
            })
    }
}

/// The query; types refuse unknown fields, so that a mistyped `dry_run` changes nothing.
pub(super) struct Query<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for Query<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection: QueryRejection| {
                let text = rejection.body_text();
                let cause = text
                    .rsplit_once("string: ")
                    .map_or(&*text, |(_, cause)| cause);
                Problem::bad_request("query", format!("query: {cause}"))
            })
    }
}

/// The query of a write.
#[derive(Debug, Default, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DryRun {
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// A time to live, written as `30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ttl(Duration);

impl From<Ttl> for Duration {
    fn from(Ttl(ttl): Ttl) -> Self {
        ttl
    }
}

impl<'de> serde::Deserialize<'de> for Ttl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let ttl = units::ttl(&text).map(Self);
        ttl.map_err(|why| serde::de::Error::custom(format!("ttl {text:?}: {why}")))
    }
}

/// A field that may be null, which is something else than leaving it out.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de>,
{
    serde::Deserialize::deserialize(deserializer).map(Some)
}

/// Who asks, as they say: for the audit log, not for any decision.
#[derive(Debug, Clone)]
pub(super) struct Actor(pub(super) String);

impl Actor {
    /// Who does not say it.
    pub(super) fn unnamed(caller: &Caller) -> Self {
        Self(match caller {
            Caller::Limited(token) => token.name.clone(),
            Caller::Admin => "admin".to_owned(),
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // Who has a token of his own is known by it, whatever he calls himself besides.
        let caller = parts.extensions.get().unwrap_or(&Caller::Admin);
        let token = match caller {
            Caller::Limited(token) => Some(token.name.as_str()),
            Caller::Admin => None,
        };
        let Some(value) = parts.headers.get(ACTOR) else {
            return Ok(Self::unnamed(caller));
        };
        match value.to_str() {
            Ok(name) if !name.is_empty() && name.len() <= ACTOR_BYTES_MAX => {
                Ok(Self(match token {
                    Some(token) => format!("{token}/{name}"),
                    None => name.to_owned(),
                }))
            }
            _ => Err(Problem::bad_request(
                "actor",
                format!(
                    "x-throwbar-actor: {value:?}: expected 1 to {ACTOR_BYTES_MAX} ASCII characters"
                ),
            )),
        }
    }
}

/// Reads a body of at most `limit` bytes. A longer one is refused before it is read if it says its length, else when it
/// passes the limit.
pub(super) async fn read_body(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Bytes, Problem> {
    let mut chunks = Chunks::new(headers, body, limit)?;
    let announced = content_length(headers)?.unwrap_or(0);
    let mut buffer = Vec::with_capacity(announced.min(1 << 20) as usize);
    while let Some(data) = chunks.next().await? {
        buffer.extend_from_slice(&data);
    }
    Ok(buffer.into())
}

/// A body as it arrives.
pub(super) struct Chunks {
    body: Body,
    /// How much may come yet, of how much altogether.
    left: u64,
    limit: usize,
    /// When it has to be whole, if it has to be.
    deadline: Option<Instant>,
    /// Whether the process ends, if that ends it.
    stopping: Option<watch::Receiver<bool>>,
}

impl Chunks {
    /// A body of at most `limit` bytes.
    ///
    /// # Errors
    /// 413 if it says that it is longer.
    pub(super) fn new(headers: &HeaderMap, body: Body, limit: usize) -> Result<Self, Problem> {
        if content_length(headers)?.is_some_and(|length| length > limit as u64) {
            return Err(Problem::too_large(limit));
        }
        Ok(Self {
            body,
            left: limit as u64,
            limit,
            deadline: Some(Instant::now() + BODY_TIMEOUT),
            stopping: None,
        })
    }

    /// A body of any length, for as long as it goes on arriving.
    ///
    /// # Errors
    /// 400 if its length is no number.
    pub(super) fn endless(headers: &HeaderMap, body: Body) -> Result<Self, Problem> {
        content_length(headers)?;
        Ok(Self {
            body,
            left: u64::MAX,
            limit: usize::MAX,
            deadline: None,
            stopping: None,
        })
    }

    /// It, read only until the process ends, which a long one would hold up and then be cut by.
    pub(super) fn until(mut self, stopping: watch::Receiver<bool>) -> Self {
        self.stopping = Some(stopping);
        self
    }

    /// What arrives next; none at the end.
    ///
    /// # Errors
    /// If it is too long, too slow, or breaks off, or the process ends.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let pause = Instant::now() + BODY_PAUSE_TIMEOUT;
            let pause = self.deadline.map_or(pause, |end| end.min(pause));
            let frame = tokio::select! {
                biased;
                () = stopped(&mut self.stopping) => return Err(Problem::stopping()),
                frame = tokio::time::timeout_at(pause, self.body.frame()) => frame,
            };
            let frame = match frame {
                Err(_) => {
                    return Err(Problem::new(
                        StatusCode::REQUEST_TIMEOUT,
                        "body-timeout",
                        "the body did not arrive in time",
                    ));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(Problem::bad_request("body", format!("body: {error}")));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.left = self
                .left
                .checked_sub(data.len() as u64)
                .ok_or_else(|| Problem::too_large(self.limit))?;
            return Ok(Some(data));
        }
    }
}

/// Waits for the end of the process; without a sign of it, for ever.
async fn stopped(stopping: &mut Option<watch::Receiver<bool>>) {
    if let Some(stopping) = stopping
        && stopping.wait_for(|stopping| *stopping).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or_else(|| {
            Problem::bad_request("body", format!("content-length {value:?} is not a number"))
        })
}

/// What some editors put before text in UTF-8: no part of what it says.
pub(crate) const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Parses a JSON body; types refuse unknown fields.
pub(super) fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    serde_json::from_slice(body).map_err(|error| {
        let detail = format!("body: {error}");
        if error.is_data() {
            Problem::invalid("invalid-body", detail)
        } else {
            Problem::bad_request("not-json", detail)
        }
    })
}

/// The media type without parameters, in lower case; none if there is no field.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?;
    let text = String::from_utf8_lossy(value.as_bytes());
    Some(
        text.split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase(),
    )
}

/// Entity tags of an `If-Match` or `If-None-Match`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tags {
    /// `*`: whatever there is.
    Any,
    /// These: whether weak, and the text between the quotes.
    List(Vec<(bool, String)>),
}

impl Tags {
    /// Reads a field; none if it is not there.
    pub(super) fn from(headers: &HeaderMap, name: HeaderName) -> Result<Option<Self>, Problem> {
        let mut tags = Vec::new();
        for value in headers.get_all(&name) {
            let bad = || {
                Problem::bad_request(
                    "entity-tag",
                    format!("{name}: {value:?}: expected * or entity tags such as \"42\""),
                )
            };
            let text = value.to_str().map_err(|_| bad())?.trim();
            if text == "*" {
                return Ok(Some(Self::Any));
            }
            parse_tags(text, &mut tags).ok_or_else(bad)?;
        }
        Ok((!tags.is_empty()).then_some(Self::List(tags)))
    }

    /// Whether the tag is among these by strong comparison, as `If-Match` wants it. None: there is nothing.
    pub(super) fn holds_strongly(&self, current: Option<&str>) -> bool {
        match (self, current) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::List(tags), Some(current)) => {
                tags.iter().any(|(weak, tag)| !weak && tag == current)
            }
        }
    }

    /// Whether the tag is among these by weak comparison, as `If-None-Match` wants it.
    pub(super) fn holds_weakly(&self, current: &str) -> bool {
        match self {
            Self::Any => true,
            Self::List(tags) => tags.iter().any(|(_, tag)| tag == current),
        }
    }
}

/// Appends the tags of a list; none if it is not one.
fn parse_tags(mut text: &str, tags: &mut Vec<(bool, String)>) -> Option<()> {
    loop {
        let weak = text.strip_prefix("W/");
        let (tag, rest) = weak.unwrap_or(text).strip_prefix('"')?.split_once('"')?;
        tags.push((weak.is_some(), tag.to_owned()));
        let rest = rest.trim_start();
        if rest.is_empty() {
            return Some(());
        }
        text = rest.strip_prefix(',')?.trim_start();
    }
}

/// An entity tag as it is sent.
pub(super) fn etag(tag: impl std::fmt::Display) -> String {
    format!("\"{tag}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(value: &str) -> Option<Tags> {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, value.parse().unwrap());
        Tags::from(&headers, header::IF_MATCH).unwrap_or(None)
    }

    #[test]
    fn entity_tags_are_read_as_lists() {
        assert_eq!(tags("*"), Some(Tags::Any));
        assert_eq!(
            tags("\"1\" , W/\"a,b\",\"\""),
            Some(Tags::List(vec![
                (false, "1".into()),
                (true, "a,b".into()),
                (false, String::new())
            ]))
        );
        for bad in ["1", "\"1", "\"1\" \"2\"", "\"1\",", "w/\"1\"", ""] {
            assert_eq!(tags(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bad_tag_names_field_and_value() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, "42".parse().unwrap());
        let problem = Tags::from(&headers, header::IF_MATCH).unwrap_err();
        assert_eq!(problem.status, 400);
        assert!(
            problem.detail.contains("if-match: \"42\""),
            "{}",
            problem.detail
        );
    }

    #[test]
    fn weak_tags_hold_for_reads_only() {
        let weak = tags("W/\"7\"").unwrap();
        assert!(weak.holds_weakly("7"));
        assert!(!weak.holds_strongly(Some("7")));
        assert!(tags("\"6\", \"7\"").unwrap().holds_strongly(Some("7")));
        assert!(!Tags::Any.holds_strongly(None));
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_announced_or_not() {
        let mut headers = HeaderMap::new();
        let body = || Body::from("12345");
        assert_eq!(read_body(&headers, body(), 5).await.unwrap(), "12345");
        let late = read_body(&headers, body(), 4).await.unwrap_err();
        assert_eq!(late.status, 413);
        headers.insert(header::CONTENT_LENGTH, "5".parse().unwrap());
        let early = read_body(&headers, Body::empty(), 4).await.unwrap_err();
        assert_eq!(early, Problem::too_large(4));
    }

    #[test]
    fn an_unknown_field_is_named_with_what_was_expected() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Only {
            #[allow(dead_code)]
            set: u8,
        }
        let problem = parse_json::<Only>(b"{\"sett\":1}").unwrap_err();
        assert_eq!(problem.status, 422);
        assert!(
            problem
                .detail
                .contains("unknown field `sett`, expected `set`")
        );
        assert_eq!(parse_json::<Only>(b"{").unwrap_err().status, 400);
    }
}
