//! `throwbar plugin canary | shadow | activate | forget | show`: versions beside the active one.

use super::push_to;
use super::report::{Version, report, table_of};
use crate::cli::client::{Client, ClientError, encode, with_query};
use crate::cli::number::within;
use crate::cli::output::{self, Out};
use crate::cli::{Ended, Exit};
use bytes::Bytes;
use clap::ValueEnum;
use http::{Method, header};
use http_body_util::{Empty, Full};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a change of what a version is may take: it may have to be compiled.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Arguments of `plugin canary`.
#[derive(Debug, clap::Args)]
pub(super) struct Canary {
    /// The plugin's name
    name: String,
    /// What to do with the canary that is on
    action: Option<Action>,
    /// The component (.wasm) to begin with
    #[arg(long, conflicts_with_all = ["version", "action"])]
    file: Option<PathBuf>,
    /// The kept version to begin with: the first digits of its digest
    #[arg(long, conflicts_with = "action")]
    version: Option<String>,
    /// Its share, from 0 to 100
    #[arg(long, value_name = "N", conflicts_with = "action", allow_negative_numbers = true,
          value_parser = |text: &str| within(text, 0.0, 100.0))]
    percent: Option<f64>,
    /// The field whose hash decides: header:NAME, cookie:NAME, query:NAME, segment:NUMBER (of the path), client-ip, authority or path; requests without it stay with the active version
    #[arg(long, value_name = "FIELD", conflicts_with = "action")]
    by: Option<String>,
    /// Also if the guard took the version back before, or if it would migrate data: then on the data as they are
    #[arg(long)]
    force: bool,
    /// Check only; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Make it the active version
    Promote,
    /// End it
    Abort,
}

/// Runs `plugin canary`.
pub(super) async fn canary(client: &Client, args: Canary) -> anyhow::Result<()> {
    let path = format!("/v1/plugins/{}/canary", encode(&args.name));
    let query = [
        ("dry_run", args.dry_run.then(|| "true".to_owned())),
        ("force", args.force.then(|| "true".to_owned())),
    ];
    let dry_run = &query[..1];
    let nothing_given = args.version.is_none() && args.percent.is_none() && args.by.is_none();
    let answer = match (args.action, &args.file) {
        (Some(Action::Promote), _) => {
            let path = with_query(format!("{path}/promote"), &query);
            let answer = send(client, Method::POST, &path, None).await?;
            return report(&answer, args.dry_run, args.json);
        }
        (Some(Action::Abort), _) => {
            send(client, Method::DELETE, &with_query(path, dry_run), None).await?;
            return say(args.json, &Value::Null, || {
                vec![format!(
                    "{}  the canary is aborted: every request is the active version's",
                    args.name
                )]
            });
        }
        (None, Some(file)) => {
            let mut query = query.to_vec();
            query.push(("canary", args.percent.map(|percent| percent.to_string())));
            query.push(("by", args.by.clone()));
            // Without either it would be a plain push.
            if args.percent.is_none() || args.by.is_none() {
                let why = "a canary needs its share: give --percent N --by FIELD";
                return Err(Ended::error(Exit::Usage, why));
            }
            let path = with_query(format!("/v1/plugins/{}", encode(&args.name)), &query);
            push_to(client, &path, file).await?
        }
        (None, None) if nothing_given => {
            let canary = send(client, Method::GET, &path, None).await?;
            return say(args.json, &canary, || vec![share_of(&args.name, &canary)]);
        }
        (None, None) => {
            let mut body = Map::new();
            body.extend(
                args.version
                    .map(|version| ("version".to_owned(), json!(version))),
            );
            body.extend(
                args.percent
                    .map(|percent| ("percent".to_owned(), json!(percent))),
            );
            body.extend(args.by.map(|by| ("by".to_owned(), json!(by))));
            let path = with_query(path.clone(), &query);
            send(client, Method::PUT, &path, Some(body.into()))
                .await
                .map_err(none_is_on)?
        }
    };
    if args.dry_run || args.json {
        return report(&answer, args.dry_run, args.json);
    }
    let now = send(client, Method::GET, &path, None).await?;
    say(false, &answer, || vec![share_of(&args.name, &now)])
}

