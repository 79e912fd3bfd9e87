//! `throwbar kv`: read and change the buckets of the store, through the admin API.

use super::client::{Client, ClientError, Connect, encode, with_query};
use super::output::{self, Align, Out, Table};
use super::{Ended, Exit};
use anyhow::Context;
use clap::Subcommand;
use http::{HeaderName, Method, header};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Keys asked for at a time.
const PAGE: u64 = 1_000;
/// The longest import and the longest line of an export.
const IMPORT_BYTES_MAX: u64 = 256 << 20;
const LINE_BYTES_MAX: usize = 8 << 20;

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
        #[arg(long, default_value_t = 1_000, requires = "bucket")]
        limit: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a whole file into a bucket, all or none, under one revision
    ///
    /// The format is found by itself: lines `KEY VALUE` (`#` begins a comment line), lines of JSON
    /// {"key":…,"value":…}, or one JSON object {"KEY":"VALUE",…}.
    #[command(after_help = "\
Examples:
  throwbar kv import upstreams map.txt
  throwbar kv import upstreams map.txt --replace     the file becomes the whole bucket
  generate-map | throwbar kv import upstreams -")]
    Import {
        /// The bucket
        bucket: String,
        /// The file, or - for standard input
        file: PathBuf,
        /// Delete the keys that the file does not have
        #[arg(long)]
        replace: bool,
        /// Check only; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
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

/// Formats of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Lines `KEY VALUE`
    Lines,
    /// One JSON object {"KEY":"VALUE",…}
    Json,
    /// A line of JSON for each key, with its revision
    Ndjson,
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

/// A page of keys.
#[derive(Debug, Deserialize)]
struct Page {
    revision: u64,
    entries: Vec<Value>,
    cursor: Option<String>,
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
        } => buckets(&client, json).await,
        Command::Ls {
            bucket: Some(bucket),
            prefix,
            limit,
            json,
        } => list(&client, &bucket, prefix, limit, json).await,
        Command::Import {
            bucket,
            file,
            replace,
            dry_run,
            json,
        } => import(&client, &bucket, &file, replace, dry_run, json).await,
        Command::Export {
            bucket,
            file,
            format,
        } => export(&client, &bucket, file.as_deref(), format).await,
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
        let value = String::from_utf8_lossy(&answer.body);
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
        return Err(Ended::new(
            Exit::Usage,
            "--if-revision and --if-absent need exactly one KEY=VALUE",
        ));
    };
    let path = with_query(path_of(bucket, key)?, &[("dry_run", flag(dry_run))]);
    let body = Full::new(value.clone().into());
    let answer = client
        .send(Method::PUT, &path, &[condition], body, None)
        .await?;
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
    let answer = client.post_json(&path, body).await?;
    report(bucket, &answer.json()?, dry_run, json)
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
        format!(
            "{bucket}: {what}   revision {}   0 streams closed",
            done.revision
        )
    }
}

async fn buckets(client: &Client, json: bool) -> anyhow::Result<()> {
    let answer: Value = client.get("/v1/kv").await?.json()?;
    let mut out = Out::stdout();
    if json {
        out.json(&answer)?;
        return out.flush();
    }
    let mut table = Table::new(&[
        ("BUCKET", Align::Left),
        ("KEYS", Align::Right),
        ("SIZE", Align::Right),
        ("REVISION", Align::Right),
        ("BACKEND", Align::Left),
        ("VALUES", Align::Left),
    ]);
    for bucket in listed(&answer, "buckets") {
        let text = |name: &str| bucket[name].as_str().unwrap_or("-").to_owned();
        let number = |name: &str| bucket[name].as_u64();
        table.row([
            text("name"),
            number("keys").map_or("-".into(), output::count),
            number("bytes").map_or("-".into(), output::size),
            number("revision").map_or("-".into(), |n| n.to_string()),
            text("backend"),
            text("values"),
        ]);
    }
    table.print(&mut out)?;
    out.flush()
}

/// The items of a list answer: the array itself, or the one under `name`.
pub(super) fn listed<'v>(answer: &'v Value, name: &str) -> &'v [Value] {
    answer
        .as_array()
        .or_else(|| answer[name].as_array())
        .map_or(&[], Vec::as_slice)
}

