//! What `init` returned, checked once for a generation: which fields, which buckets, which edits.

use super::decision::{self, Edits};
use super::generation::Grant;
use super::imports::wit;
use crate::store::{BucketId, ValueKind};
use http::HeaderName;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most fields passed by value, and most slots.
const FIELDS_MAX: usize = 16;
/// Most buckets for `lookup`.
const BUCKETS_MAX: usize = 16;

/// A part of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    /// The method.
    Method,
    /// `http` or `https`.
    Scheme,
    /// Host and port the request names.
    Authority,
    /// The path.
    Path,
    /// What follows `?`.
    Query,
    /// The client's address.
    ClientIp,
    /// `websocket` if asked for.
    Upgrade,
    /// The first value of a header field.
    Header(HeaderName),
}

impl TryFrom<wit::Field> for Field {
    type Error = String;

    fn try_from(field: wit::Field) -> Result<Self, String> {
        Ok(match field {
            wit::Field::Method => Self::Method,
            wit::Field::Scheme => Self::Scheme,
            wit::Field::Authority => Self::Authority,
            wit::Field::Path => Self::Path,
            wit::Field::Query => Self::Query,
            wit::Field::ClientIp => Self::ClientIp,
            wit::Field::Upgrade => Self::Upgrade,
            wit::Field::Header(name) => Self::Header(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| format!("{name:?} is not a header name"))?,
            ),
        })
    }
}

/// A checked subscription.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Passed to `route` by value.
    pub(crate) fields: Box<[Field]>,
    /// Kept on the host's side.
    pub(crate) slots: Box<[Field]>,
    /// Buckets of `lookup`, by their place.
    pub(crate) buckets: Box<[BucketId]>,
    /// Made to every forward.
    pub(crate) edits: Option<Arc<Edits>>,
    /// Buckets that its instances keep a view of, by their place.
    pub(crate) watched: Arc<[BucketId]>,
}

impl Plan {
    /// Checks a subscription against the grants.
    ///
    /// # Errors
    /// What is wrong, with its place in the subscription.
    pub(crate) fn check(
        subscription: wit::Subscription,
        grants: &BTreeMap<String, Grant>,
    ) -> Result<Self, String> {
        let edits = decision::check_edits(subscription.edits)
            .map_err(|error| format!("subscription.edits: {error}"))?;
        Ok(Self {
            fields: check_fields("fields", subscription.fields)?,
            slots: check_fields("slots", subscription.slots)?,
            buckets: check_buckets(&subscription.buckets, grants)?,
            edits: (edits != Edits::default()).then(|| Arc::new(edits)),
            watched: Arc::default(),
        })
    }
}

fn check_fields(list: &str, fields: Vec<wit::Field>) -> Result<Box<[Field]>, String> {
    if fields.len() > FIELDS_MAX {
        return Err(format!(
            "subscription.{list}: {} of them, at most {FIELDS_MAX} are allowed",
            fields.len()
        ));
    }
    let checked = fields.into_iter().enumerate().map(|(i, field)| {
        Field::try_from(field).map_err(|error| format!("subscription.{list}[{i}]: {error}"))
    });
    checked.collect()
}

fn check_buckets(
    names: &[String],
    grants: &BTreeMap<String, Grant>,
) -> Result<Box<[BucketId]>, String> {
    if names.len() > BUCKETS_MAX {
        return Err(format!(
            "subscription.buckets: {} of them, at most {BUCKETS_MAX} are allowed",
            names.len()
        ));
    }
    let checked = names.iter().map(|name| match grants.get(name) {
        None => Err(format!(
            "bucket {name:?} is not granted to this plugin; grant it in the config, expected one of {:?}",
            grants.keys().collect::<Vec<_>>()
        )),
        Some(grant) if grant.values != ValueKind::Endpoint => Err(format!(
            "bucket {name:?} holds bytes, but lookup needs a bucket whose values are endpoints"
        )),
        Some(grant) => Ok(grant.bucket),
    });
    checked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Access;

    fn grants() -> BTreeMap<String, Grant> {
        let grant = |id, values| Grant {
            bucket: BucketId(id),
            access: Access::Read,
            values,
        };
        BTreeMap::from([
            ("map".to_owned(), grant(1, ValueKind::Endpoint)),
            ("notes".to_owned(), grant(2, ValueKind::Bytes)),
        ])
    }

    fn subscription() -> wit::Subscription {
        wit::Subscription {
            fields: Vec::new(),
            slots: Vec::new(),
            buckets: Vec::new(),
            edits: wit::Edits {
                request_remove: Vec::new(),
                request_set: Vec::new(),
                response_remove: Vec::new(),
                response_set: Vec::new(),
            },
        }
    }

    #[test]
    fn a_subscription_becomes_a_plan() {
        let mut subscription = subscription();
        subscription.fields = vec![wit::Field::Path, wit::Field::Header("X-Id".into())];
        subscription.buckets = vec!["map".into()];
        subscription.edits.request_remove = vec!["x-id".into()];
        let plan = Plan::check(subscription, &grants()).expect("valid");
        assert_eq!(
            *plan.fields,
            [Field::Path, Field::Header(HeaderName::from_static("x-id"))]
        );
        assert_eq!(*plan.buckets, [BucketId(1)]);
        assert_eq!(plan.edits.expect("edits").request_remove, ["x-id"]);
    }

    #[test]
    fn without_edits_there_are_none_to_share() {
        assert!(
            Plan::check(subscription(), &grants())
                .expect("valid")
                .edits
                .is_none()
        );
    }

    #[test]
    fn each_mistake_is_named() {
        type Change = fn(&mut wit::Subscription);
        let cases: [(Change, &str); 5] = [
            (
                |s| s.fields = vec![wit::Field::Path; 17],
                "subscription.fields: 17 of them",
            ),
            (
                |s| s.slots = vec![wit::Field::Header("a b".into())],
                "subscription.slots[0]: \"a b\"",
            ),
            (
                |s| s.buckets = vec!["nope".into()],
                "bucket \"nope\" is not granted",
            ),
            (
                |s| s.buckets = vec!["notes".into()],
                "bucket \"notes\" holds bytes",
            ),
            (
                |s| s.edits.request_set = vec![("host".into(), "a".into())],
                "subscription.edits: header \"host\"",
            ),
        ];
        for (change, expected) in cases {
            let mut subscription = subscription();
            change(&mut subscription);
            let error = Plan::check(subscription, &grants()).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
