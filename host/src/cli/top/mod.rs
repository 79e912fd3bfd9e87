//! `throwbar top`: what a running proxy does, second by second, from its metrics.

mod plugins;
mod rates;
mod sample;
mod view;

use super::client::{Client, ClientError, Connect};
use super::number::whole;
use super::output::{self, Out};
use anyhow::Context;
use rates::{Drain, Rates, Reading};
use sample::Sample;
use serde::Deserialize;
use serde_json::Value;
use std::io::IsTerminal;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
On a terminal it draws one screen again and again until Ctrl-C; elsewhere, and when reports are
counted, it prints one after another. A proxy that goes away is waited for, unless they are counted.

P50 and P99 are of the interval and the plugin, P99 SO FAR is of a version since it was activated.

Examples:
  throwbar top
  throwbar top --interval 5
  throwbar top --once                what happens in one second
  throwbar top --once --json         the same, for a script")]
pub(crate) struct Args {
    /// Seconds between readings; rates are over this time
    #[arg(long, value_name = "SECONDS", default_value_t = 1, allow_negative_numbers = true, value_parser = whole::<u64>(1, 3_600))]
    interval: u64,
    /// End after so many reports
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole::<u64>(1, u64::MAX))]
    count: Option<u64>,
    /// End after one report
    #[arg(long, conflicts_with = "count")]
    once: bool,
    /// Print each report as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
///
/// # Errors
/// If the proxy cannot be reached at first, or refuses. Once it was reached, it is waited for.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.connect.client()?;
    let interval = Duration::from_secs(args.interval);
    let count = if args.once { Some(1) } else { args.count };
    let screen = (!args.json && count.is_none() && is_screen()).then(Screen::enter);
    let mut signals = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ];
    let [interrupt, terminate] = &mut signals;
    tokio::select! {
        result = watch(&client, interval, count, args.json, screen.as_ref()) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

/// Reads and reports until there were enough.
async fn watch(
    client: &Client,
    interval: Duration,
    count: Option<u64>,
    json: bool,
    screen: Option<&Screen>,
) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    let (mut at, mut before) = (Instant::now(), read(client).await?);
    let (mut reports, mut is_gone) = (0, false);
    while count.is_none_or(|count| reports < count) {
        tokio::time::sleep(interval).await;
        let now = match read(client).await {
            Ok(now) => now,
            Err(error) if count.is_none() && error.is::<ClientError>() => {
                match screen {
                    Some(screen) => screen.draw(&mut out, &view::gone(&error))?,
                    None if is_gone => {}
                    None => output::aside(format_args!("{error:#}")),
                }
                is_gone = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        let span = at.elapsed();
        at = Instant::now();
        let rates = Rates::between(&before, &now, span);
        (before, is_gone) = (now, false);
        if json {
            out.line(serde_json::to_string(&rates).context("write JSON")?)?;
            out.flush()?;
        } else {
            let height = screen.map(Screen::height);
            let lines = view::lines(&rates, &client.address(), unix_ms(), height);
            match screen {
                Some(screen) => screen.draw(&mut out, &lines)?,
                None => print(&mut out, &lines, reports)?,
            }
        }
        reports += 1;
    }
    Ok(())
}

async fn read(client: &Client) -> anyhow::Result<Reading> {
    let answer = client.get("/metrics").await?;
    let text = std::str::from_utf8(&answer.body).context("metrics are not text in UTF-8")?;
    let sample = Sample::parse(text).map_err(|error| client.broken(error))?;
    let answer: Value = client.get("/v1/streams/drain").await?.json()?;
    let drains = super::kv::listed(&answer, "drains").iter();
    let drains: Result<Vec<Drain>, _> = drains.map(Drain::deserialize).collect();
    let mut drains = drains.map_err(|error| client.broken(error))?;
    drains.retain(|drain| drain.state == "running");
    Ok(Reading { sample, drains })
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Whether standard output can be drawn on.
fn is_screen() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

fn print(out: &mut Out, lines: &[String], reports: u64) -> anyhow::Result<()> {
    if reports > 0 {
        out.line("")?;
    }
    for line in lines {
        out.line(line)?;
    }
    out.flush()
}

/// The terminal's second screen, left when dropped, so that what was there before is there again.
struct Screen(console::Term);

impl Screen {
    fn enter() -> Self {
        let terminal = console::Term::stdout();
        // A terminal that is gone shows in the first draw.
        let _ = terminal.write_str("\x1b[?1049h\x1b[?25l");
        Self(terminal)
    }

    fn height(&self) -> usize {
        self.0.size().0.into()
    }

    /// Draws in place, without a flicker: each line overwrites the one before it and clears the rest of its row.
    fn draw(&self, out: &mut Out, lines: &[String]) -> anyhow::Result<()> {
        let (height, width) = self.0.size();
        let mut drawn = String::from("\x1b[H");
        for line in lines.iter().take(usize::from(height)) {
            drawn.push_str(&console::truncate_str(line, width.into(), "…"));
            drawn.push_str("\x1b[K\r\n");
        }
        drawn.truncate(drawn.trim_end_matches("\r\n").len());
        drawn.push_str("\x1b[J");
        out.bytes(drawn.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.0.write_str("\x1b[?25h\x1b[?1049l");
    }
}
