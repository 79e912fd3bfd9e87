//! `POST /v1/batch`: writes to several buckets, and the activation of a version, in one step.

use super::State as AdminState;
use super::input::{Actor, DryRun, Query, parse_json, read_body};
use super::kv::find;
use super::operation::Told;
use super::plugins::{Change, deploy_problem};
use super::problem::Problem;
use super::transfer::{BatchBody, Content, Ending, commit, committed_json, done, offload};
use crate::plugin::{DeployError, Order, Wanted};
use crate::store::{BucketId, Snapshot, WriteBatch};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

/// What is to be done, all or none.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    #[serde(default)]
    writes: Writes,
    activate: Option<Activate>,
}

/// Writes by the name of their bucket.
#[derive(Default)]
struct Writes(BTreeMap<String, BatchBody>);

impl<'de> Deserialize<'de> for Writes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Buckets;
        impl<'de> Visitor<'de> for Buckets {
            type Value = Writes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of buckets, each with set, delete or writes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Writes, A::Error> {
                let mut buckets = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let named = |why: &dyn fmt::Display| -> A::Error {
                        Error::custom(format_args!("bucket {name:?}: {why}"))
                    };
                    let writes = map.next_value().map_err(|error: A::Error| named(&error))?;
                    match buckets.entry(name.clone()) {
                        Entry::Vacant(entry) => entry.insert(writes),
                        Entry::Occupied(_) => return Err(named(&"it is there twice")),
                    };
                }
                Ok(Writes(buckets))
            }
        }
        deserializer.deserialize_map(Buckets)
    }
}

impl Writes {
    /// Checks what can be checked without the buckets.
    fn check(self) -> Result<(), String> {
        for (name, writes) in self.0 {
            let batch = writes.into_batch(BucketId(0));
            batch.map_err(|problem| format!("bucket {name:?}: {}", problem.detail))?;
        }
        Ok(())
    }
}

/// Which version takes over.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Activate {
    plugin: String,
    /// The beginning of the digest of one that is kept.
    version: Option<String>,
    /// A new one, as `{"base64": "…"}`.
    component: Option<Content>,
    #[serde(default)]
    force: bool,
}

/// `POST /v1/batch`
pub(super) async fn post(
    State(state): State<AdminState>,
    Query(DryRun { dry_run }): Query<DryRun>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(&headers, body, state.config.body_bytes_max).await?;
    let snapshot = state.store.snapshot();
    let (mut batch, activate) = offload(move || parse(&body, &snapshot)).await??;
    let Some(activate) = activate else {
        batch.dry_run = dry_run;
        let (ends, batch) = Ending::of(batch).await?;
        let committed = commit(&state.store, batch, &actor, None).await?;
        let mut answer = committed_json(&committed, dry_run);
        ends.tell(&state.store, &committed, &mut answer).await;
        return Ok(Told::with(done(&committed), dry_run, Json(answer)));
    };
    let wanted = match (activate.version, activate.component) {
        (Some(version), None) => Wanted::Version(version),
        (None, Some(component)) if component.0.len() <= state.config.component_bytes_max => {
            Wanted::Component(component.0.into_vec().into())
        }
        (None, Some(_)) => {
            let error = DeployError::TooLarge(state.config.component_bytes_max);
            return Err(deploy_problem(&error));
        }
        _ => {
            let detail = "activate: expected either version or component";
            return Err(Problem::invalid("invalid-body", detail));
        }
    };
    batch.by = Some(actor.0.as_str().into());
    let change = Change::new(&state, &activate.plugin, &headers, dry_run);
    let _turn = change.begin()?;
    let order = Order {
        by: &actor.0,
        dry_run,
        force: activate.force,
    };
    let deployed = state
        .plugins
        .activate_with(&activate.plugin, wanted, order, batch)
        .await;
    change.end(deployed)
}

/// Checks the body of a request as far as that can be done without the buckets.
///
/// # Errors
/// What is wrong, in which bucket and on which line, and what was expected.
pub(crate) fn check_batch(text: &str) -> Result<(), String> {
    let sent: Sent = serde_json::from_str(text).map_err(|error| told(&error))?;
    sent.writes.check()
}

/// The same for what is under `writes` in such a body.
///
/// # Errors
/// As [`check_batch`].
pub(crate) fn check_writes(text: &str) -> Result<(), String> {
    let writes: Writes = serde_json::from_str(text).map_err(|error| told(&error))?;
    writes.check()
}

fn told(error: &serde_json::Error) -> String {
    match error.is_data() {
        true => error.to_string(),
        false => format!("no JSON: {error}"),
    }
}

fn parse(body: &[u8], snapshot: &Snapshot) -> Result<(WriteBatch, Option<Activate>), Problem> {
    let sent: Sent = parse_json(body)?;
    let mut all = WriteBatch::default();
    for (name, writes) in sent.writes.0 {
        let (bucket, _) = find(snapshot, &name)?;
        let batch = writes.into_batch(bucket).map_err(|mut problem| {
            problem.detail = format!("bucket {name:?}: {}", problem.detail);
            problem
        })?;
        all.writes.extend(batch.writes);
        all.replace.extend(batch.replace);
    }
    if all.writes.is_empty() && all.replace.is_empty() && sent.activate.is_none() {
        let detail = "nothing to do: expected writes, activate or both";
        return Err(Problem::invalid("invalid-body", detail));
    }
    Ok((all, sent.activate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_its_bucket_and_line_however_the_writes_are_given() {
        for (writes, expected) in [
            (
                "{\n\"a\": {\"sets\": {}}}",
                "bucket \"a\": unknown field `sets`, expected one of `set`",
            ),
            (
                "{\n\"a\": {\"delete\": \"k\"}}",
                "bucket \"a\": invalid type: string",
            ),
            (
                "{\n\"a\": {}, \"a\": {}}",
                "bucket \"a\": it is there twice",
            ),
            (
                "\n[]",
                "expected an object of buckets, each with set, delete or writes",
            ),
        ] {
            let body = format!("{{\"writes\": {writes}}}");
            for error in [check_writes(writes), check_batch(&body)] {
                let error = error.expect_err("refused");
                assert!(error.contains(expected), "{writes}: {error}");
                assert_eq!(error.matches(" at line ").count(), 1, "{error}");
                assert!(error.contains(" at line 2 column "), "{writes}: {error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_it_is_sent() {
        let writes = "{\"a\": {\"set\": {\"k\": \"v\"}, \"delete\": [\"k\"]}}";
        for error in [
            check_writes(writes),
            check_batch(&format!("{{\"writes\": {writes}}}")),
        ] {
            let error = error.expect_err("refused");
            assert_eq!(
                error,
                "bucket \"a\": key \"k\" is both in set and in delete"
            );
        }
        let no_json = check_writes("{").expect_err("refused");
        assert!(no_json.starts_with("no JSON: "), "{no_json}");
        check_writes("{\"a\": {\"set\": {\"k\": \"v\"}}, \"b\": {}}").expect("writes");
    }
}