/// A change of a canary that is not on, in words of the options.
fn none_is_on(error: ClientError) -> ClientError {
    match error {
        ClientError::Problem(mut problem)
            if problem
                .detail
                .as_deref()
                .is_some_and(|detail| detail.ends_with("has no canary: give its version")) =>
        {
            problem.detail = Some("no canary is on: give --file or --version".to_owned());
            ClientError::Problem(problem)
        }
        other => other,
    }
}

fn share_of(name: &str, canary: &Value) -> String {
    format!(
        "{name}@{}   canary for {} % by {}",
        output::short(text(&canary["version"])),
        canary["percent"].as_f64().unwrap_or_default(),
        output::printable(text(&canary["by"]))
    )
}

/// Arguments of `plugin shadow`.
#[derive(Debug, clap::Args)]
pub(super) struct Shadow {
    /// The plugin's name
    name: String,
    /// A component (.wasm), the first digits of a kept version's digest, "off", or "show"
    #[arg(value_name = "FILE|VERSION|off|show", default_value = "show")]
    subject: String,
    /// The part of the requests that is compared, from 0 to 1 [default: 1]
    #[arg(long, value_name = "PART", allow_negative_numbers = true,
          value_parser = |text: &str| within(text, 0.0, 1.0))]
    sample: Option<f64>,
    /// Also if the guard took the version back before
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `plugin shadow`.
pub(super) async fn shadow(client: &Client, args: Shadow) -> anyhow::Result<()> {
    let path = format!("/v1/plugins/{}/shadow", encode(&args.name));
    let query = [
        ("force", args.force.then(|| "true".to_owned())),
        ("sample", args.sample.map(|sample| sample.to_string())),
    ];
    let file = Path::new(&args.subject);
    let answer = match args.subject.as_str() {
        "show" => {
            let report = send(client, Method::GET, &path, None).await?;
            return say(args.json, &report, || lines_of(&args.name, &report));
        }
        "off" => {
            send(client, Method::DELETE, &path, None).await?;
            return say(args.json, &Value::Null, || {
                vec![format!("{}  the shadow is off", args.name)]
            });
        }
        _ if file.is_file() => push_to(client, &with_query(path, &query), file).await?,
        version => {
            anyhow::ensure!(
                !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{version}: no such file"
            );
            let body = json!({ "version": version });
            send(client, Method::PUT, &with_query(path, &query), Some(body)).await?
        }
    };
    say(args.json, &answer, || {
        let version = output::short(text(&answer["digest"]));
        vec![format!(
            "{}@{version}   compared from now on; `throwbar plugin shadow {} show` says what differs",
            args.name, args.name
        )]
    })
}

/// What a shadow found.
fn lines_of(name: &str, report: &Value) -> Vec<String> {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let errors = report["errors"].as_object();
    let errors: u64 = errors.map_or(0, |kinds| kinds.values().map(number).sum());
    let mut lines = vec![format!(
        "{name}@{}   {} of {} requests decided in another way, {errors} errors, {} dropped",
        output::short(text(&report["version"])),
        output::count(number(&report["differing"])),
        output::count(number(&report["compared"])),
        output::count(number(&report["dropped"]))
    )];
    for (field, count) in report["fields"].as_object().into_iter().flatten() {
        lines.push(format!("  {field}: {}", output::count(number(count))));
    }
    for key in super::super::kv::listed(&report["keys"], "")
        .iter()
        .take(20)
    {
        lines.push(format!(
            "  key {}: {}",
            output::printable(text(&key["key"])),
            output::count(number(&key["count"]))
        ));
        for part in super::super::kv::listed(&key["example"], "") {
            lines.push(format!(
                "    {}: {} -> {}",
                text(&part["field"]),
                output::printable(text(&part["active"])),
                output::printable(text(&part["candidate"]))
            ));
        }
    }
    lines
}

/// Makes a kept version the active one, or only checks it.
pub(super) async fn activate(
    client: &Client,
    name: &str,
    version: &str,
    (dry_run, force): (bool, bool),
) -> anyhow::Result<Value> {
    let flag = |set: bool| set.then(|| "true".to_owned());
    let path = with_query(
        format!("/v1/plugins/{}/activate", encode(name)),
        &[("dry_run", flag(dry_run)), ("force", flag(force))],
    );
    let body = json!({ "version": version });
    Ok(send(client, Method::POST, &path, Some(body)).await?)
}

