//! `throwbar kv`: read and change the buckets of the store, through the admin API.

mod export;
mod foreign;
mod format;
mod import;
mod list;

use super::client::{Client, ClientError, Connect, encode, with_query};
use super::output::{self, Out};
use super::{Ended, Exit};
use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use export::Format;
use http::{HeaderName, Method, header};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `kv`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar kv ls upstreams
  throwbar kv set upstreams id1=127.0.0.2 id2=127.0.0.3
  throwbar kv export upstreams > map.txt")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the value of a key
    #[command(after_help = "Example:\n  throwbar kv get upstreams id1")]
    Get {
        /// The bucket
        bucket: String,
        /// The key
        key: String,
        /// Print key, value and revision as JSON
        #[arg(long)]
        json: bool,
    },
    /// Set keys, all or none, under one revision
    #[command(after_help = "\
Examples:
  throwbar kv set upstreams id1=127.0.0.2
  throwbar kv set upstreams id1=127.0.0.2 id2=127.0.0.3:9000
  throwbar kv set upstreams id1=127.0.0.4 --if-revision 12    only if nobody changed it since")]
    Set {
        /// The bucket
        bucket: String,
        /// Keys with their values; the first `=` ends the key
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse_pair)]
        pairs: Vec<(String, String)>,
        /// Only if the key was last written at this revision (one key only)
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<u64>,
        /// Only if the key does not exist (one key only)
        #[arg(long, conflicts_with = "if_revision")]
        if_absent: bool,
        /// Check only; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete keys, all or none, under one revision
    #[command(after_help = "Example:\n  throwbar kv del upstreams id1 id2")]
    Del {
        /// The bucket
        bucket: String,
        /// The keys
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// Check only; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the keys of a bucket; without one, the buckets
    #[command(after_help = "\
Examples:
  throwbar kv ls
  throwbar kv ls upstreams --prefix eu- --limit 20
  throwbar kv ls upstreams --json")]
    Ls {
        /// The bucket
        bucket: Option<String>,
        /// Only keys that begin so
        #[arg(long, requires = "bucket")]
        prefix: Option<String>,
        /// At most so many keys
        #[arg(long, default_value_t = 1_000, requires = "bucket", value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Import(import::Args),
    /// Write a whole bucket, as of one revision, to standard output or a file
    #[command(after_help = "\
Examples:
  throwbar kv export upstreams > map.txt
  throwbar kv export upstreams map.json --format json")]
    Export {
        /// The bucket
        bucket: String,
        /// The file; standard output without one
        file: Option<PathBuf>,
        /// The format
        #[arg(long, value_enum, default_value_t = Format::Lines)]
        format: Format,
    },
}

/// What a batch did.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Committed {
    revision: u64,
    created: u64,
    updated: u64,
    deleted: u64,
    unchanged: u64,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the key is empty: expected KEY=VALUE".to_owned()),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// If the proxy cannot be reached or refuses.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.connect.client()?;
    match args.command {
        Command::Get { bucket, key, json } => get(&client, &bucket, &key, json).await,
        Command::Set {
            bucket,
            pairs,
            if_revision,
            if_absent,
            dry_run,
            json,
        } => {
            let condition = match (if_revision, if_absent) {
                (Some(revision), _) => Some((header::IF_MATCH, format!("\"{revision}\""))),
                (None, true) => Some((header::IF_NONE_MATCH, "*".to_owned())),
                (None, false) => None,
            };
            match condition {
                Some(condition) => {
                    set_one(&client, &bucket, &pairs, condition, dry_run, json).await
                }
                None => {
                    let set: serde_json::Map<String, Value> =
                        pairs.into_iter().map(|(k, v)| (k, v.into())).collect();
                    let body = json!({ "set": set });
                    batch(&client, &bucket, &body, dry_run, json).await
                }
            }
        }
        Command::Del {
            bucket,
            keys,
            dry_run,
            json,
        } => batch(&client, &bucket, &json!({ "delete": keys }), dry_run, json).await,
        Command::Ls {
            bucket: None, json, ..
        } => list::buckets(&client, json).await,
        Command::Ls {
            bucket: Some(bucket),
            prefix,
            limit,
            json,
        } => list::keys(&client, &bucket, prefix, limit, json).await,
        Command::Import(args) => import::run(&client, &args).await,
        Command::Export {
            bucket,
            file,
            format,
        } => export::run(&client, &bucket, file.as_deref(), format).await,
    }
}