async fn list(
    client: &Client,
    bucket: &str,
    prefix: Option<String>,
    limit: u64,
    json: bool,
) -> anyhow::Result<()> {
    let base = format!("/v1/kv/{}", segment("bucket", bucket)?);
    let mut entries: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    let mut revision = 0;
    while (entries.len() as u64) < limit {
        let wanted = (limit - entries.len() as u64).min(PAGE);
        let path = with_query(
            base.clone(),
            &[
                ("prefix", prefix.clone()),
                ("limit", Some(wanted.to_string())),
                ("cursor", cursor.take()),
            ],
        );
        let page: Page = client.get(&path).await?.json()?;
        revision = page.revision;
        entries.extend(page.entries);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    let mut out = Out::stdout();
    if json {
        out.json(&json!({ "revision": revision, "entries": entries, "cursor": cursor }))?;
        return out.flush();
    }
    let mut table = Table::new(&[
        ("KEY", Align::Left),
        ("VALUE", Align::Left),
        ("REVISION", Align::Right),
    ]);
    for entry in &entries {
        table.row([
            entry["key"].as_str().unwrap_or_default().to_owned(),
            entry["value"].as_str().unwrap_or("(not text)").to_owned(),
            entry["revision"].to_string(),
        ]);
    }
    table.print(&mut out)?;
    out.flush()?;
    if cursor.is_some() {
        eprintln!(
            "… more keys follow: the limit of {} is reached, --limit raises it",
            output::count(limit)
        );
    }
    Ok(())
}

async fn import(
    client: &Client,
    bucket: &str,
    file: &Path,
    replace: bool,
    dry_run: bool,
    json: bool,
) -> anyhow::Result<()> {
    let (text, name) = read(file)?;
    let (content_type, body) = body_of(text).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
    let path = with_query(
        format!("/v1/kv/{}/import", segment("bucket", bucket)?),
        &[("replace", flag(replace)), ("dry_run", flag(dry_run))],
    );
    let answer = client
        .upload(Method::POST, &path, content_type, body, "writing")
        .await
        .map_err(|error| match error {
            ClientError::Problem(problem) if problem.status == 422 => Ended::new(
                Exit::ConfigInvalid,
                format!("{name}: {problem}\n  nothing was imported"),
            ),
            other => other.into(),
        })?;
    report(bucket, &answer.json()?, dry_run, json)
}

/// Reads a file or standard input to its end.
fn read(file: &Path) -> anyhow::Result<(Vec<u8>, String)> {
    let mut text = Vec::new();
    let (name, mut reader): (String, Box<dyn Read>) = if file == Path::new("-") {
        ("standard input".to_owned(), Box::new(std::io::stdin()))
    } else {
        let name = file.display().to_string();
        let open = std::fs::File::open(file).with_context(|| name.clone())?;
        (name, Box::new(open))
    };
    reader
        .by_ref()
        .take(IMPORT_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .with_context(|| name.clone())?;
    anyhow::ensure!(
        text.len() as u64 <= IMPORT_BYTES_MAX,
        "{name}: is larger than {}, the most that one import takes",
        output::size(IMPORT_BYTES_MAX)
    );
    Ok((text, name))
}

/// What a file to import is, found from its first characters; an object of keys is made into lines of JSON.
fn body_of(text: Vec<u8>) -> Result<(&'static str, Vec<u8>), String> {
    const NDJSON: &str = "application/x-ndjson";
    let start = text.iter().position(|b| !b.is_ascii_whitespace());
    match start.map(|at| text[at]) {
        Some(b'{') => {}
        Some(b'[') => {
            return Err(
                "is a JSON array: expected lines `KEY VALUE`, lines of JSON \
                {\"key\":…,\"value\":…}, or one JSON object {\"KEY\":\"VALUE\"}"
                    .to_owned(),
            );
        }
        _ => return Ok(("text/plain", text)),
    }
    let first_line = text[start.unwrap_or_default()..]
        .split(|b| *b == b'\n')
        .next()
        .unwrap_or_default();
    let is_entry = serde_json::from_slice::<Value>(first_line)
        .is_ok_and(|value| value.get("key").is_some() && value.get("value").is_some());
    if is_entry {
        return Ok((NDJSON, text));
    }
    let map: serde_json::Map<String, Value> = serde_json::from_slice(&text).map_err(|e| {
        format!("is neither lines of JSON {{\"key\":…,\"value\":…}} nor one JSON object: {e}")
    })?;
    let mut lines = Vec::with_capacity(text.len() + map.len() * 16);
    for (key, value) in &map {
        if !value.is_string() {
            return Err(format!("key {key:?}: its value is no string: {value}"));
        }
        let line = json!({ "key": key, "value": value });
        lines.extend_from_slice(line.to_string().as_bytes());
        lines.push(b'\n');
    }
    Ok((NDJSON, lines))
}

async fn export(
    client: &Client,
    bucket: &str,
    file: Option<&Path>,
    format: Format,
) -> anyhow::Result<()> {
    let path = format!("/v1/kv/{}?format=ndjson", segment("bucket", bucket)?);
    let mut body = client.stream(&path).await?.into_body();
    // A file appears under its name only when it is whole: an export that breaks off leaves the old one.
    let mut target = match file {
        None => None,
        Some(file) => {
            let dir = match file.parent() {
                Some(dir) if !dir.as_os_str().is_empty() => dir,
                _ => Path::new("."),
            };
            let kept = tempfile::NamedTempFile::new_in(dir)
                .with_context(|| format!("{}", file.display()))?;
            Some((file, kept))
        }
    };
    let mut out = match &mut target {
        None => Out::stdout(),
        Some((file, kept)) => Out::to(
            kept.reopen()
                .with_context(|| format!("{}", file.display()))?,
        ),
    };
    let mut writer = Exporter::new(format);
    writer.begin(&mut out)?;
    let mut pending: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| client.broken(e))?.into_data() else {
            continue;
        };
        pending.extend_from_slice(&data);
        let mut from = 0;
        while let Some(length) = memchr::memchr(b'\n', &pending[from..]) {
            writer.entry(&pending[from..from + length], &mut out)?;
            from += length + 1;
        }
        pending.drain(..from);
        anyhow::ensure!(
            pending.len() <= LINE_BYTES_MAX,
            "the export has a line of more than {}",
            output::size(LINE_BYTES_MAX as u64)
        );
    }
    if !pending.is_empty() {
        writer.entry(&pending, &mut out)?;
    }
    writer.end(&mut out)?;
    out.flush()?;
    if let Some((file, kept)) = target {
        kept.persist(file)
            .with_context(|| format!("{}", file.display()))?;
        eprintln!(
            "{}: {} written to {}",
            bucket,
            output::counted(writer.written, "key"),
            file.display()
        );
    }
    Ok(())
}

