//! `throwbar kv history` and `undo`: what a key was, and back to it.

use super::import::show_changes;
use super::write::{refused, report};
use super::{flag, listed, path_of, segment, stale};
use crate::cli::client::{Client, with_query};
use crate::cli::number::revision;
use crate::cli::output::{Align, Out, Table};
use crate::cli::{Ended, Exit};
use http::{Method, header};
use http_body_util::Full;
use serde_json::{Value, json};

/// Arguments of `kv history`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar kv history upstreams id1
  throwbar kv history upstreams id1 --json")]
pub(super) struct HistoryArgs {
    /// The bucket, one with `history` in its config
    bucket: String,
    /// The key
    key: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `kv undo`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true),
          override_usage = "throwbar kv undo [OPTIONS] <BUCKET> <KEY|--revision <REVISION>>")]
#[command(after_help = "\
Examples:
  throwbar kv undo upstreams id1                  its last change; once more to have it again
  throwbar kv undo upstreams id1 --to 12          what it was at revision 12
  throwbar kv undo upstreams --revision 57 --diff show what undoing all of revision 57 would change
  throwbar kv undo upstreams --revision 57        undo it, such as a whole import")]
pub(super) struct UndoArgs {
    /// The bucket, one with `history` in its config
    bucket: String,
    /// The key
    #[arg(group = "what")]
    key: Option<String>,
    /// What it was at this revision, in place of before its last change
    #[arg(long, value_name = "REVISION", requires = "key", allow_negative_numbers = true, value_parser = revision)]
    to: Option<u64>,
    /// Only if the key was last written at this revision
    #[arg(long, value_name = "REVISION", requires = "key", allow_negative_numbers = true, value_parser = revision)]
    if_revision: Option<u64>,
    /// All keys that this revision changed, all or none
    #[arg(long, value_name = "REVISION", group = "what", allow_negative_numbers = true, value_parser = revision)]
    revision: Option<u64>,
    /// Of these, leave those as they are that were changed since
    #[arg(long, requires = "revision")]
    skip_changed: bool,
    /// Check only; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Show key by key what would be changed; change nothing
    #[arg(long)]
    diff: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// Prints what a key was.
///
/// # Errors
/// If the proxy cannot be reached or refuses.
pub(super) async fn history(client: &Client, args: &HistoryArgs) -> anyhow::Result<()> {
    let path = format!("{}?history=true", path_of(&args.bucket, &args.key)?);
    let read = stale::read(client, Some(&args.bucket), &path).await?;
    let mut answer: Value = read.json()?;
    let mut out = Out::stdout();
    if args.json {
        stale::put(read.staleness, &mut answer);
        out.json(&answer)?;
        return out.flush();
    }
    let mut table = Table::new(&[
        ("REVISION", Align::Right),
        ("TIME", Align::Left),
        ("BY", Align::Left),
        ("CHANGE", Align::Left),
        ("VALUE", Align::Left),
    ]);
    for row in listed(&answer, "history") {
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        let event = match row["undo"].as_bool() {
            Some(true) => format!("{} (undo)", text("event")),
            _ => text("event"),
        };
        let value = match &row["value"] {
            Value::Null => "-".to_owned(),
            Value::String(value) => value.clone(),
            _ => "(not text)".to_owned(),
        };
        table.row([
            row["revision"].to_string(),
            text("at"),
            text("by"),
            event,
            value,
        ]);
    }
    table.print(&mut out)?;
    out.flush()
}

/// Puts back what was.
///
/// # Errors
/// If the proxy cannot be reached or refuses: above all if it is not kept, or was changed meanwhile.
pub(super) async fn undo(client: &Client, args: &UndoArgs) -> anyhow::Result<()> {
    let body = match (&args.key, args.revision) {
        (Some(key), None) => {
            let mut body = json!({ "key": key });
            if let Some(to) = args.to {
                body["to"] = to.into();
            }
            body
        }
        (None, Some(revision)) => {
            json!({ "revision": revision, "skip_changed": args.skip_changed })
        }
        _ => {
            return Err(Ended::error(
                Exit::Usage,
                "expected either KEY or --revision",
            ));
        }
    };
    let dry_run = args.dry_run || args.diff;
    let path = with_query(
        format!("/v1/kv/{}/undo", segment("bucket", &args.bucket)?),
        &[("dry_run", flag(dry_run)), ("diff", flag(args.diff))],
    );
    let mut headers = vec![(header::CONTENT_TYPE, "application/json".to_owned())];
    headers.extend(super::write::condition(args.if_revision, false));
    let body = Full::new(body.to_string().into());
    let answer = client
        .send(Method::POST, &path, &headers, body, None)
        .await
        .map_err(|error| refused(&args.bucket, error))?;
    let answer: Value = answer.json()?;
    if args.diff && !args.json {
        show_changes(&answer)?;
    }
    report(&args.bucket, &answer, dry_run, args.json)
}