async fn get(client: &Client, bucket: &str, key: &str, json: bool) -> anyhow::Result<()> {
    let answer = client.get(&path_of(bucket, key)?).await?;
    let mut out = Out::stdout();
    if json {
        let revision = answer
            .etag
            .as_deref()
            .and_then(|tag| tag.parse::<u64>().ok());
        let value = match std::str::from_utf8(&answer.body) {
            Ok(text) => Value::from(text),
            Err(_) => json!({ "base64": STANDARD.encode(&answer.body) }),
        };
        out.json(&json!({ "key": key, "value": value, "revision": revision }))?;
    } else {
        out.bytes(&answer.body)?;
        // A value is bytes: a newline is for people, and for shells that strip it again.
        if !answer.body.ends_with(b"\n") {
            out.bytes(b"\n")?;
        }
    }
    out.flush()
}

async fn set_one(
    client: &Client,
    bucket: &str,
    pairs: &[(String, String)],
    condition: (HeaderName, String),
    dry_run: bool,
    json: bool,
) -> anyhow::Result<()> {
    let [(key, value)] = pairs else {
        return Err(Ended::error(
            Exit::Usage,
            "--if-revision and --if-absent need exactly one KEY=VALUE",
        ));
    };
    let path = with_query(path_of(bucket, key)?, &[("dry_run", flag(dry_run))]);
    let body = Full::new(value.clone().into());
    let answer = client
        .send(Method::PUT, &path, &[condition], body, None)
        .await
        .map_err(refused)?;
    let mut out = Out::stdout();
    let revision = answer.etag.unwrap_or_default();
    if json {
        out.json(&json!({ "key": key, "revision": revision.parse::<u64>().ok() }))?;
    } else if dry_run {
        out.line(format_args!("{bucket}: would be set; nothing changed"))?;
    } else {
        out.line(format_args!(
            "{bucket}: {} set   revision {revision}",
            output::printable(key)
        ))?;
    }
    out.flush()
}

async fn batch(
    client: &Client,
    bucket: &str,
    body: &Value,
    dry_run: bool,
    json: bool,
) -> anyhow::Result<()> {
    let path = with_query(
        format!("/v1/kv/{}/batch", segment("bucket", bucket)?),
        &[("dry_run", flag(dry_run))],
    );
    let answer = client.post_json(&path, body).await.map_err(refused)?;
    report(bucket, &answer.json()?, dry_run, json)
}

/// An error of a write with its exit code: a value the bucket cannot hold is not a failure to reach anybody.
fn refused(error: ClientError) -> anyhow::Error {
    match error {
        ClientError::Problem(problem) if problem.status == 422 => {
            Ended::error(Exit::ConfigInvalid, problem.to_string())
        }
        other => other.into(),
    }
}

/// Says what a batch did.
fn report(bucket: &str, answer: &Value, dry_run: bool, json: bool) -> anyhow::Result<()> {
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
        (done.deleted, "deleted"),
        (done.unchanged, "as before"),
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
        format!("{bucket}: would be {what}; nothing changed")
    } else {
        format!("{bucket}: {what}   revision {}", done.revision)
    }
}

/// The items of a list answer: the array itself, or the one under `name`.
pub(super) fn listed<'v>(answer: &'v Value, name: &str) -> &'v [Value] {
    answer
        .as_array()
        .or_else(|| answer[name].as_array())
        .map_or(&[], Vec::as_slice)
}

fn path_of(bucket: &str, key: &str) -> anyhow::Result<String> {
    Ok(format!(
        "/v1/kv/{}/{}",
        segment("bucket", bucket)?,
        segment("key", key)?
    ))
}

fn segment(what: &str, text: &str) -> anyhow::Result<String> {
    if text.is_empty() {
        return Err(Ended::error(Exit::Usage, format!("the {what} is empty")));
    }
    Ok(encode(text))
}

fn flag(on: bool) -> Option<String> {
    on.then(|| "true".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_split_at_its_first_equals_sign() {
        assert_eq!(parse_pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_pair("a="), Ok(("a".into(), String::new())));
        assert!(parse_pair("=b").is_err());
        assert!(parse_pair("ab").is_err());
    }

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
        let exit = |status| crate::cli::exit_of(&refused(problem(status)));
        assert_eq!(exit(422), Exit::ConfigInvalid);
        assert_eq!(exit(412), Exit::Failed);
        assert_eq!(exit(404), Exit::Failed);
    }

    #[test]
    fn paths_escape_bucket_and_key() {
        assert_eq!(path_of("b", "a/b").expect("a path"), "/v1/kv/b/a%2Fb");
        assert!(path_of("b", "").is_err());
    }
}