/// Turns the lines of an export into a format.
struct Exporter {
    format: Format,
    written: u64,
}

#[derive(Deserialize)]
struct ExportedEntry {
    key: String,
    value: Value,
}

impl Exporter {
    fn new(format: Format) -> Self {
        Self { format, written: 0 }
    }

    fn begin(&mut self, out: &mut Out) -> anyhow::Result<()> {
        match self.format {
            Format::Json => out.bytes(b"{"),
            Format::Lines | Format::Ndjson => Ok(()),
        }
    }

    fn entry(&mut self, line: &[u8], out: &mut Out) -> anyhow::Result<()> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        match self.format {
            Format::Ndjson => {
                out.bytes(line)?;
                out.bytes(b"\n")?;
            }
            Format::Lines | Format::Json => {
                let entry: ExportedEntry =
                    serde_json::from_slice(line).context("a line of the export")?;
                let Some(value) = entry.value.as_str() else {
                    anyhow::bail!(
                        "key {:?}: its value is no text: use --format ndjson",
                        entry.key
                    );
                };
                if self.format == Format::Lines {
                    out.line(line_of(&entry.key, value)?)?;
                } else {
                    let comma = if self.written > 0 { "," } else { "" };
                    out.bytes(
                        format!("{comma}\n  {}: {}", json!(entry.key), json!(value)).as_bytes(),
                    )?;
                }
            }
        }
        self.written += 1;
        Ok(())
    }

    fn end(&mut self, out: &mut Out) -> anyhow::Result<()> {
        match self.format {
            Format::Json => out.bytes(b"\n}\n"),
            Format::Lines | Format::Ndjson => Ok(()),
        }
    }
}

