//! What becomes of a request. A decision is data: the host checks it before anything happens.

use crate::bindings::throwbar::plugin::types::Edits;
pub use crate::bindings::throwbar::plugin::types::{Decision, Forward, Reply, Target};
use std::time::Duration;

impl Target {
    /// An address such as `10.0.0.7:8080`, `[::1]:9000` or `name:80`. The guard of the config still applies.
    pub fn address(address: impl Into<String>) -> Self {
        Target::Address(address.into())
    }

    /// An upstream of the config: its policy picks the endpoint.
    pub fn upstream(name: impl Into<String>) -> Self {
        Target::Upstream(name.into())
    }

    /// An upstream, with the key that picks the endpoint: the same one each time.
    pub fn upstream_by_key(name: impl Into<String>, key: impl Into<String>) -> Self {
        Target::UpstreamByKey((name.into(), key.into()))
    }
}

impl From<Target> for Decision {
    fn from(target: Target) -> Self {
        Decision::To(target)
    }
}

impl From<Forward> for Decision {
    fn from(forward: Forward) -> Self {
        Decision::Forward(forward)
    }
}

impl From<Reply> for Decision {
    fn from(reply: Reply) -> Self {
        Decision::Reply(reply)
    }
}

/// Built from the target on.
///
/// ```
/// use throwbar::prelude::*;
/// use std::time::Duration;
///
/// let decision: Decision = Forward::to(Target::upstream("api"))
///     .set_header("x-tenant", "blue")
///     .rewrite("/v2/users?sort=name")
///     .response_timeout(Duration::from_secs(2))
///     .into();
/// ```
impl Forward {
    /// Forwards to an [`Entry`](crate::Entry) or a [`Target`], with nothing else said.
    pub fn to(target: impl Into<Target>) -> Self {
        Self {
            to: target.into(),
            edits: Edits::default(),
            path: None,
            key: None,
            connect_timeout_ms: None,
            response_timeout_ms: None,
            stream_idle_timeout_ms: None,
            stream_max_age_ms: None,
        }
    }

    /// Sets a header field of the request, in place of every field of that name.
    pub fn set_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.edits.request_set.push((name.into(), value.into()));
        self
    }

    /// Takes a header field away from the request.
    pub fn remove_header(mut self, name: impl Into<String>) -> Self {
        self.edits.request_remove.push(name.into());
        self
    }

    /// Sets a header field of the response, in place of every field of that name.
    pub fn set_response_header(
        mut self,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        self.edits.response_set.push((name.into(), value.into()));
        self
    }

    /// Takes a header field away from the response.
    pub fn remove_response_header(mut self, name: impl Into<String>) -> Self {
        self.edits.response_remove.push(name.into());
        self
    }

    /// Sends this path and query instead of those received; begins with `/`.
    pub fn rewrite(mut self, path_and_query: impl Into<String>) -> Self {
        self.path = Some(path_and_query.into());
        self
    }

    /// Labels the request in logs and in the list of streams; by default that is the key looked up.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Waits at most so long for the connection; the limit of the config still holds, here and below.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout_ms = Some(millis(timeout));
        self
    }

    /// Waits at most so long from the request sent to the head of the response.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout_ms = Some(millis(timeout));
        self
    }

    /// Closes an upgraded stream after so long without a byte either way.
    pub fn stream_idle_timeout(mut self, timeout: Duration) -> Self {
        self.stream_idle_timeout_ms = Some(millis(timeout));
        self
    }

    /// Closes an upgraded stream at this age.
    pub fn stream_age_max(mut self, age: Duration) -> Self {
        self.stream_max_age_ms = Some(millis(age));
        self
    }
}

/// Whole milliseconds, rounded up, so that a short timeout is not none at all.
pub(crate) fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// Built from the status on.
///
/// ```
/// use throwbar::prelude::*;
///
/// let busy = Reply::text(503, "back soon").header("retry-after", "30");
/// let unknown = Reply::json(404, format!(r#"{{"error": {}}}"#, json::quote("no \"id\"")));
/// assert_eq!(unknown.body, br#"{"error": "no \"id\""}"#);
/// ```
impl Reply {
    /// An empty response with a status from 200 to 599.
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// A response in plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self::new(status)
            .header("content-type", "text/plain; charset=utf-8")
            .body(body.into())
    }

    /// A response in JSON; [`json::quote`](crate::json::quote) makes safe strings for it.
    pub fn json(status: u16, body: impl Into<String>) -> Self {
        Self::new(status)
            .header("content-type", "application/json")
            .body(body.into())
    }

    /// Adds a header field. Framing fields are the host's.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_round_up_and_saturate() {
        assert_eq!(millis(Duration::from_micros(1)), 1);
        assert_eq!(millis(Duration::from_millis(250)), 250);
        assert_eq!(millis(Duration::MAX), u32::MAX);
    }
}
