//! What differs between two decisions on the same request, part by part.

use super::decision::{Edits, Varying};
use super::{Decision, Forward, Reply, RouteTarget};
use crate::store::{OnChange, Target};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use std::fmt::Debug;

/// Longest text of a value in a difference.
const VALUE_BYTES_MAX: usize = 200;

/// One part of a decision that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The part.
    pub field: &'static str,
    /// What the active version decided.
    pub active: String,
    /// What the candidate would have.
    pub candidate: String,
}

/// The key of a decision.
pub(super) fn key(decision: Option<&Decision>) -> Option<&str> {
    match decision {
        Some(Decision::Forward(forward)) => forward.key.as_deref(),
        _ => None,
    }
}

/// Every part that differs; none is a call that gave no decision.
pub(super) fn between(active: Option<&Decision>, candidate: Option<&Decision>) -> Vec<Difference> {
    let mut found = Found(Vec::new());
    match (active, candidate) {
        (Some(Decision::Forward(active)), Some(Decision::Forward(candidate))) => {
            found.forwards(active, candidate);
        }
        (Some(Decision::Reply(active)), Some(Decision::Reply(candidate))) => {
            found.replies(active, candidate);
        }
        _ => found.compare("decision", &kind(active), &kind(candidate), text),
    }
    found.0
}

fn kind(decision: Option<&Decision>) -> &'static str {
    match decision {
        Some(Decision::Forward(_)) => "forward",
        Some(Decision::Reply(_)) => "reply",
        Some(Decision::Pass) => "pass",
        None => "none",
    }
}

struct Found(Vec<Difference>);

impl Found {
    fn compare<T: PartialEq>(
        &mut self,
        field: &'static str,
        active: &T,
        candidate: &T,
        show: fn(&T) -> String,
    ) {
        if active != candidate {
            self.0.push(Difference {
                field,
                active: cut(show(active)),
                candidate: cut(show(candidate)),
            });
        }
    }

    fn forwards(&mut self, active: &Forward, candidate: &Forward) {
        self.compare("target", &active.to, &candidate.to, |to| match to {
            RouteTarget::Address(socket @ Target::Unix(_), _) => socket.to_string(),
            RouteTarget::Address(host, port) => format!("{host}:{port}"),
            RouteTarget::Record(record, None) => record.text().to_owned(),
            RouteTarget::Record(record, Some(port)) => format!("{} at port {port}", record.text()),
            RouteTarget::Upstream(name, _) => format!("upstream {name}"),
        });
        self.compare("key", &active.key, &candidate.key, debug);
        let on_change = [active, candidate].map(|one| {
            let follow = one.follow.as_ref();
            follow.map_or(OnChange::Keep, |follow| follow.on_change)
        });
        self.compare("on_change", &on_change[0], &on_change[1], debug);
        if active.varying != candidate.varying {
            let nothing = Varying::default();
            let [one, other] =
                [active, candidate].map(|one| one.varying.as_deref().unwrap_or(&nothing));
            self.compare("path", &one.path, &other.path, debug);
            self.compare(
                "connect_timeout",
                &one.connect_timeout,
                &other.connect_timeout,
                debug,
            );
            self.compare(
                "response_timeout",
                &one.response_timeout,
                &other.response_timeout,
                debug,
            );
            let idle = [one, other].map(|one| one.stream_idle_timeout);
            self.compare("stream_idle_timeout", &idle[0], &idle[1], debug);
            let age = [one, other].map(|one| one.stream_age_max);
            self.compare("stream_age_max", &age[0], &age[1], debug);
        }
        if active.constant != candidate.constant || active.varying != candidate.varying {
            let [one, other] = [active, candidate].map(AllEdits::of);
            self.compare("request_headers", &one.request, &other.request, debug);
            self.compare("response_headers", &one.response, &other.response, debug);
        }
    }

    fn replies(&mut self, active: &Reply, candidate: &Reply) {
        self.compare("status", &active.status, &candidate.status, |status| {
            status.to_string()
        });
        self.compare("headers", &active.headers, &candidate.headers, debug);
        self.compare("body", &active.body, &candidate.body, debug);
    }
}

/// Edits in the order they are made, constant ones first.
struct AllEdits<'a> {
    request: Vec<Edit<'a>>,
    response: Vec<Edit<'a>>,
}

type Edit<'a> = (&'a HeaderName, Option<&'a HeaderValue>);