/// A line that an import reads back as the same key and value.
fn line_of(key: &str, value: &str) -> anyhow::Result<String> {
    let fits = !key.contains(char::is_whitespace)
        && !key.starts_with('#')
        && !key.starts_with('{')
        && !key.starts_with('[')
        && !value.is_empty()
        && value == value.trim()
        && !value.contains(['\n', '\r']);
    anyhow::ensure!(
        fits,
        "key {key:?}: it or its value cannot be written as a line `KEY VALUE`: use --format json"
    );
    Ok(format!("{key} {value}"))
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
        return Err(Ended::new(Exit::Usage, format!("the {what} is empty")));
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
    fn the_format_of_an_import_is_found_from_its_beginning() {
        let kind = |text: &str| body_of(text.into()).map(|(kind, _)| kind);
        assert_eq!(kind("# map\nid1 127.0.0.2\n"), Ok("text/plain"));
        assert_eq!(kind(""), Ok("text/plain"));
        assert_eq!(
            kind("{\"key\":\"a\",\"value\":\"b\"}\n{\"key\":\"c\",\"value\":\"d\"}\n"),
            Ok("application/x-ndjson")
        );
        assert!(kind("[1]").is_err_and(|e| e.contains("array")));
        assert!(kind("{\"a\": 1}").is_err_and(|e| e.contains("\"a\"")));
        assert!(kind("{oops").is_err());
    }

    #[test]
    fn one_object_of_keys_is_sent_as_lines() {
        let text = "\n{\n  \"id1\": \"127.0.0.2\",\n  \"id2\": \"h:9\"\n}";
        let (kind, body) = body_of(text.into()).expect("a map");
        assert_eq!(kind, "application/x-ndjson");
        let lines: Vec<Value> = body
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], json!({"key": "id1", "value": "127.0.0.2"}));
    }

    #[test]
    fn a_map_whose_first_key_is_named_key_is_still_a_map() {
        let (_, body) = body_of(b"{\"key\": \"10.0.0.1\"}".to_vec()).expect("a map");
        let line: Value = serde_json::from_slice(&body).expect("one line");
        assert_eq!(line, json!({"key": "key", "value": "10.0.0.1"}));
    }

    #[test]
    fn an_export_gives_each_format() {
        let lines: [&[u8]; 2] = [
            br#"{"key":"a","value":"10.0.0.1","revision":3}"#,
            br#"{"key":"b","value":"h:1","revision":4}"#,
        ];
        let render = |format| {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let mut out = Out::to(file.reopen().expect("open"));
            let mut exporter = Exporter::new(format);
            exporter.begin(&mut out).expect("begin");
            for line in lines {
                exporter.entry(line, &mut out).expect("an entry");
            }
            exporter.end(&mut out).expect("end");
            out.flush().expect("flush");
            std::fs::read_to_string(file.path()).expect("read")
        };
        assert_eq!(render(Format::Lines), "a 10.0.0.1\nb h:1\n");
        assert_eq!(
            render(Format::Json),
            "{\n  \"a\": \"10.0.0.1\",\n  \"b\": \"h:1\"\n}\n"
        );
        assert_eq!(render(Format::Ndjson).lines().count(), 2);
    }

    #[test]
    fn a_line_that_would_not_read_back_is_refused() {
        assert!(line_of("a b", "c").is_err());
        assert!(line_of("#a", "c").is_err());
        assert!(line_of("a", "c\nd").is_err());
        assert!(line_of("a", "").is_err());
        assert_eq!(line_of("a", "c d").expect("fits"), "a c d");
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
            "b: 1,000 added, 2 as before   revision 12   0 streams closed"
        );
        let none = Committed::default();
        assert!(summary("b", &none, true).contains("nothing changed"));
    }

    #[test]
    fn paths_escape_bucket_and_key() {
        assert_eq!(path_of("b", "a/b").expect("a path"), "/v1/kv/b/a%2Fb");
        assert!(path_of("b", "").is_err());
    }
}
