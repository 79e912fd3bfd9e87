//! `throwbar kv`: read and change the buckets of the store, through the admin API.

mod batch;
mod chunks;
mod export;
mod file;
mod foreign;
mod format;
mod history;
mod import;
mod list;
mod parting;
mod source;
mod stale;
mod target;
mod watch;
mod write;

use super::client::{Client, Connect, encode};
use super::output::Out;
use super::{Ended, Exit, number};
use crate::config::decode::units;
use crate::config::diagnostic::shorten;
use crate::store::Position;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use serde_json::{Value, json};
use write::How;

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
    /// Print what plugins find by a key: the key of the entry, of which kind it is, and its value
    #[command(after_help = "\
Examples:
  throwbar kv lookup pages /api/v2/users
  throwbar kv lookup names app.example.com --json")]
    Lookup {
        /// The bucket
        bucket: String,
        /// What is looked up
        key: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set keys, all or none, under one revision
    #[command(after_help = "\
Examples:
  throwbar kv set upstreams id1=127.0.0.2
  throwbar kv set upstreams id1=127.0.0.2 id2=127.0.0.3:9000
  throwbar kv set upstreams id1=127.0.0.4 --if-revision 12    only if nobody changed it since
  throwbar kv set upstreams id1=127.0.0.2 --ttl 30s           gone after 30 s, unless renewed")]
    Set {
        /// The bucket
        bucket: String,
        /// Keys with their values; the first `=` ends the key
        #[arg(required = true, value_name = "KEY=VALUE")]
        pairs: Vec<String>,
        /// Only if the key was last written at this revision, 0: if it does not exist (one key only)
        #[arg(long, value_name = "REVISION", allow_negative_numbers = true, value_parser = number::revision)]
        if_revision: Option<u64>,
        /// Only if the key does not exist (one key only)
        #[arg(long, conflicts_with = "if_revision")]
        if_absent: bool,
        /// They end after this time, such as 30s, unless they are set or renewed again
        #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_ttl)]
        ttl: Option<String>,
        /// Check only; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete keys, all or none, under one revision
    #[command(after_help = "\
Examples:
  throwbar kv del upstreams id1 id2
  throwbar kv del upstreams id1 --if-revision 12    only if nobody changed it since")]
    Del {
        /// The bucket
        bucket: String,
        /// The keys
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// Only if the key was last written at this revision (one key only)
        #[arg(long, value_name = "REVISION", allow_negative_numbers = true, value_parser = number::written)]
        if_revision: Option<u64>,
        /// Check only; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Renew keys, all or none: they end that much later, and their values and revisions stay
    #[command(group = clap::ArgGroup::new("until").required(true), after_help = "\
Examples:
  throwbar kv touch upstreams id1 --ttl 30s
  throwbar kv touch upstreams id1 --forever    until it is deleted
  throwbar kv touch upstreams id1 --ttl 30s --if-revision 12    only if nobody changed it since")]
    Touch {
        /// The bucket
        bucket: String,
        /// The keys
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// They end after this time, such as 30s
        #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_ttl, group = "until")]
        ttl: Option<String>,
        /// They stay until they are deleted
        #[arg(long, group = "until")]
        forever: bool,
        /// Only if the key was last written at this revision (one key only)
        #[arg(long, value_name = "REVISION", allow_negative_numbers = true, value_parser = number::written)]
        if_revision: Option<u64>,
        /// Check only; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Add to the number under a key and print the sum; a key that is not there is 0
    #[command(after_help = "\
Examples:
  throwbar kv incr counters visits
  throwbar kv incr counters seats -5
  throwbar kv incr counters tries --ttl 1m    a new one ends after a minute
  throwbar kv incr counters seats -5 --dry-run    the sum it would be")]
    Incr {
        /// The bucket, one of bytes
        bucket: String,
        /// The key
        key: String,
        /// How much to add
        #[arg(default_value_t = 1, allow_negative_numbers = true, value_parser = number::signed)]
        by: i64,
        /// If this makes the entry, it ends after this time
        #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_ttl)]
        ttl: Option<String>,
        /// Only if the key was last written at this revision, 0: if it does not exist
        #[arg(long, value_name = "REVISION", allow_negative_numbers = true, value_parser = number::revision)]
        if_revision: Option<u64>,
        /// Only if the key does not exist
        #[arg(long, conflicts_with = "if_revision")]
        if_absent: bool,
        /// Print the sum it would be; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether a key is there: exit code 0 if it is, 1 if it is not
    #[command(after_help = "Example:\n  throwbar kv exists upstreams id1 && echo there")]
    Exists {
        /// The bucket
        bucket: String,
        /// The key
        key: String,
    },
    /// Print changes of a bucket as they happen, and go on where it was when the proxy restarts
    #[command(after_help = "\
Examples:
  throwbar kv watch upstreams
  throwbar kv watch upstreams --prefix eu- --json
  throwbar kv watch upstreams --since 12    what was changed after revision 12, too")]
    Watch {
        /// The bucket
        bucket: String,
        /// Only keys that begin so
        #[arg(long)]
        prefix: Option<String>,
        /// Begin after this revision, or after the id of an event
        #[arg(long, value_name = "REVISION", allow_hyphen_values = true, value_parser = parse_since)]
        since: Option<String>,
        /// End after so many revisions
        #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number::whole::<u64>(1, u64::MAX))]
        count: Option<u64>,
        /// Print a line of JSON for each revision
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
        #[arg(long, default_value_t = 1_000, requires = "bucket", allow_negative_numbers = true,
              value_parser = number::whole::<u64>(1, u64::MAX))]
        limit: u64,
        /// Only keys after those of a page before: what `--json` printed as `cursor`
        #[arg(long, requires = "bucket")]
        cursor: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the last values of a key, with the time and who wrote them
    History(history::HistoryArgs),
    /// Make a key, or all that one revision changed, what was before
    Undo(history::UndoArgs),
    Batch(batch::Args),
    Import(import::Args),
    Export(export::Args),
    Backup(file::BackupArgs),
    Compact(file::CompactArgs),
    Check(file::CheckArgs),
}

fn parse_ttl(text: &str) -> Result<String, String> {
    units::ttl(text).map(|_| text.to_owned())
}

/// Where a watch begins, for the proxy to read.
fn parse_since(text: &str) -> Result<String, String> {
    let place: Result<Position, String> = text.parse();
    place.map(|_| text.to_owned()).map_err(|_| {
        "expected a revision as `kv ls` shows it, or the `id` of an event as `kv watch --json` prints it"
            .to_owned()
    })
}

/// Keys with their values, as they are given.
fn parse_pairs(texts: &[String]) -> Result<Vec<(String, String)>, String> {
    let pair = |(at, text): (usize, &String)| match text.split_once('=') {
        Some(("", _)) => Err(format!("{text:?}: the key is empty: expected KEY=VALUE")),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(match texts.get(at + 1) {
            Some(value) => format!(
                "{text:?}: expected KEY=VALUE; did you mean {text}={}",
                shorten(value)
            ),
            None => format!("{text:?}: expected KEY=VALUE"),
        }),
    };
    texts.iter().enumerate().map(pair).collect()
}

/// Runs the command.
///
/// # Errors
/// If the proxy cannot be reached or refuses.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    // This one needs no proxy.
    if let Command::Check(args) = &args.command {
        return file::check(args);
    }
    let client = args.connect.client()?;
    match args.command {
        Command::Get { bucket, key, json } => get(&client, &bucket, &key, json).await,
        Command::Lookup { bucket, key, json } => list::found(&client, &bucket, &key, json).await,
        Command::Set {
            bucket,
            pairs,
            if_revision,
            if_absent,
            ttl,
            dry_run,
            json,
        } => {
            let condition = write::condition(if_revision, if_absent);
            let how = How { dry_run, json };
            let pairs = parse_pairs(&pairs).map_err(|why| Ended::error(Exit::Usage, why))?;
            write::set(&client, &bucket, pairs, condition, ttl, how).await
        }
        Command::Del {
            bucket,
            keys,
            if_revision,
            dry_run,
            json,
        } => {
            let condition = write::condition(if_revision, false);
            write::delete(&client, &bucket, keys, condition, How { dry_run, json }).await
        }
        Command::Touch {
            bucket,
            keys,
            ttl,
            forever: _,
            if_revision,
            dry_run,
            json,
        } => {
            let condition = write::condition(if_revision, false);
            let how = How { dry_run, json };
            write::touch(&client, &bucket, keys, ttl, condition, how).await
        }
        Command::Incr {
            bucket,
            key,
            by,
            ttl,
            if_revision,
            if_absent,
            dry_run,
            json,
        } => {
            let condition = write::condition(if_revision, if_absent);
            let how = How { dry_run, json };
            write::increment(&client, &bucket, &key, (by, ttl), condition, how).await
        }
        Command::Exists { bucket, key } => exists(&client, &bucket, &key).await,
        Command::Watch {
            bucket,
            prefix,
            since,
            count,
            json,
        } => watch::run(&client, &bucket, prefix, since, count, json).await,
        Command::Ls {
            bucket: None, json, ..
        } => list::buckets(&client, json).await,
        Command::Ls {
            bucket: Some(bucket),
            prefix,
            limit,
            cursor,
            json,
        } => list::keys(&client, &bucket, prefix, (cursor, limit), json).await,
        Command::History(args) => history::history(&client, &args).await,
        Command::Undo(args) => history::undo(&client, &args).await,
        Command::Batch(args) => batch::run(&client, &args).await,
        Command::Import(args) => import::run(&client, &args).await,
        Command::Export(args) => export::run(&client, &args).await,
        Command::Backup(args) => file::backup(&client, &args).await,
        Command::Compact(args) => file::compact(&client, &args).await,
        Command::Check(args) => file::check(&args),
    }
}

async fn get(client: &Client, bucket: &str, key: &str, json: bool) -> anyhow::Result<()> {
    let answer = stale::read(client, Some(bucket), &path_of(bucket, key)?).await?;
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
        let mut entry = json!({ "key": key, "value": value, "revision": revision });
        if let Some(expires_at) = answer.expires_at {
            entry["expires_at"] = expires_at.into();
        }
        stale::put(answer.staleness, &mut entry);
        out.json(&entry)?;
    } else {
        out.bytes(&answer.body)?;
        // A value is bytes: a newline is for people, and for shells that strip it again.
        if !answer.body.ends_with(b"\n") {
            out.bytes(b"\n")?;
        }
    }
    out.flush()
}

/// Ends with an error if the key is not there; says nothing else but how old what it read is, if that is much.
async fn exists(client: &Client, bucket: &str, key: &str) -> anyhow::Result<()> {
    match stale::read(client, Some(bucket), &path_of(bucket, key)?).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The items of a list answer: the array itself, or the one under `name`.
pub(super) fn listed<'v>(answer: &'v Value, name: &str) -> &'v [Value] {
    answer
        .as_array()
        .or_else(|| answer[name].as_array())
        .map_or(&[], Vec::as_slice)
}

/// A value of an answer: its text, a typed record as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        typed if typed["addresses"].is_array() => typed.to_string(),
        _ => "(not text)".to_owned(),
    }
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
        let parsed = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|text| String::from(*text)).collect();
            parse_pairs(&texts)
        };
        let expected = vec![("a".into(), "b=c".into()), ("a".into(), String::new())];
        assert_eq!(parsed(&["a=b=c", "a="]), Ok(expected));
        assert!(parsed(&["=b"]).is_err_and(|why| why.contains("empty")));
        assert!(parsed(&["a=b", "ab"]).is_err_and(|why| why == "\"ab\": expected KEY=VALUE"));
        let two = parsed(&["id1", "127.0.0.3"]);
        assert!(two.is_err_and(|why| why.ends_with("did you mean id1=127.0.0.3")));
    }

    #[test]
    fn paths_escape_bucket_and_key() {
        assert_eq!(path_of("b", "a/b").expect("a path"), "/v1/kv/b/a%2Fb");
        assert!(path_of("b", "").is_err());
    }
}