impl<'a> AllEdits<'a> {
    fn of(forward: &'a Forward) -> Self {
        let constant = forward.constant.as_deref();
        let varying = forward.varying.as_deref().map(|varying| &varying.edits);
        let all = || constant.into_iter().chain(varying);
        fn list<'a>(
            removed: &'a [HeaderName],
            set: &'a [(HeaderName, HeaderValue)],
        ) -> Vec<Edit<'a>> {
            let set = set.iter().map(|(name, value)| (name, Some(value)));
            removed.iter().map(|name| (name, None)).chain(set).collect()
        }
        let request = |edits: &'a Edits| list(&edits.request_remove, &edits.request_set);
        let response = |edits: &'a Edits| list(&edits.response_remove, &edits.response_set);
        Self {
            request: all().flat_map(request).collect(),
            response: all().flat_map(response).collect(),
        }
    }
}

fn text(value: &&'static str) -> String {
    (*value).to_owned()
}

fn debug(value: &impl Debug) -> String {
    format!("{value:?}")
}

fn cut(mut text: String) -> String {
    if text.len() > VALUE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(VALUE_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::decision::Follow;
    use super::*;
    use crate::store::BucketId;
    use crate::store::Value;
    use http::StatusCode;
    use std::sync::Arc;

    fn forward(upstream: &str, edits: Edits) -> Forward {
        Forward {
            to: RouteTarget::Upstream(upstream.into(), None),
            key: Some("id1".into()),
            constant: (edits != Edits::default()).then(|| Arc::new(edits)),
            varying: None,
            follow: None,
        }
    }

    fn fields(active: Option<&Decision>, candidate: Option<&Decision>) -> Vec<&'static str> {
        between(active, candidate)
            .iter()
            .map(|one| one.field)
            .collect()
    }

    #[test]
    fn what_becomes_of_the_stream_when_its_entry_changes_is_a_part() {
        let mut closes = forward("app", Edits::default());
        closes.follow = Some(Box::new(Follow {
            bucket: BucketId(0),
            key: "id1".into(),
            value: Value::Target("10.0.0.1".parse().expect("a host")),
            on_change: OnChange::Close,
        }));
        let (keeps, closes) = (
            Decision::Forward(forward("app", Edits::default())),
            Decision::Forward(closes),
        );
        assert_eq!(fields(Some(&keeps), Some(&closes)), ["on_change"]);
    }

    #[test]
    fn equal_decisions_have_no_difference_and_others_name_their_parts() {
        let set = |value: &'static str| Edits {
            response_set: vec![(
                HeaderName::from_static("x-version"),
                HeaderValue::from_static(value),
            )],
            ..Edits::default()
        };
        let one = Decision::Forward(forward("app", set("a")));
        assert_eq!(fields(Some(&one), Some(&one)), [""; 0]);
        let other = Decision::Forward(forward("app", set("b")));
        assert_eq!(fields(Some(&one), Some(&other)), ["response_headers"]);
        // The same edit, said with each decision.
        let mut varying = forward("app", Edits::default());
        varying.varying = Some(Box::new(Varying {
            edits: set("a"),
            ..Varying::default()
        }));
        assert_eq!(
            fields(Some(&one), Some(&Decision::Forward(varying))),
            [""; 0]
        );
        let elsewhere = Decision::Forward(forward("other", set("a")));
        let found = between(Some(&one), Some(&elsewhere));
        assert_eq!(
            found,
            [Difference {
                field: "target",
                active: "upstream app".into(),
                candidate: "upstream other".into(),
            }]
        );
    }

    #[test]
    fn another_kind_is_one_difference() {
        let reply = Decision::Reply(Reply {
            status: StatusCode::OK,
            headers: Vec::new(),
            body: "x".into(),
        });
        assert_eq!(fields(Some(&reply), Some(&Decision::Pass)), ["decision"]);
        assert_eq!(fields(Some(&reply), None), ["decision"]);
        assert_eq!(fields(None, None), [""; 0]);
        let mut other = reply.clone();
        if let Decision::Reply(other) = &mut other {
            other.status = StatusCode::NOT_FOUND;
            other.body = "long ".repeat(100).into();
        }
        let found = between(Some(&reply), Some(&other));
        assert_eq!(fields(Some(&reply), Some(&other)), ["status", "body"]);
        assert!(found[1].candidate.len() < 210);
    }
}
