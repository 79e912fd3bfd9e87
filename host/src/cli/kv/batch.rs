//! `throwbar kv batch`: sets, deletes, increments and renewals of a file, in any buckets, with conditions, all or none.

use super::source::Source;
use super::write::{condition, refused, report, unmet};
use super::{flag, segment};
use crate::admin::{check_batch, check_write};
use crate::cli::client::{Client, ClientError, with_query};
use crate::cli::number::revision;
use crate::cli::{Ended, Exit};
use http::{Method, header};
use http_body_util::Full;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

/// Write what a file says to any buckets, all or none, under one revision
///
/// Each line is one write, in this order: {"bucket":…,"key":…} with "value" (null deletes), "increment", or "ttl" (alone it
/// renews), and with "if_revision" if the key has to be as it was last written at that revision (0: must not exist). Empty
/// lines and those that begin with # are skipped. Or the file is one JSON object {"writes": {BUCKET: BATCH}}, as
/// POST /v1/batch takes it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar kv batch move.ndjson
  throwbar kv batch move.ndjson --dry-run
  throwbar kv batch move.ndjson --if-revision 12    only if nobody changed the bucket since
  make-writes | throwbar kv batch -

where move.ndjson is, for example:
  {\"bucket\": \"upstreams\", \"key\": \"id1\", \"value\": \"127.0.0.4\", \"if_revision\": 12}
  {\"bucket\": \"upstreams\", \"key\": \"id2\", \"value\": null}
  {\"bucket\": \"counters\", \"key\": \"moves\", \"increment\": 1}")]
pub(super) struct Args {
    /// The file, or - for standard input
    file: PathBuf,
    /// Only if the bucket, one for the whole file, was last changed at this revision, 0: if it holds no key
    #[arg(long, value_name = "REVISION", allow_negative_numbers = true, value_parser = revision)]
    if_revision: Option<u64>,
    /// Check only; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// What a file says.
#[derive(Debug, PartialEq)]
struct Batch {
    /// What is done to each bucket, as the admin API takes it.
    buckets: BTreeMap<String, Value>,
    /// Where writes are in a file of lines, by bucket and key.
    lines: HashMap<(String, String), Vec<usize>>,
}

/// Sends a file as one batch.
///
/// # Errors
/// If it cannot be read, is no batch, or is refused.
pub(super) async fn run(client: &Client, args: &Args) -> anyhow::Result<()> {
    let source = Source::open(&args.file)?;
    source.check_length("the most that is written all or none")?;
    let name = source.name.clone();
    let invalid = |problem: &str| Ended::error(Exit::ConfigInvalid, format!("{name}{problem}"));
    let text = String::from_utf8(source.whole()?).map_err(|_| invalid(": is not text in UTF-8"))?;
    let mut batch = Batch::read(&text).map_err(|problem| invalid(&problem))?;
    let shown: Vec<_> = batch.buckets.keys().map(String::as_str).collect();
    let shown = shown.join(", ");
    if args.if_revision.is_some() && batch.buckets.len() != 1 {
        let why = format!("--if-revision is that of one bucket, and {name} writes to {shown}");
        return Err(Ended::error(Exit::Usage, why));
    }
    let condition = condition(args.if_revision, false);
    let query = [("dry_run", flag(args.dry_run))];
    // A token may be good for one bucket only.
    let (path, body) = match batch.buckets.pop_first() {
        Some((bucket, writes)) if batch.buckets.is_empty() => {
            let bucket = segment("bucket", &bucket)?;
            (format!("/v1/kv/{bucket}/batch"), writes)
        }
        first => {
            batch.buckets.extend(first);
            ("/v1/batch".to_owned(), json!({ "writes": batch.buckets }))
        }
    };
    let mut headers = vec![(header::CONTENT_TYPE, "application/json".to_owned())];
    headers.extend(condition.clone());
    let (path, body) = (with_query(path, &query), Full::new(body.to_string().into()));
    let answer = client.upload_all(Method::POST, &path, &headers, body).await;
    let answer = answer.map_err(|error| {
        let place = format!("{name}{}", batch.place_of(&error));
        // A key has a condition of its own.
        let is_of_key = matches!(&error, ClientError::Problem(problem) if problem.key.is_some());
        let condition = condition.as_ref().filter(|_| !is_of_key);
        refused(&shown, unmet(&shown, condition, error)).context(place)
    })?;
    report(&shown, &answer.json()?, args.dry_run, args.json)
}

impl Batch {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong, after its place.
    fn read(text: &str) -> Result<Self, String> {
        let mut entries = text.lines().enumerate().filter(|(_, line)| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#')
        });
        let Some((_, first)) = entries.next() else {
            return Err(": has no write".to_owned());
        };
        let is_line = |value: Value| value.get("key").is_some() || value.get("bucket").is_some();
        match serde_json::from_str(first).is_ok_and(is_line) {
            true => Self::of_lines(text),
            false => Self::of_object(text),
        }
    }

    fn of_lines(text: &str) -> Result<Self, String> {
        let mut writes: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        let mut lines: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let (number, line) = (index + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (bucket, key, write) =
                write_of(line).map_err(|why| format!(", line {number}: {why}"))?;
            lines.entry((bucket.clone(), key)).or_default().push(number);
            writes.entry(bucket).or_default().push(write);
        }
        let batch = |(bucket, writes)| (bucket, json!({ "writes": writes }));
        Ok(Self {
            buckets: writes.into_iter().map(batch).collect(),
            lines,
        })
    }

    fn of_object(text: &str) -> Result<Self, String> {
        check_batch(text).map_err(|why| format!(": {why}"))?;
        let sent: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!(": {error}"))?;
        if sent.get("activate").is_some_and(|it| !it.is_null()) {
            return Err(
                ": has activate, expected writes alone: plugin push NAME COMPONENT --with FILE activates with them"
                    .to_owned(),
            );
        }
        let buckets = sent.get("writes").and_then(Value::as_object).cloned();
        let buckets: BTreeMap<_, _> = buckets.into_iter().flatten().collect();
        if buckets.is_empty() {
            return Err(": has no write".to_owned());
        }
        Ok(Self {
            buckets,
            lines: HashMap::new(),
        })
    }

    /// The lines that a refusal is about, if it says of which key it is.
    fn place_of(&self, error: &ClientError) -> String {
        let ClientError::Problem(problem) = error else {
            return String::new();
        };
        let at = problem.bucket.clone().zip(problem.key.clone());
        let lines = at.and_then(|at| self.lines.get(&at));
        let lines = lines.map(Vec::as_slice).unwrap_or_default();
        let numbers: Vec<_> = lines.iter().map(usize::to_string).collect();
        match lines {
            [] => String::new(),
            [line] => format!(", line {line}"),
            _ => format!(", lines {}", numbers.join(", ")),
        }
    }
}

