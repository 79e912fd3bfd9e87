//! `throwbar kv set`, `del`, `touch` and `incr`.

use super::{flag, path_of, segment};
use crate::cli::client::{Answer, Client, ClientError, with_query};
use crate::cli::output::{self, Out};
use crate::cli::{Ended, Exit};
use crate::config::diagnostic::shorten;
use anyhow::Context;
use http::{HeaderName, Method, header};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a batch did.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Committed {
    revision: u64,
    created: u64,
    updated: u64,
    touched: u64,
    deleted: u64,
    unchanged: u64,
    /// Of an import: entries that had ended.
    ended: u64,
    /// Of an undo: keys that were changed since.
    left_out: u64,
    /// When the first of what was written with a time to live ends.
    expires_at: Option<String>,
}

/// What may go wrong for somebody else having been faster. As in batches, what was written at 0 does not exist.
pub(super) fn condition(if_revision: Option<u64>, if_absent: bool) -> Option<(HeaderName, String)> {
    match (if_revision, if_absent) {
        (Some(revision @ 1..), _) => Some((header::IF_MATCH, format!("\"{revision}\""))),
        (Some(0), _) | (None, true) => Some((header::IF_NONE_MATCH, "*".to_owned())),
        (None, false) => None,
    }
}

/// A condition that did not hold, in words of the options that asked for it.
pub(super) fn unmet(
    bucket: &str,
    condition: Option<&(HeaderName, String)>,
    error: ClientError,
) -> ClientError {
    let Some((field, wanted)) = condition else {
        return error;
    };
    let ClientError::Problem(mut problem) = error else {
        return error;
    };
    if problem.status == 412 {
        let why = match *field == header::IF_MATCH {
            true => format!(
                "expected {}: it was changed since",
                wanted.trim_matches('"')
            ),
            false if problem.key.is_none() => "expected it to hold no key".to_owned(),
            false => "it exists already".to_owned(),
        };
        let found = problem.detail.take().unwrap_or_default();
        let place = format!("bucket {bucket:?}");
        problem.detail = Some(match found.starts_with(&place) {
            true => format!("{found}, {why}"),
            false => format!("{place}: {found}, {why}"),
        });
    }
    ClientError::Problem(problem)
}

/// How a command writes, and tells of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    pub(super) dry_run: bool,
    pub(super) json: bool,
}

/// Sets keys: with a condition one, by itself.
pub(super) async fn set(
    client: &Client,
    bucket: &str,
    pairs: Vec<(String, String)>,
    condition: Option<(HeaderName, String)>,
    ttl: Option<String>,
    how: How,
) -> anyhow::Result<()> {
    let mut seen = BTreeMap::new();
    for (key, value) in &pairs {
        if let Some(first) = seen.insert(key, value) {
            let [key, first, value] = [key, first, value].map(|it| shorten(it));
            let why = format!(
                "key {key:?} is given twice, as {key}={first} and {key}={value}: expected once"
            );
            return Err(Ended::error(Exit::Usage, why));
        }
    }
    let Some(condition) = condition else {
        let set: serde_json::Map<String, Value> =
            pairs.into_iter().map(|(k, v)| (k, v.into())).collect();
        let body = json!({ "set": set, "ttl": ttl });
        return batch(client, bucket, &body, how).await;
    };
    let Ok([(key, value)]) = <[(String, String); 1]>::try_from(pairs) else {
        return Err(Ended::error(
            Exit::Usage,
            "--if-revision and --if-absent need exactly one KEY=VALUE: kv batch takes a condition for each of many",
        ));
    };
    let query = [("dry_run", flag(how.dry_run)), ("ttl", ttl)];
    let path = with_query(path_of(bucket, &key)?, &query);
    let body = Full::new(value.into());
    let answer = client
        .send(
            Method::PUT,
            &path,
            std::slice::from_ref(&condition),
            body,
            None,
        )
        .await
        .map_err(|error| refused(bucket, unmet(bucket, Some(&condition), error)))?;
    let body: Value = answer.json()?;
    let ends = body["expires_at"].as_str();
    told_of_one(bucket, &key, "set", (answer.etag, ends), how)
}