/// Runs `plugin forget`.
pub(super) async fn forget(
    client: &Client,
    name: &str,
    version: &str,
    force: bool,
    json: bool,
) -> anyhow::Result<()> {
    let path = with_query(
        format!("/v1/plugins/{}/versions/{}", encode(name), encode(version)),
        &[("force", force.then(|| "true".to_owned()))],
    );
    let answer = send(client, Method::DELETE, &path, None).await?;
    say(json, &answer, || {
        vec![format!(
            "{name}@{}   forgotten",
            output::short(text(&answer["digest"]))
        )]
    })
}

/// Runs `plugin show`.
pub(super) async fn show(client: &Client, name: &str, json: bool) -> anyhow::Result<()> {
    let path = format!("/v1/plugins/{}", encode(name));
    let answer = send(client, Method::GET, &path, None).await?;
    let mut out = Out::stdout();
    if json {
        out.json(&answer)?;
        return out.flush();
    }
    table_of(std::slice::from_ref(&answer))?.print(&mut out)?;
    for version in super::super::kv::listed(&answer["versions"], "") {
        let shown = Version::deserialize(version)?;
        out.line(format_args!(
            "\n{}  {}",
            output::short(&shown.digest),
            shown.state()
        ))?;
        out.line(format_args!(
            "  pushed by {}, {} of memory, p50 {}, p99 {}",
            output::printable(text(&version["by"])),
            output::size(shown.memory_bytes),
            output::span(shown.decision_p50_ns),
            output::span(shown.decision_p99_ns)
        ))?;
        let kinds = version["errors_by_kind"].as_object().into_iter().flatten();
        let kinds: Vec<String> = kinds
            .filter(|(_, count)| count.as_u64() > Some(0))
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        if !kinds.is_empty() {
            out.line(format_args!("  errors: {}", kinds.join(", ")))?;
        }
        if let Some(failing) = version["failing"].as_object() {
            let [at, reason] = ["at", "reason"].map(|key| failing.get(key).map_or("", text));
            out.line(format_args!(
                "  taken back {at}: {}",
                output::printable(reason)
            ))?;
        }
    }
    if answer["shadow"].is_object() {
        out.line("")?;
        let report = send(client, Method::GET, &format!("{path}/shadow"), None).await?;
        for line in lines_of(name, &report) {
            out.line(line)?;
        }
    }
    out.flush()
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Value, ClientError> {
    let answer = match body {
        Some(body) => {
            let headers = [(header::CONTENT_TYPE, "application/json".to_owned())];
            let body = Full::new(Bytes::from(body.to_string()));
            client
                .send(method, path, &headers, body, Some(TIMEOUT))
                .await?
        }
        None => {
            client
                .send(method, path, &[], Empty::new(), Some(TIMEOUT))
                .await?
        }
    };
    if answer.body.is_empty() {
        return Ok(Value::Null);
    }
    answer.json().map_err(|error| client.broken(error))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// Prints an answer as JSON, or lines.
fn say(json: bool, answer: &Value, lines: impl FnOnce() -> Vec<String>) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    if json {
        out.json(answer)?;
    } else {
        for line in lines() {
            out.line(line)?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_is_told_with_its_fields_keys_and_examples() {
        let report = json!({
            "version": "ab".repeat(32), "compared": 1_000, "differing": 30, "dropped": 0,
            "errors": { "trap": 2, "deadline": 1 },
            "fields": { "target": 30 },
            "keys": [{ "key": "id1", "count": 30, "over": 0, "example": [
                { "field": "target", "active": "10.0.0.1:80", "candidate": "10.0.0.2:80" }
            ]}],
        });
        assert_eq!(
            lines_of("edge", &report),
            [
                "edge@abababababab   30 of 1,000 requests decided in another way, 3 errors, 0 dropped",
                "  target: 30",
                "  key id1: 30",
                "    target: 10.0.0.1:80 -> 10.0.0.2:80",
            ]
        );
    }
}
