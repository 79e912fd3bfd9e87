//! `throwbar kv import`: a whole file into a bucket, all or none, or any length of it in chunks.

use super::foreign::Found;
use super::format::{Kind, NDJSON, has_entry, has_row, is_shown, kind_of, lines_of};
use super::parting::Way;
use super::source::Source;
use super::write::{condition, refused, report, unmet};
use super::{chunks, flag, foreign, segment};
use crate::cli::client::{Client, ClientError, with_query};
use crate::cli::number::{revision, whole};
use crate::cli::output::{self, Out, Style};
use crate::cli::progress::watch_rows;
use crate::cli::{Ended, Exit};
use http::{Method, header};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Write a whole file into a bucket, all or none, under one revision
///
/// The format is found by itself if it is one of: lines `KEY VALUE` (`#` begins a comment line), lines of JSON
/// {"key":…,"value":…}, or one JSON object {"KEY":"VALUE",…}. `--format` says it, as that of `kv export` does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar kv import upstreams map.txt
  throwbar kv import upstreams map.txt --replace     the file becomes the whole bucket
  throwbar kv import upstreams map.txt --diff        show what would be changed
  throwbar kv import upstreams sheet.csv --format csv
  throwbar kv import upstreams export.ndjson --format ndjson
  throwbar kv import upstreams huge.ndjson --chunk 10000   any length, written 10,000 rows at a time
  throwbar kv import upstreams hosts.map --format haproxy-map
  throwbar kv import upstreams paths.map --format haproxy-map --match beg
  throwbar kv import upstreams nginx.conf --format nginx-map --map '$upstream'
  throwbar kv import upstreams files.map --format haproxy-map --match end
  generate-map | throwbar kv import upstreams -")]
pub(super) struct Args {
    /// The bucket
    bucket: String,
    /// The file, or - for standard input
    file: PathBuf,
    /// What the file is
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    format: Format,
    /// Of an nginx config with several maps, the one that sets this variable
    #[arg(long, value_name = "VARIABLE")]
    map: Option<String>,
    /// Of a map file of HAProxy, how its keys are compared: the word after `map_`
    #[arg(long = "match", value_name = "HOW", value_enum, default_value_t = foreign::Match::Str)]
    compared: foreign::Match,
    /// Go on without entries that a bucket has no counterpart for
    #[arg(long)]
    skip_unsupported: bool,
    /// Delete the keys that the file does not have
    #[arg(long)]
    replace: bool,
    /// Let a file without keys empty the bucket
    #[arg(long, requires = "replace")]
    allow_empty: bool,
    /// Write so many rows at a time: each chunk all or none, and what was written before a bad row stays
    #[arg(long, value_name = "ROWS", allow_negative_numbers = true, value_parser = whole::<u64>(1, 65_536),
          conflicts_with = "replace")]
    chunk: Option<u64>,
    /// Only if the bucket was last changed at this revision, 0: if it holds no key
    #[arg(long, value_name = "REVISION", allow_negative_numbers = true, value_parser = revision, conflicts_with = "chunk")]
    if_revision: Option<u64>,
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

/// Formats of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Lines or JSON, found by itself
    Auto,
    /// Lines `KEY VALUE`
    Lines,
    /// One JSON object {"KEY":"VALUE",…}
    Json,
    /// Lines of JSON {"key":…,"value":…}
    Ndjson,
    /// A table whose first line names the columns key and value
    Csv,
    /// A map file of HAProxy
    HaproxyMap,
    /// A map block of nginx, with what it includes
    NginxMap,
}

/// What is sent.
enum Content {
    /// As it is read.
    Streamed(Source),
    /// What was made of a file that was read whole.
    Made(Vec<u8>),
}

