//! `throwbar import`: a config and a filled bucket from what another proxy was given.

mod caddy;
mod draft;

use super::output::{self, Out, Style};
use super::{Ended, Exit, program, read_text};
use crate::config::{Config, diagnostic};
use crate::store::{Store, Write, WriteBatch};
use anyhow::Context;
use clap::Subcommand;
use draft::Draft;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The name of the config in the directory that is made.
const CONFIG: &str = "throwbar.toml";

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar import caddy caddy.json                        makes the directory throwbar-config
  throwbar serve throwbar-config/throwbar.toml

Maps of HAProxy and nginx go into a bucket of a running proxy:
  throwbar kv import upstreams hosts.map --format haproxy-map
  throwbar kv import upstreams nginx.conf --format nginx-map")]
pub(crate) struct Args {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    /// Caddy's config as JSON: its map becomes a bucket, its routes become routes
    ///
    /// Everything that has no counterpart is told, and nothing is written then, unless --skip-unsupported says to go on
    /// without it. A Caddyfile becomes JSON with `caddy adapt --config Caddyfile`.
    #[command(after_help = "\
Examples:
  throwbar import caddy caddy.json                        makes the directory throwbar-config
  throwbar import caddy caddy.json --dry-run              show the config, write nothing
  caddy adapt --config Caddyfile | throwbar import caddy - --out made")]
    Caddy {
        /// The file, or - for standard input
        file: PathBuf,
        /// A directory to make: for the config, and for the data with the bucket
        #[arg(long, value_name = "DIR", default_value = "throwbar-config")]
        out: PathBuf,
        /// Go on without what has no counterpart
        #[arg(long)]
        skip_unsupported: bool,
        /// Let everybody who can connect use the admin API, as Caddy does; on loopback and Unix sockets only
        #[arg(long)]
        without_token: bool,
        /// Print the config; write nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// What became of a foreign config.
#[derive(Debug, Default)]
struct Findings {
    /// What is no such config: nothing can be made of it.
    wrong: Vec<String>,
    /// What has no counterpart here.
    unsupported: Vec<String>,
    /// What is done in another way here.
    notes: Vec<String>,
}

impl Findings {
    /// Something is told once, however often it is found.
    fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }
}

/// Runs the command.
///
/// # Errors
/// If the file cannot be read or carried over, or the directory cannot be written.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let From::Caddy {
        file,
        out,
        skip_unsupported,
        without_token,
        dry_run,
    } = args.from;
    let name = shown(&file);
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        read_text(&file)
    };
    let text = text.map_err(|error| invalid(format!("{name}: {error}")))?;
    let mut findings = Findings::default();
    let draft = caddy::translate(&text, without_token, &mut findings)
        .map_err(|problem| invalid(format!("{name}: {problem}")))?;
    refuse(&name, &findings, skip_unsupported)?;
    let title = format!("Made from {name} by `throwbar import caddy`.");
    let dropped = &findings.unsupported;
    let notes: Vec<&String> = dropped.iter().chain(&findings.notes).collect();
    let config_text = draft.to_toml(&title, &notes);
    let config = check(&config_text, &name)?;
    if dry_run {
        let mut out = Out::stdout();
        out.bytes(config_text.as_bytes())?;
        return out.flush();
    }
    write(&out, &config_text, &config, &draft).await?;
    tell(&name, &out, &draft, &findings)
}

fn shown(file: &Path) -> String {
    match file.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => file.display().to_string(),
    }
}

fn invalid(message: String) -> anyhow::Error {
    Ended::error(Exit::ConfigInvalid, message)
}

fn refuse(name: &str, findings: &Findings, skip_unsupported: bool) -> anyhow::Result<()> {
    if !findings.wrong.is_empty() {
        let list = findings.wrong.join("\n  ");
        return Err(invalid(format!(
            "{name} is not a config of Caddy\n  {list}"
        )));
    }
    if skip_unsupported || findings.unsupported.is_empty() {
        return Ok(());
    }
    let list = findings.unsupported.join("\n  ");
    Err(invalid(format!(
        "{name} has what cannot be carried over; --skip-unsupported goes on without it\n  {list}"
    )))
}

/// What is written is what `serve` will read: it is checked as such.
fn check(text: &str, name: &str) -> anyhow::Result<Config> {
    Config::parse(text, None).map_err(|problems| {
        let problems = diagnostic::render(&problems, text, CONFIG, Style::stderr().is_on());
        invalid(format!(
            "{name}: what was made of it is no valid config\n{}",
            problems.trim_end()
        ))
    })
}

/// Makes the directory whole, or leaves none.
async fn write(dir: &Path, text: &str, config: &Config, draft: &Draft) -> anyhow::Result<()> {
    let place = dir.display();
    let taken = std::fs::symlink_metadata(dir).is_ok();
    anyhow::ensure!(
        !taken,
        "{place}: exists already, expected a directory to make: give another one as --out"
    );
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let made = tempfile::Builder::new()
        .prefix(".throwbar-import-")
        .tempdir_in(parent)
        .map_err(|error| {
            anyhow::anyhow!("{}: cannot write here: {}", parent.display(), error.kind())
        })?;
    std::fs::write(made.path().join(CONFIG), text).with_context(|| format!("{place}/{CONFIG}"))?;
    let data = made.path().join("data");
    // As `serve` makes it: the token will be there.
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&data)
        .with_context(|| format!("{place}/data"))?;
    fill(&data, config, draft).await?;
    std::fs::rename(made.path(), dir).with_context(|| format!("{place}"))?;
    // It is under another name now.
    let _ = made.keep();
    Ok(())
}

async fn fill(data: &Path, config: &Config, draft: &Draft) -> anyhow::Result<()> {
    let store = Store::open(&config.buckets, data)?;
    let snapshot = store.snapshot();
    let mut writes = Vec::new();
    for bucket in &draft.buckets {
        let id = snapshot
            .bucket_id(&bucket.name)
            .expect("the config has every bucket of the draft");
        let entries = bucket.entries.iter();
        writes.extend(entries.map(|(key, value)| Write::put(id, key.as_str(), value.as_bytes())));
    }
    let batch = WriteBatch {
        writes,
        by: Some("throwbar import".into()),
        ..WriteBatch::default()
    };
    let committed = store.commit(batch).await;
    store.close();
    committed
        .map(drop)
        .map_err(|error| invalid(format!("the map: {error}")))
}

fn tell(name: &str, dir: &Path, draft: &Draft, findings: &Findings) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    let counted = |n: usize, noun: &str| output::counted(n as u64, noun);
    let keys = draft
        .buckets
        .iter()
        .map(|bucket| bucket.entries.len())
        .sum();
    let place = dir.display();
    out.line(format_args!(
        "{name} -> {place}/{CONFIG}: {}, {}, {}, {} with {}",
        counted(draft.listener.len(), "listener"),
        counted(draft.route.len(), "route"),
        counted(draft.plugins.len(), "plugin"),
        counted(draft.buckets.len(), "bucket"),
        counted(keys, "key"),
    ))?;
    for text in &findings.unsupported {
        out.line(format_args!("left out: {text}"))?;
    }
    for text in &findings.notes {
        let text = text.replace("data/admin.token", &format!("{place}/data/admin.token"));
        out.line(format_args!("note: {text}"))?;
    }
    out.line(format_args!(
        "\nRun it:\n  {} serve {place}/{CONFIG}",
        program()
    ))?;
    out.flush()
}