/// The write of a line: its bucket, its key, and it as the admin API takes it.
fn write_of(line: &str) -> Result<(String, String, Value), String> {
    let mut write: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
        // It names the line, too, which is the only one that it knows of.
        let text = error.to_string();
        let what = text.rsplit_once(" at line ").map_or(&*text, |it| it.0);
        format!("{what} at column {}", error.column())
    })?;
    let bucket = match write.remove("bucket") {
        Some(Value::String(bucket)) => bucket,
        Some(other) => return Err(format!("bucket {other}: expected a name")),
        None => return Err("missing field `bucket`".to_owned()),
    };
    let write = Value::Object(write);
    let key = check_write(&write)?;
    Ok((bucket, key, write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_a_batch_of_each_bucket_in_order() {
        let text = "# moves\n{\"bucket\":\"b\",\"key\":\"k\",\"value\":null,\"if_revision\":3}\n\n\
                    {\"bucket\":\"a\",\"key\":\"n\",\"increment\":-2}\n{\"bucket\":\"b\",\"key\":\"k\",\"value\":\"v\"}";
        let batch = Batch::read(text).expect("a batch");
        let writes =
            json!([{"key": "k", "value": null, "if_revision": 3}, {"key": "k", "value": "v"}]);
        assert_eq!(batch.buckets["b"], json!({ "writes": writes }));
        assert_eq!(
            batch.buckets["a"],
            json!({ "writes": [{"key": "n", "increment": -2}] })
        );
        assert_eq!(batch.lines[&("b".to_owned(), "k".to_owned())], [2, 5]);
    }

    #[test]
    fn an_object_is_what_the_admin_api_takes() {
        let text = "{\n \"writes\": {\"a\": {\"set\": {\"k\": \"v\"}, \"replace\": true}}\n}";
        let batch = Batch::read(text).expect("a batch");
        let expected = json!({"set": {"k": "v"}, "replace": true});
        assert_eq!(batch.buckets["a"], expected);
        assert!(batch.lines.is_empty());
    }

    #[test]
    fn what_is_no_batch_is_told_with_its_line() {
        let good = "{\"bucket\":\"a\",\"key\":\"k\",\"value\":\"v\"}\n";
        for (text, expected) in [
            (format!("{good}x\n"), ", line 2: expected value at column 1"),
            (
                format!("{good}\n{{\"key\":\"k\",\"value\":\"v\"}}\n"),
                ", line 3: missing field `bucket`",
            ),
            (
                format!("{good}{{\"bucket\":1,\"key\":\"k\"}}\n"),
                ", line 2: bucket 1: expected",
            ),
            (
                format!("{good}{{\"bucket\":\"a\",\"key\":\"k\"}}\n"),
                ", line 2: missing field `value`",
            ),
            (
                format!("{good}{{\"bucket\":\"a\",\"value\":\"v\"}}\n"),
                ", line 2: missing field `key`",
            ),
            (
                "{\"bucket\":\"a\",\"key\":\"k\",\"valeu\":\"v\"}".to_owned(),
                ", line 1: unknown field `valeu`",
            ),
            (
                "{\n\"writes\": {\"a\": {\"sets\": {}}}\n}".to_owned(),
                ": bucket \"a\": unknown field `sets`",
            ),
            (
                "{\"writes\": {\"a\": {\"writes\": [{\"key\": \"k\"}]}}}".to_owned(),
                "key \"k\": missing field",
            ),
            ("{\"writes\": {}}".to_owned(), ": has no write"),
            ("# nothing\n".to_owned(), ": has no write"),
            (
                "{\"activate\": {\"plugin\": \"p\"}}".to_owned(),
                "plugin push NAME COMPONENT --with FILE",
            ),
        ] {
            let error = Batch::read(&text).expect_err("refused");
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