/// Sends a file: as one batch, or in chunks.
///
/// # Errors
/// If it cannot be read, or is refused.
pub(super) async fn run(client: &Client, args: &Args) -> anyhow::Result<()> {
    let mut source = Source::open(&args.file)?;
    let name = source.name.clone();
    let invalid = |problem: String| Ended::error(Exit::ConfigInvalid, format!("{name}: {problem}"));
    if args.compared != foreign::Match::Str && args.format != Format::HaproxyMap {
        let why = "--match is for --format haproxy-map";
        return Err(Ended::error(Exit::Usage, why));
    }
    if args.map.is_some() && args.format != Format::NginxMap {
        return Err(Ended::error(Exit::Usage, "--map is for --format nginx-map"));
    }
    let format = match args.format {
        Format::Auto => match kind_of(source.peek(is_shown)?).map_err(invalid)? {
            Kind::Text => Format::Lines,
            Kind::Ndjson => Format::Ndjson,
            Kind::Object => Format::Json,
        },
        told => told,
    };
    let (content_type, mut content) = match format {
        Format::Auto | Format::Lines => ("text/plain", Content::Streamed(source)),
        Format::Ndjson => (NDJSON, Content::Streamed(source)),
        Format::Json => {
            let is_told = args.format == Format::Json;
            let lines = lines_of(&source.whole()?, is_told).map_err(invalid)?;
            (NDJSON, Content::Made(lines))
        }
        Format::Csv => ("text/csv", Content::Streamed(source)),
        Format::HaproxyMap | Format::NginxMap => {
            let text = String::from_utf8(source.whole()?)
                .map_err(|_| invalid("is not text in UTF-8".to_owned()))?;
            let bucket = foreign::Bucket::ask(client, &args.bucket).await?;
            let found = match args.format {
                Format::NginxMap => {
                    let mut includes = foreign::Includes::beside(&args.file);
                    foreign::nginx_map(&text, args.map.as_deref(), bucket, &mut includes)
                }
                _ => foreign::haproxy_map(&text, args.compared, bucket),
            };
            let found = found.map_err(|problems| invalid(problems.join("\n  ")))?;
            let lines = carried(found, args.skip_unsupported, &name)?;
            (NDJSON, Content::Made(lines))
        }
    };
    if args.replace && !args.allow_empty {
        let has_key = match args.format {
            Format::Csv => has_row,
            _ => has_entry,
        };
        let has_key = match &mut content {
            Content::Streamed(source) => has_key(source.peek(has_key)?),
            Content::Made(lines) => has_key(lines),
        };
        if !has_key {
            // An empty file is more often a mistake than a wish.
            return Err(invalid(format!(
                "has no key, so --replace would empty {:?}: give --allow-empty if it is meant to",
                args.bucket
            )));
        }
    }
    let dry_run = args.dry_run || args.diff;
    // What is not written is answered at once.
    let chunk = args.chunk.filter(|_| !dry_run);
    let path = with_query(
        format!("/v1/kv/{}/import", segment("bucket", &args.bucket)?),
        &[
            ("replace", flag(args.replace)),
            ("dry_run", flag(dry_run)),
            ("diff", flag(args.diff)),
            ("chunk", args.chunk.map(|rows| rows.to_string())),
        ],
    );
    let (upload, sent) = match content {
        Content::Streamed(source) => {
            if chunk.is_none() {
                source.check_length(match (dry_run, args.replace) {
                    (true, _) => "the most that is checked at once",
                    (false, true) => "the most that a bucket is replaced by",
                    (false, false) => {
                        "the most that is written all or none: --chunk ROWS takes any length"
                    }
                })?;
            }
            source.sent()
        }
        Content::Made(lines) => Source::made(name.clone(), lines).sent(),
    };
    let failed = upload.failed();
    // That the file could not be read is why the conversation broke off.
    let told = |error: anyhow::Error| match failed.reason() {
        Some(reason) => anyhow::anyhow!("{name}: {reason}"),
        None => error.context(name.clone()),
    };
    let way = Way::of(args.replace, args.chunk);
    if chunk.is_some() {
        let work = chunks::send(client, &path, content_type, upload, &sent);
        let work = watch_rows(&sent, "writing", work);
        let answer = tokio::select! {
            answer = work => answer.map_err(told)?,
            signal = chunks::interrupted() => {
                ended_by(signal, &name, &chunks::at_least(sent.written()))
            }
        };
        return chunks::report((&args.bucket, &name), way, &answer, args.json);
    }
    let condition = condition(args.if_revision, false);
    let mut headers = vec![(header::CONTENT_TYPE, content_type.to_owned())];
    headers.extend(condition.clone());
    let work = client.upload_all(Method::POST, &path, &headers, upload);
    let answer = tokio::select! {
        answer = watch_rows(&sent, "writing", work) => answer,
        signal = chunks::interrupted() => {
            let written = match sent.is_whole() && !dry_run {
                false => "nothing was written".to_owned(),
                true => format!(
                    "all of it was sent, so it is not known whether it was written: see throwbar kv ls {}",
                    args.bucket
                ),
            };
            ended_by(signal, &name, &written)
        }
    };
    let answer = answer
        .map_err(|error| guessed(args.format, explained(way, error)))
        .map_err(|error| unmet(&args.bucket, condition.as_ref(), error))
        .map_err(|error| told(refused(&args.bucket, error)))?
        .json()?;
    if args.diff && !args.json {
        show_changes(&answer)?;
    }
    report(&args.bucket, &answer, dry_run, args.json)?;
    if let Some(reason) = answer["too_large"].as_str() {
        let most = answer["writes_max"].as_u64();
        if let Some(why) = way.note(reason, most) {
            // What is only tried ends as it would end.
            return Err(anyhow::anyhow!("{name}: {why}"));
        }
    }
    Ok(())
}

