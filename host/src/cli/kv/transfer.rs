//! `throwbar kv import` and `export`: a whole bucket at once.

use super::format::{Exporter, Format, body_of, has_entry};
use super::write::{refused, report};
use super::{flag, segment};
use crate::cli::client::{Client, with_query};
use crate::cli::output::{self, Out};
use crate::cli::{Ended, Exit};
use anyhow::Context;
use http::Method;
use http_body_util::BodyExt;
use std::io::Read;
use std::path::Path;

/// The longest import and the longest line of an export.
const IMPORT_BYTES_MAX: u64 = 256 << 20;
const LINE_BYTES_MAX: usize = 8 << 20;

/// Whether an import deletes the keys that the file does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replace {
    /// It keeps them.
    No,
    /// It deletes them, if the file has a key at all: an empty one is more often a mistake than a wish.
    ByKeys,
    /// It deletes them, all of them if the file is empty.
    ByAnything,
}

/// Sends a whole file as one batch.
///
/// # Errors
/// If it cannot be read, or is refused.
pub(super) async fn import(
    client: &Client,
    bucket: &str,
    file: &Path,
    replace: Replace,
    dry_run: bool,
    json: bool,
) -> anyhow::Result<()> {
    let (text, name) = read(file)?;
    let (content_type, body) =
        body_of(text).map_err(|e| Ended::error(Exit::ConfigInvalid, format!("{name}: {e}")))?;
    if replace == Replace::ByKeys && !has_entry(&body) {
        return Err(Ended::error(
            Exit::ConfigInvalid,
            format!(
                "{name}: has no key, so --replace would empty {bucket:?}: give --allow-empty if it is meant to"
            ),
        ));
    }
    let path = with_query(
        format!("/v1/kv/{}/import", segment("bucket", bucket)?),
        &[
            ("replace", flag(replace != Replace::No)),
            ("dry_run", flag(dry_run)),
        ],
    );
    let answer = client
        .upload(Method::POST, &path, content_type, body, "writing")
        .await
        .map_err(|error| refused(error).context(name))?;
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

/// Writes a whole bucket to standard output or a file.
///
/// # Errors
/// If it cannot be read or written.
pub(super) async fn export(
    client: &Client,
    bucket: &str,
    file: Option<&Path>,
    format: Format,
) -> anyhow::Result<()> {
    let path = format!("/v1/kv/{}?format=ndjson", segment("bucket", bucket)?);
    let mut body = client.stream(&path, &[]).await?.into_body();
    // A file appears under its name only when it is whole: an export that breaks off leaves the old one.
    let mut target = match file {
        None => None,
        Some(file) => {
            let dir = match file.parent() {
                Some(dir) if !dir.as_os_str().is_empty() => dir,
                _ => Path::new("."),
            };
            let (name, place) = (file.display(), dir.display());
            anyhow::ensure!(dir.is_dir(), "{name}: no directory {place}");
            // Its own message names the temporary file, which nobody asked for.
            let kept = tempfile::NamedTempFile::new_in(dir).map_err(|error| {
                anyhow::anyhow!("{name}: cannot create a file in {place}: {}", error.kind())
            })?;
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
        output::aside(format_args!(
            "{}: {} written to {}",
            bucket,
            output::counted(writer.written, "key"),
            file.display()
        ));
    }
    Ok(())
}