/// Deletes keys: with a condition one, by itself.
pub(super) async fn delete(
    client: &Client,
    bucket: &str,
    keys: Vec<String>,
    condition: Option<(HeaderName, String)>,
    how: How,
) -> anyhow::Result<()> {
    let Some((name, revision)) = condition else {
        return batch(client, bucket, &json!({ "delete": keys }), how).await;
    };
    let key = only_key(keys)?;
    let path = with_query(path_of(bucket, &key)?, &[("dry_run", flag(how.dry_run))]);
    let condition = (name, revision);
    let body = Full::default();
    client
        .send(
            Method::DELETE,
            &path,
            std::slice::from_ref(&condition),
            body,
            None,
        )
        .await
        .map_err(|error| refused(bucket, unmet(bucket, Some(&condition), error)))?;
    told_of_one(bucket, &key, "deleted", (None, None), how)
}

/// Renews keys, all or none: with a condition one, by itself.
pub(super) async fn touch(
    client: &Client,
    bucket: &str,
    keys: Vec<String>,
    ttl: Option<String>,
    condition: Option<(HeaderName, String)>,
    how: How,
) -> anyhow::Result<()> {
    if let Some(condition) = condition {
        let key = only_key(keys)?;
        let sent = json!({ "ttl": ttl });
        let answer = patch(client, bucket, &key, &sent, Some(condition), how).await?;
        let body: Value = answer.json()?;
        let ends = body["expires_at"].as_str();
        return told_of_one(bucket, &key, "renewed", (answer.etag, ends), how);
    }
    let touched = |key: String| json!({ "key": key, "ttl": ttl });
    let writes: Vec<Value> = keys.into_iter().map(touched).collect();
    batch(client, bucket, &json!({ "writes": writes }), how).await
}

/// Adds to the number under a key and prints the sum.
pub(super) async fn increment(
    client: &Client,
    bucket: &str,
    key: &str,
    (by, ttl): (i64, Option<String>),
    condition: Option<(HeaderName, String)>,
    how: How,
) -> anyhow::Result<()> {
    let mut body = json!({ "increment": by });
    if let Some(ttl) = ttl {
        body["ttl"] = ttl.into();
    }
    let answer = patch(client, bucket, key, &body, condition, how).await?;
    let answer: Value = answer.json()?;
    let mut out = Out::stdout();
    match how.json {
        true => out.json(&answer)?,
        false => out.line(&answer["value"])?,
    }
    out.flush()
}

/// Changes a key by what it is.
async fn patch(
    client: &Client,
    bucket: &str,
    key: &str,
    body: &Value,
    condition: Option<(HeaderName, String)>,
    how: How,
) -> anyhow::Result<Answer> {
    let mut headers = vec![(header::CONTENT_TYPE, "application/json".to_owned())];
    headers.extend(condition.clone());
    let path = with_query(path_of(bucket, key)?, &[("dry_run", flag(how.dry_run))]);
    let body = Full::new(body.to_string().into());
    let answer = client.send(Method::PATCH, &path, &headers, body, None);
    answer
        .await
        .map_err(|error| refused(bucket, unmet(bucket, condition.as_ref(), error)))
}

/// The key that a condition is of.
fn only_key(keys: Vec<String>) -> anyhow::Result<String> {
    let Ok([key]) = <[String; 1]>::try_from(keys) else {
        return Err(Ended::error(
            Exit::Usage,
            "--if-revision needs exactly one KEY: kv batch takes a condition for each of many",
        ));
    };
    Ok(key)
}

fn told_of_one(
    bucket: &str,
    key: &str,
    what: &str,
    (revision, ends): (Option<String>, Option<&str>),
    how: How,
) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    let number = revision.as_deref().and_then(|it| it.parse::<u64>().ok());
    if how.json {
        let mut entry = json!({ "key": key, "revision": number });
        if let Some(ends) = ends {
            entry["expires_at"] = ends.into();
        }
        out.json(&entry)?;
    } else if how.dry_run {
        out.line(format_args!("{bucket}: would be {what}; nothing changed"))?;
    } else {
        let revision = revision.map(|revision| format!("   revision {revision}"));
        let ends = ends.map(|ends| format!("   ends {ends}"));
        let [revision, ends] = [revision, ends].map(Option::unwrap_or_default);
        let key = output::printable(key);
        out.line(format_args!("{bucket}: {key} {what}{revision}{ends}"))?;
    }
    out.flush()
}