/// Ends the process as a signal does, with what was written.
fn ended_by(signal: i32, name: &str, written: &str) -> ! {
    output::aside(format_args!("error: {name}: a signal ended it: {written}"));
    // As shells say it of a process that a signal ended.
    std::process::exit(128 + signal)
}

/// An error with the way out, if it is one of too much at once.
fn explained(way: Way, mut error: ClientError) -> ClientError {
    if let ClientError::Problem(problem) = &mut error {
        way.explain(problem);
    }
    error
}

/// Lines that are none may be of another format than the one that was found.
fn guessed(format: Format, error: ClientError) -> ClientError {
    match error {
        ClientError::Problem(mut problem)
            if format == Format::Auto && problem.code.as_deref() == Some("invalid-import") =>
        {
            let detail = problem.detail.take().unwrap_or_default();
            problem.detail = Some(format!("{detail}: --format says what the file is"));
            ClientError::Problem(problem)
        }
        other => other,
    }
}

/// The entries of a foreign map as lines of JSON.
fn carried(found: Found, skip_unsupported: bool, name: &str) -> anyhow::Result<Vec<u8>> {
    if !skip_unsupported && !found.unsupported.is_empty() {
        let list = found.unsupported.join("\n  ");
        return Err(Ended::error(
            Exit::ConfigInvalid,
            format!(
                "{name} has what cannot be carried over; --skip-unsupported goes on without it\n  {list}"
            ),
        ));
    }
    for text in &found.unsupported {
        output::aside(format_args!("left out: {name}: {text}"));
    }
    for text in &found.notes {
        output::aside(format_args!("note: {name}: {text}"));
    }
    let mut lines = Vec::new();
    for (key, value) in &found.entries {
        lines.extend_from_slice(json!({ "key": key, "value": value }).to_string().as_bytes());
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Shows `+`, `-` and `~` with key and values.
pub(super) fn show_changes(answer: &Value) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    let style = Style::stdout();
    let shown = |value: &Value| match value.as_str() {
        Some(text) => output::printable(text),
        None => output::printable(&value.to_string()),
    };
    for change in super::listed(answer, "changes") {
        let key = output::printable(change["key"].as_str().unwrap_or_default());
        let (before, after) = (&change["before"], &change["after"]);
        let line = match (before.is_null(), after.is_null()) {
            (true, _) => style.green(&format!("+ {key} {}", shown(after))),
            (false, true) => style.red(&format!("- {key} {}", shown(before))),
            (false, false) => format!("~ {key} {} -> {}", shown(before), shown(after)),
        };
        out.line(line)?;
    }
    match answer["changes_not_shown"].as_u64() {
        None | Some(0) => {}
        Some(more) => out.line(format_args!("and {} more", output::count(more)))?,
    }
    out.flush()
}
