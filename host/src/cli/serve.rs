//! `throwbar serve`: run the proxy, from a config or from flags alone.

use super::client::show_address;
use super::output::{Style, short};
use super::{Ended, Exit, logging, program, read_text};
use crate::app::{self, App, Start};
use crate::config::{Config, diagnostic};
use crate::plugin::{BY_CONFIG, PluginInfo, VersionState};
use crate::store::BackendKind;
use flags::{Inline, from_flags};
use std::io::Write;
use std::path::{Path, PathBuf};

mod flags;

pub(super) use flags::{BUCKET, PLUGIN, by_header, listeners, parse_listen};

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar serve throwbar.toml
  throwbar serve --map id1=127.0.0.2 --map id2=127.0.0.3
  throwbar serve --listen :8080 --map-file map.txt --data /var/lib/throwbar

Then, with the second one:
  curl -H 'X-ID: id1' -H 'X-Port: 9000' http://127.0.0.1:8080/     goes to 127.0.0.2:9000
  throwbar kv set upstreams id1=127.0.0.4                          closes nothing

Signals: HUP reads FILE again; TERM and INT (Ctrl-C) finish what is running and end with exit code 0, a second one ends at once with 1.")]
pub(crate) struct Args {
    /// The config (TOML); without one the options below make it
    #[arg(conflicts_with = "inline")]
    file: Option<PathBuf>,
    #[command(flatten)]
    inline: Inline,
    /// What is logged on standard error, such as `debug` or `throwbar_host=debug` [default: $THROWBAR_LOG, else the config's, else info]
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// Compile plugins on a thread of this process, without bounds: for valgrind, which cannot start it again
    #[arg(long, hide = true)]
    compile_on_thread: bool,
}

/// Runs the proxy until a signal ends it.
///
/// # Errors
/// If the config is invalid, or something it names cannot be had: a port, a file, a plugin.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    // Whoever starts it may have it read its config at once.
    let early = app::Hangup::hold()?;
    let mut start = match args.file {
        Some(file) => from_file(file)?,
        None => from_flags(args.inline)?,
    };
    let log = logging::start(args.log_level, &start.config.log)?;
    start.log_dropped = Some(log.dropped.clone());
    start.audit_losses = log.audit_losses.clone();
    start.compile_on_thread = args.compile_on_thread;
    let about = About::of(&start);
    let app = app::start(start)?;
    let signals = app.signals()?;
    about.print(&app);
    app.run_until_signal(signals, early);
    Ok(())
}

/// Reads and checks a config.
///
/// # Errors
/// Every problem, as text with places, with its exit code.
pub(super) fn read_config(file: &Path) -> anyhow::Result<(String, Config)> {
    let name = file.display().to_string();
    let text = read_text(file)
        .map_err(|error| Ended::error(Exit::ConfigInvalid, format!("config {name}: {error}")))?;
    match Config::parse(&text, Some(file)) {
        Ok(config) => Ok((text, config)),
        Err(problems) => {
            let shown = diagnostic::render(&problems, &text, &name, Style::stderr().is_on());
            Err(Ended::error(
                Exit::ConfigInvalid,
                format!("config {name} is invalid\n{}", shown.trim_end()),
            ))
        }
    }
}

fn from_file(file: PathBuf) -> anyhow::Result<Start> {
    let (text, config) = read_config(&file)?;
    Ok(Start {
        text: Some(text),
        file: Some(file),
        ..Start::new(config, Vec::new())
    })
}

/// What is told of a proxy once it runs.
struct About {
    source: String,
    data: PathBuf,
    workers: usize,
    inline: bool,
    durable: bool,
}

impl About {
    fn of(start: &Start) -> Self {
        Self {
            source: match &start.file {
                Some(file) => file.display().to_string(),
                None => "no config file".to_owned(),
            },
            data: start.config.data.clone(),
            workers: start.config.workers,
            inline: start.file.is_none(),
            durable: start
                .config
                .buckets
                .iter()
                .any(|bucket| bucket.backend == BackendKind::Embedded),
        }
    }

    /// One block on standard error: standard output belongs to the access log.
    fn print(&self, app: &App) {
        let style = Style::stderr();
        let mut lines = vec![format!(
            "{}  {}, {}",
            style.bold(concat!("throwbar ", env!("CARGO_PKG_VERSION"))),
            self.source,
            super::output::counted(self.workers as u64, "worker"),
        )];
        for (name, address) in app.bound() {
            lines.push(format!("  listener  http://{address}  ({name})"));
        }
        lines.push(format!("  admin     {}", show_address(app.admin_address())));
        lines.push(match app.token_path() {
            Some(path) => format!("  token     {}", path.display()),
            None => "  token     none needed".to_owned(),
        });
        lines.push(format!("  data      {}", self.data.display()));
        lines.extend(app.control().plugins().iter().map(plugin_line));
        if let Some(keys) = app.control().keys(BUCKET)
            && self.inline
        {
            lines.push(format!(
                "  map       {} in bucket {BUCKET:?}{}",
                super::output::counted(keys, "key"),
                if self.durable {
                    ""
                } else {
                    ", in memory: gone at restart (--data DIR keeps it)"
                }
            ));
        }
        lines.push(format!(
            "  commands  {} kv ls --admin {} --data {}",
            program(),
            show_address(app.admin_address()),
            self.data.display()
        ));
        lines.push(style.dim("  Ctrl-C finishes what is running and ends; again ends at once"));
        // Nobody reads standard error: no reason not to serve.
        let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
    }
}

/// A version that was pushed outlives restarts, whatever the config or the options name: it has to be seen.
fn plugin_line(plugin: &PluginInfo) -> String {
    let name = &plugin.name;
    match plugin
        .versions
        .iter()
        .find(|version| version.state == VersionState::Active)
    {
        None => format!("  plugin    {name}: no version yet, waits for a push"),
        Some(active) if active.by == BY_CONFIG => {
            format!("  plugin    {name} {}", short(&active.digest))
        }
        Some(active) => format!(
            "  plugin    {name} {}, activated by {}: kept over restarts, whatever the config names",
            short(&active.digest),
            active.by
        ),
    }
}
