//! `throwbar kv backup`, `compact` and `check`: the data file as a whole.

use super::target::{Content, Target};
use crate::cli::client::Client;
use crate::cli::output::{self, Out, counted, size};
use crate::store::OpenError;
use crate::store::data_file::{Contents, check_data_file};
use anyhow::Context;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Copy the data file of a running proxy, as it is at one revision, and check the copy
///
/// Buckets in memory and those that proxies share are not in the data file; they are named.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar kv backup store-monday.redb
  throwbar kv backup store.redb.backup --force    replace the one of before

To restore one, end the proxy, move the file to store.redb of its data directory, remove a store.journal that a killed
proxy has left there, and start it again.")]
pub(super) struct BackupArgs {
    /// The file to write; it appears when it is whole
    file: PathBuf,
    /// Replace a file that is there; never a data file that a proxy uses
    #[arg(long)]
    force: bool,
}

/// Make the data file of a running proxy smaller: writes wait until it is done, reads go on
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  throwbar kv compact")]
pub(super) struct CompactArgs {
    /// Print sizes as JSON
    #[arg(long)]
    json: bool,
}

/// Read a whole data file that no proxy uses, such as a backup, and say whether it is sound
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  throwbar kv check store-monday.redb")]
pub(super) struct CheckArgs {
    /// The file
    file: PathBuf,
    /// Print what is in it as JSON
    #[arg(long)]
    json: bool,
}

/// Writes a backup and checks it.
///
/// # Errors
/// If the file is there already, if it cannot be written, or if what came is not sound.
pub(super) async fn backup(client: &Client, args: &BackupArgs) -> anyhow::Result<()> {
    let name = args.file.display();
    let target = Target::open(&args.file, args.force, Content::Backup)?;
    let mut kept = target.file()?;
    let mut body = client.stream_post("/v1/store/backup").await?.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| client.broken(error))?.into_data() {
            kept.write_all(&data).with_context(|| format!("{name}"))?;
        }
    }
    let bytes = kept.metadata()?.len();
    drop(kept);
    let contents = check_data_file(target.written()?).map_err(|error| {
        anyhow::anyhow!("{name}: not written, for what came is no backup: {error}")
    })?;
    target.keep()?;
    output::aside(format_args!("{name}: {}, {}", said(&contents), size(bytes)));
    // What is copied is whole without it: a proxy that does not answer now is no failure of the backup.
    if let Ok(answer) = client.get("/v1/kv").await
        && let Some(text) = answer.json().ok().and_then(|listed| not_in_it(&listed))
    {
        output::aside(format_args!("{name}: {text}"));
    }
    Ok(())
}

/// The buckets whose keys are not in the data file, if there are any.
fn not_in_it(listed: &Value) -> Option<String> {
    let buckets = super::listed(listed, "buckets").iter();
    let others = buckets.filter(|bucket| bucket["backend"] != "embedded");
    let others: Vec<_> = others
        .map(|bucket| {
            let text = |name: &str| bucket[name].as_str().unwrap_or("-");
            format!("{} ({})", text("name"), text("backend"))
        })
        .collect();
    let buckets = others.join(", ");
    (!others.is_empty())
        .then(|| format!("not in it, for they are in their own backends: {buckets}"))
}

/// What the proxy answers.
#[derive(Deserialize)]
struct Sizes {
    bytes_before: u64,
    bytes_after: u64,
}

/// Compacts the data file.
///
/// # Errors
/// If the proxy cannot be reached or refuses.
pub(super) async fn compact(client: &Client, args: &CompactArgs) -> anyhow::Result<()> {
    let answer = client.post_json("/v1/store/compact", &json!({})).await?;
    let mut out = Out::stdout();
    if args.json {
        out.json(&answer.json()?)?;
    } else {
        let sizes: Sizes = answer.json()?;
        let (before, after) = (size(sizes.bytes_before), size(sizes.bytes_after));
        out.line(format_args!("data file: {before} before, {after} now"))?;
    }
    out.flush()
}

/// Checks a data file; needs no proxy.
///
/// # Errors
/// If it is not sound, or in use.
pub(super) fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let contents = check_data_file(&args.file).map_err(|error| match error {
        // Its advice is for who wants to start a proxy.
        OpenError::Corrupt { path, reason } => anyhow::anyhow!(
            "data file {}: corrupt or not a data file of this program: {reason}",
            path.display()
        ),
        OpenError::InUse { path } => anyhow::anyhow!(
            "data file {}: in use by another process; of a running proxy, check a backup: throwbar kv backup FILE",
            path.display()
        ),
        other => other.into(),
    })?;
    let mut out = Out::stdout();
    if args.json {
        out.json(&json!({
            "revision": contents.revision,
            "buckets": contents.buckets,
            "keys": contents.keys,
        }))?;
    } else {
        out.line(format_args!(
            "{}: sound, {}",
            args.file.display(),
            said(&contents)
        ))?;
    }
    out.flush()
}

fn said(contents: &Contents) -> String {
    format!(
        "{} in {} at revision {}",
        counted(contents.keys, "key"),
        counted(contents.buckets, "bucket"),
        contents.revision
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_that_a_backup_does_not_have_are_named() {
        let own = json!({ "name": "ids", "backend": "embedded" });
        let shared = json!({ "name": "notes", "backend": "redis" });
        assert_eq!(not_in_it(&json!({ "buckets": [own] })), None);
        let told = not_in_it(&json!({ "buckets": [own, shared] })).expect("told");
        assert!(told.ends_with(": notes (redis)"), "{told}");
    }
}
