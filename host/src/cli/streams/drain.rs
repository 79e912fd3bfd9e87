//! `throwbar streams drain`, `drains` and `cancel`.

use super::{Selector, duration};
use crate::cli::client::Client;
use crate::cli::number::whole;
use crate::cli::output::{self, Align, Out, Table};
use crate::cli::progress::Bar;
use crate::cli::{Ended, Exit};
use http::Method;
use http_body_util::Empty;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// Between two looks at a drain that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `streams drain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every condition given has to hold. A drain goes on without this command; it ends with the proxy.

Examples:
  throwbar streams drain --key id1 --over 30s
  throwbar streams drain --plugin by-header --version 9f2c11 --over 5m --wait
  throwbar streams drain --upstream 10.0.0.7:8080 --over 5m --reason \"moving house\"
  throwbar streams drain --all --over 10m --dry-run           how many would that be?")]
pub(super) struct Args {
    #[command(flatten)]
    selector: Selector,
    /// Every stream, in place of conditions
    #[arg(long)]
    all: bool,
    /// From the first close to the last, such as 30s or 5m; 0s: at once
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    over: String,
    /// The WebSocket close code
    #[arg(long, default_value_t = 1012, allow_negative_numbers = true, value_parser = whole::<u16>(1000, 4999))]
    code: u16,
    /// The reason told to both ends
    #[arg(long)]
    reason: Option<String>,
    /// Only count the streams that match
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Wait for the end
    #[arg(long)]
    wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How far a drain is, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Drain {
    id: u64,
    state: String,
    matched: u64,
    closed: u64,
    gone: u64,
    left: u64,
    over_ms: u64,
    code: u16,
    selector: Value,
    #[serde(default)]
    cause: String,
}

impl Drain {
    fn is_running(&self) -> bool {
        self.state == "running"
    }
}

/// Starts a drain, and waits for its end if asked to.
pub(super) async fn start(client: &Client, args: Args, out: &mut Out) -> anyhow::Result<()> {
    let mut body: Map<String, Value> = args
        .selector
        .pairs()
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
        .collect();
    if body.is_empty() && !args.all {
        let why = "nothing says which streams: give --key, --upstream, --route, --plugin, --version, --client, \
                   --older-than or --all";
        return Err(Ended::error(Exit::Usage, why));
    }
    if args.all {
        body.insert("all".to_owned(), true.into());
    }
    body.insert("over".to_owned(), args.over.clone().into());
    body.insert("code".to_owned(), args.code.into());
    body.insert("reason".to_owned(), args.reason.unwrap_or_default().into());
    body.insert("dry_run".to_owned(), args.dry_run.into());
    let answer = client
        .post_json("/v1/streams/drain", &Value::Object(body))
        .await?;
    if args.dry_run {
        let counted: Value = answer.json()?;
        if args.json {
            return out.json(&counted);
        }
        return out.line(format_args!(
            "{} would be closed",
            streams(counted["matched"].as_u64().unwrap_or_default())
        ));
    }
    let mut shown: Value = answer.json()?;
    let mut drain: Drain = answer.json()?;
    if args.wait {
        if drain.is_running() {
            output::aside(format_args!(
                "drain {}: closes {} over {}; it goes on without this command, `throwbar streams cancel {}` ends it",
                drain.id,
                streams(drain.matched),
                args.over,
                drain.id
            ));
        }
        let bar = Bar::new(drain.matched);
        while drain.is_running() {
            bar.at(drain.matched - drain.left);
            tokio::time::sleep(LOOK_EVERY).await;
            let path = format!("/v1/streams/drain/{}", drain.id);
            let answer = client.get(&path).await?;
            (shown, drain) = (answer.json()?, answer.json()?);
        }
    }
    if args.json {
        return out.json(&shown);
    }
    if !args.wait {
        return out.line(format_args!(
            "drain {}: closes {} over {}; `throwbar streams drains` shows how far it is",
            drain.id,
            streams(drain.matched),
            args.over
        ));
    }
    out.line(format_args!("{}", summary(&drain)))?;
    anyhow::ensure!(drain.state == "done", "drain {}: {}", drain.id, drain.state);
    Ok(())
}

/// Lists drains.
pub(super) async fn list(client: &Client, json: bool, out: &mut Out) -> anyhow::Result<()> {
    let answer: Value = client.get("/v1/streams/drain").await?.json()?;
    if json {
        return out.json(&answer);
    }
    let drains: Vec<Drain> = crate::cli::kv::listed(&answer, "drains")
        .iter()
        .map(Drain::deserialize)
        .collect::<Result<_, _>>()
        .map_err(|e| anyhow::anyhow!("the admin API's answer is not what was expected: {e}"))?;
    let mut table = Table::new(&[
        ("DRAIN", Align::Right),
        ("STATE", Align::Left),
        ("MATCHED", Align::Right),
        ("CLOSED", Align::Right),
        ("GONE", Align::Right),
        ("LEFT", Align::Right),
        ("OVER", Align::Right),
        ("CODE", Align::Right),
        ("CAUSE", Align::Left),
        ("SELECTOR", Align::Left),
    ]);
    for drain in drains {
        table.row([
            drain.id.to_string(),
            drain.state.clone(),
            drain.matched.to_string(),
            drain.closed.to_string(),
            drain.gone.to_string(),
            drain.left.to_string(),
            output::age(drain.over_ms / 1_000),
            drain.code.to_string(),
            drain.cause.clone(),
            conditions(&drain.selector),
        ]);
    }
    table.print(out)
}

/// Ends a drain.
pub(super) async fn cancel(client: &Client, id: u64, out: &mut Out) -> anyhow::Result<()> {
    let path = format!("/v1/streams/drain/{id}");
    let answer = client
        .send(Method::DELETE, &path, &[], Empty::new(), None)
        .await?;
    out.line(format_args!("{}", summary(&answer.json()?)))
}

fn streams(count: u64) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} stream{ending}")
}

fn summary(drain: &Drain) -> String {
    format!(
        "drain {}: {}, {} closed, {} had ended before, {} left",
        drain.id, drain.state, drain.closed, drain.gone, drain.left
    )
}

/// A selector in one line: `key=id1 older_than=4h`.
pub(in crate::cli) fn conditions(selector: &Value) -> String {
    let Some(fields) = selector.as_object() else {
        return selector.to_string();
    };
    let shown = fields.iter().map(|(name, value)| match value.as_str() {
        Some(digest) if name == "version" => format!("{name}={}", output::short(digest)),
        Some(text) => format!("{name}={text}"),
        None if *value == true => name.clone(),
        None => format!("{name}={value}"),
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_selector_is_shown_in_one_line() {
        let selector = json!({ "key": "id 1", "older_than": "4h" });
        assert_eq!(conditions(&selector), "key=id 1 older_than=4h");
        assert_eq!(conditions(&json!({ "all": true })), "all");
    }
}
