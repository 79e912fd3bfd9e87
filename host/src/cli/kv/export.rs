//! `throwbar kv export`: a whole bucket, as of one revision.

use super::target::{Content, Target};
use super::{segment, stale};
use crate::cli::client::{Client, staleness_of, with_query};
use crate::cli::output::{self, Out};
use anyhow::Context;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

/// The longest line that is made into another format.
const LINE_BYTES_MAX: usize = 8 << 20;

/// Formats of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Lines `KEY VALUE`
    Lines,
    /// One JSON object {"KEY":"VALUE",…}
    Json,
    /// A line of JSON for each key, with its revision and when it ends
    Ndjson,
    /// A table with the columns key, value, revision and expires_at
    Csv,
}

/// Write a whole bucket, as of one revision, to standard output or a file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar kv export upstreams > map.txt
  throwbar kv export upstreams eu.txt --prefix eu-
  throwbar kv export upstreams map.json --format json --force    replace the one of before")]
pub(super) struct Args {
    /// The bucket
    bucket: String,
    /// The file, which appears when it is whole; standard output without one
    file: Option<PathBuf>,
    /// The format
    #[arg(long, value_enum, default_value_t = Format::Lines)]
    format: Format,
    /// Only keys that begin so
    #[arg(long)]
    prefix: Option<String>,
    /// Leave out when keys end; lines and one JSON object cannot say it
    #[arg(long)]
    without_deadlines: bool,
    /// Replace a file that is there; never a data file
    #[arg(long, requires = "file")]
    force: bool,
}

/// Writes a whole bucket to standard output or a file.
///
/// # Errors
/// If it cannot be read or written, or does not fit the format.
pub(super) async fn run(client: &Client, args: &Args) -> anyhow::Result<()> {
    let (bucket, format) = (&args.bucket, args.format);
    let sent = match format {
        Format::Lines => "lines",
        Format::Csv => "csv",
        Format::Json | Format::Ndjson => "ndjson",
    };
    let path = with_query(
        format!("/v1/kv/{}", segment("bucket", bucket)?),
        &[
            ("format", Some(sent.to_owned())),
            (
                "deadlines",
                args.without_deadlines.then(|| "false".to_owned()),
            ),
            ("prefix", args.prefix.clone()),
        ],
    );
    // A file appears under its name only when it is whole: an export that breaks off leaves the old one.
    let target = match &args.file {
        None => None,
        Some(file) => Some((file, Target::open(file, args.force, Content::Export)?)),
    };
    let response = client.stream(&path, &[]).await?;
    stale::tell(Some(bucket), staleness_of(response.headers()));
    let keys = response.headers().get("throwbar-keys");
    let keys = keys.and_then(|keys| keys.to_str().ok()?.parse::<u64>().ok());
    let mut body = response.into_body();
    let mut out = match &target {
        None => Out::stdout(),
        Some((_, target)) => Out::to(target.file()?),
    };
    let mut object = (format == Format::Json).then(JsonObject::default);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| client.broken(e))?.into_data() else {
            continue;
        };
        match &mut object {
            None => out.bytes(&data)?,
            Some(object) => object.lines(&data, &mut out)?,
        }
    }
    if let Some(object) = object {
        object.end(&mut out)?;
    }
    out.flush()?;
    if let Some((file, target)) = target {
        drop(out);
        target.keep()?;
        output::aside(format_args!(
            "{}: {} written to {}",
            bucket,
            output::counted(keys.unwrap_or_default(), "key"),
            file.display()
        ));
    }
    Ok(())
}

/// Makes one JSON object of lines of JSON.
#[derive(Default)]
struct JsonObject {
    /// The beginning of a line.
    pending: Vec<u8>,
    entries: u64,
}

#[derive(Deserialize)]
struct Entry {
    key: String,
    value: Value,
    expires_at: Option<String>,
}

impl JsonObject {
    fn lines(&mut self, data: &[u8], out: &mut Out) -> anyhow::Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(data);
        let mut from = 0;
        while let Some(length) = memchr::memchr(b'\n', &pending[from..]) {
            self.entry(&pending[from..from + length], out)?;
            from += length + 1;
        }
        pending.drain(..from);
        anyhow::ensure!(
            pending.len() <= LINE_BYTES_MAX,
            "the export has a line of more than {}",
            output::size(LINE_BYTES_MAX as u64)
        );
        self.pending = pending;
        Ok(())
    }

    fn entry(&mut self, line: &[u8], out: &mut Out) -> anyhow::Result<()> {
        let entry: Entry = serde_json::from_slice(line).context("a line of the export")?;
        anyhow::ensure!(
            entry.expires_at.is_none(),
            "key {:?}: it ends, which one JSON object cannot say: expected --format ndjson or csv, or --without-deadlines",
            entry.key
        );
        let begin = if self.entries == 0 { "{" } else { "," };
        let (key, value) = (Value::from(entry.key), entry.value);
        self.entries += 1;
        out.bytes(format!("{begin}\n  {key}: {value}").as_bytes())
    }

    fn end(self, out: &mut Out) -> anyhow::Result<()> {
        anyhow::ensure!(self.pending.is_empty(), "the export breaks off in a line");
        let begin = if self.entries == 0 { "{" } else { "" };
        out.bytes(format!("{begin}\n}}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object_of(chunks: &[&str]) -> anyhow::Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        let mut out = Out::to(file.reopen()?);
        let mut object = JsonObject::default();
        for chunk in chunks {
            object.lines(chunk.as_bytes(), &mut out)?;
        }
        object.end(&mut out)?;
        out.flush()?;
        Ok(std::fs::read_to_string(file.path())?)
    }

    #[test]
    fn lines_cut_anywhere_become_one_object() {
        let chunks = [
            "{\"key\":\"a\",\"value\":\"10.0.0.1\",\"revision\":3}\n{\"key\":\"b\",",
            "\"value\":{\"base64\":\"/w==\"},\"revision\":4}",
            "\n",
        ];
        let expected = "{\n  \"a\": \"10.0.0.1\",\n  \"b\": {\"base64\":\"/w==\"}\n}\n";
        assert_eq!(object_of(&chunks).expect("whole"), expected);
        assert_eq!(object_of(&[]).expect("empty"), "{\n}\n");
        assert!(object_of(&chunks[..2]).is_err());
        let ends = "{\"key\":\"a\",\"value\":\"\",\"expires_at\":\"2999-01-01T00:00:00Z\"}\n";
        assert!(object_of(&[ends]).is_err_and(|error| error.to_string().contains("it ends")));
    }
}