async fn batch(client: &Client, bucket: &str, body: &Value, how: How) -> anyhow::Result<()> {
    let path = with_query(
        format!("/v1/kv/{}/batch", segment("bucket", bucket)?),
        &[("dry_run", flag(how.dry_run))],
    );
    let answer = client
        .post_json(&path, body)
        .await
        .map_err(|error| refused(bucket, error))?;
    report(bucket, &answer.json()?, how.dry_run, how.json)
}

/// An error of a write to a bucket with its exit code: a value the bucket cannot hold is not a failure to reach anybody, and
/// one that broke off may have been written.
pub(super) fn refused(bucket: &str, error: ClientError) -> anyhow::Error {
    match error {
        ClientError::Broken { .. } => Ended::error(
            Exit::Failed,
            format!(
                "{error}: no answer, so it is not known whether it was written: see throwbar kv ls {bucket}"
            ),
        ),
        ClientError::Problem(problem) if problem.status == 422 => {
            Ended::error(Exit::ConfigInvalid, problem.to_string())
        }
        other => other.into(),
    }
}

/// Says what a batch did.
pub(super) fn report(
    bucket: &str,
    answer: &Value,
    dry_run: bool,
    json: bool,
) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    if json {
        out.json(answer)?;
    } else {
        let done = Committed::deserialize(answer)
            .context("the admin API's answer is not what was expected")?;
        out.line(summary(bucket, &done, dry_run))?;
    }
    out.flush()
}

fn summary(bucket: &str, done: &Committed, dry_run: bool) -> String {
    let parts: Vec<String> = [
        (done.created, "added"),
        (done.updated, "changed"),
        (done.touched, "renewed"),
        (done.deleted, "deleted"),
        (done.unchanged, "as before"),
        (done.ended, "left out, for they have ended"),
        (
            done.left_out,
            "left as they are, for they were changed since",
        ),
    ]
    .iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, what)| format!("{} {what}", output::count(*number)))
    .collect();
    let what = if parts.is_empty() {
        "nothing to do".to_owned()
    } else {
        parts.join(", ")
    };
    if dry_run {
        return format!("{bucket}: would be {what}; nothing changed");
    }
    let written = done.created + done.updated + done.touched + done.unchanged;
    let ends = match &done.expires_at {
        None => String::new(),
        Some(ends) if written == 1 => format!("   ends {ends}"),
        Some(ends) => format!("   the first ends {ends}"),
    };
    format!("{bucket}: {what}   revision {}{ends}", done.revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_only_what_happened() {
        let done = Committed {
            revision: 12,
            created: 1_000,
            unchanged: 2,
            ..Committed::default()
        };
        assert_eq!(
            summary("b", &done, false),
            "b: 1,000 added, 2 as before   revision 12"
        );
        let ending = |created| Committed {
            created,
            expires_at: Some("2026".to_owned()),
            ..Committed::default()
        };
        assert_eq!(
            summary("b", &ending(1), false),
            "b: 1 added   revision 0   ends 2026"
        );
        assert!(summary("b", &ending(2), false).ends_with("   the first ends 2026"));
        let none = Committed::default();
        assert!(summary("b", &none, true).contains("nothing changed"));
    }

    #[test]
    fn a_refused_value_has_the_exit_code_of_an_invalid_map() {
        let problem = |status| {
            ClientError::Problem(crate::cli::problem::Problem {
                status,
                title: "no".to_owned(),
                ..Default::default()
            })
        };
        let exit = |status| crate::cli::exit_of(&refused("b", problem(status)));
        assert_eq!(exit(422), Exit::ConfigInvalid);
        assert_eq!(exit(412), Exit::Failed);
        assert_eq!(exit(404), Exit::Failed);
    }
}
