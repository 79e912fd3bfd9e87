//! `throwbar top`: what a running proxy does, second by second, from its metrics.

mod rates;
mod sample;
mod view;

use super::client::{Client, ClientError, Connect};
use super::output::Out;
use anyhow::Context;
use rates::Rates;
use sample::Sample;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
On a terminal it draws one screen again and again until Ctrl-C; otherwise it prints one report after another.

Examples:
  throwbar top
  throwbar top --interval 5
  throwbar top --count 1 --json      one reading, for a script")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: Connect,
    /// Seconds between readings; rates are over this time
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    interval: u64,
    /// End after so many reports
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print each report as a line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the proxy cannot be reached at first, or refuses. Once it was reached, it is waited for.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.connect.client()?;
    let interval = Duration::from_secs(args.interval);
    let screen = (!args.json && std::io::stdout().is_terminal()).then(Screen::enter);
    let mut signals = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ];
    let [interrupt, terminate] = &mut signals;
    tokio::select! {
        result = watch(&client, interval, args.count, args.json, screen.as_ref()) => result,
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
    let mut reports = 0;
    while count.is_none_or(|count| reports < count) {
        tokio::time::sleep(interval).await;
        let now = match read(client).await {
            Ok(now) => now,
            Err(error) if count.is_none() && error.is::<ClientError>() => {
                if let Some(screen) = screen {
                    screen.draw(&mut out, &[format!("{error:#}")])?;
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        let span = at.elapsed();
        at = Instant::now();
        let rates = Rates::between(&before, &now, span);
        before = now;
        if json {
            out.line(serde_json::to_string(&rates).context("write JSON")?)?;
            out.flush()?;
        } else {
            let lines = view::lines(&rates, &client.address());
            match screen {
                Some(screen) => screen.draw(&mut out, &lines)?,
                None => print(&mut out, &lines, reports)?,
            }
        }
        reports += 1;
    }
    Ok(())
}

async fn read(client: &Client) -> anyhow::Result<Sample> {
    let answer = client.get("/metrics").await?;
    let text = std::str::from_utf8(&answer.body).context("metrics are not text in UTF-8")?;
    Sample::parse(text).map_err(|error| client.broken(error).into())
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

    /// Draws in place, without a flicker: each line overwrites the one before it and clears the rest of its row.
    fn draw(&self, out: &mut Out, lines: &[String]) -> anyhow::Result<()> {
        let (height, width) = self.0.size();
        let mut drawn = String::from("\x1b[H");
        for line in lines.iter().take(usize::from(height)) {
            drawn.push_str(&console::truncate_str(line, width.into(), "…"));
            drawn.push_str("\x1b[K\r\n");
        }
        drawn.truncate(drawn.len() - 2);
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
