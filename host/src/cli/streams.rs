//! `throwbar streams`: list, close and drain open streams, through the admin API.

use super::client::{Connect, encode, with_query};
use super::number::whole;
use super::output::{self, Align, Out, Table};
use crate::config::decode::{address, units};
use clap::Subcommand;
use http::Method;
use http_body_util::Empty;
use serde::Deserialize;
use serde_json::Value;

mod drain;

pub(super) use drain::conditions;

/// Arguments of `streams`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar streams ls
  throwbar streams ls --key id1
  throwbar streams drain --key id1 --over 5m
  throwbar streams close 513")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List open streams, oldest first
    #[command(after_help = "\
Examples:
  throwbar streams ls --plugin by-header --version 9f2c11    who is still on the old version?
  throwbar streams ls --json")]
    Ls {
        #[command(flatten)]
        selector: Selector,
        /// At most so many
        #[arg(long, default_value_t = 1_000, allow_negative_numbers = true, value_parser = whole::<u64>(1, 100_000))]
        limit: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Close one stream, towards both ends
    #[command(
        after_help = "Example:\n  throwbar streams close 513 --code 1012 --reason \"moving house\""
    )]
    Close {
        /// Its id, as `streams ls` shows it
        #[arg(value_parser = parse_id)]
        id: u64,
        /// The WebSocket close code
        #[arg(long, default_value_t = 1001, allow_negative_numbers = true, value_parser = whole::<u16>(1000, 4999))]
        code: u16,
        /// The reason told to both ends
        #[arg(long)]
        reason: Option<String>,
    },
    /// Close all that match, spread evenly over a time
    Drain(drain::Args),
    /// How far drains are, newest first
    #[command(after_help = "Example:\n  throwbar streams drains")]
    Drains {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a drain: what it has not closed yet stays open
    #[command(after_help = "Example:\n  throwbar streams cancel 1")]
    Cancel {
        /// Its number, as `streams drains` shows it
        #[arg(value_parser = parse_drain)]
        id: u64,
    },
}

/// Which streams.
#[derive(Debug, Default, clap::Args)]
struct Selector {
    /// Only those with this key
    #[arg(long)]
    key: Option<String>,
    /// Only those to this endpoint (IP:PORT or IP), or to this upstream of the config
    #[arg(long, value_name = "ENDPOINT|NAME")]
    upstream: Option<String>,
    /// Only those of this route
    #[arg(long)]
    route: Option<String>,
    /// Only those this plugin routed
    #[arg(long)]
    plugin: Option<String>,
    /// Only those accepted by the version whose digest begins so
    #[arg(long)]
    version: Option<String>,
    /// Only those of clients in this network, such as 10.0.0.0/8
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    client: Option<String>,
    /// Only those that are open for at least so long, such as 4h
    #[arg(long, value_name = "AGE", allow_hyphen_values = true, value_parser = duration)]
    older_than: Option<String>,
}

impl Selector {
    /// Names and values, as the admin API has them.
    fn pairs(self) -> [(&'static str, Option<String>); 7] {
        [
            ("key", self.key),
            ("upstream", self.upstream),
            ("route", self.route),
            ("plugin", self.plugin),
            ("version", self.version),
            ("client", self.client),
            ("older_than", self.older_than),
        ]
    }
}

/// A duration, left as it is written.
fn duration(text: &str) -> Result<String, String> {
    units::duration(text).map(|_| text.to_owned())
}

/// A network, left as it is written.
fn network(text: &str) -> Result<String, String> {
    address::network(text).map(|_| text.to_owned())
}

fn parse_id(text: &str) -> Result<u64, &'static str> {
    text.parse()
        .map_err(|_| "expected an id as `streams ls` shows it")
}

fn parse_drain(text: &str) -> Result<u64, &'static str> {
    text.parse()
        .map_err(|_| "expected a number as `streams drains` shows it")
}

/// A stream, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Stream {
    id: u64,
    route: Option<String>,
    plugin: Option<String>,
    version: Option<String>,
    key: Option<String>,
    client: String,
    endpoint: String,
    age_s: u64,
    bytes_up: u64,
    bytes_down: u64,
    session: Option<Session>,
}

/// The session of a stream, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Session {
    state: String,
    isolated: bool,
    messages_up: u64,
    messages_down: u64,
    rebuilds: u64,
}

impl Session {
    /// How it does: `rebuilt 2, isolated`.
    fn state(&self) -> String {
        let mut state = self.state.clone();
        if self.rebuilds > 0 {
            state = format!("{state} {}", self.rebuilds);
        }
        if self.isolated {
            state.push_str(", isolated");
        }
        state
    }
}

/// Runs the command.
///
/// # Errors
/// If the proxy cannot be reached or refuses.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.connect.client()?;
    let mut out = Out::stdout();
    match args.command {
        Command::Ls {
            selector,
            limit,
            json,
        } => {
            let mut query = selector.pairs().to_vec();
            query.push(("limit", Some(limit.to_string())));
            let path = with_query("/v1/streams".to_owned(), &query);
            let answer: Value = client.get(&path).await?.json()?;
            if json {
                out.json(&answer)?;
            } else {
                print(&answer, limit, &mut out)?;
            }
        }
        Command::Close { id, code, reason } => {
            let path = with_query(
                format!("/v1/streams/{}", encode(&id.to_string())),
                &[("code", Some(code.to_string())), ("reason", reason)],
            );
            client
                .send(Method::DELETE, &path, &[], Empty::new(), None)
                .await?;
            out.line(format_args!("stream {id}: closed with code {code}"))?;
        }
        Command::Drain(args) => drain::start(&client, args, &mut out).await?,
        Command::Drains { json } => drain::list(&client, json, &mut out).await?,
        Command::Cancel { id } => drain::cancel(&client, id, &mut out).await?,
    }
    out.flush()
}

/// Messages up and down.
fn messages(session: &Session) -> String {
    let [up, down] = [session.messages_up, session.messages_down].map(output::count);
    format!("{up}/{down}")
}

fn print(answer: &Value, limit: u64, out: &mut Out) -> anyhow::Result<()> {
    let streams: Vec<Stream> = super::kv::listed(answer, "streams")
        .iter()
        .map(Stream::deserialize)
        .collect::<Result<_, _>>()
        .map_err(|e| anyhow::anyhow!("the admin API's answer is not what was expected: {e}"))?;
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("AGE", Align::Right),
        ("KEY", Align::Left),
        ("ENDPOINT", Align::Left),
        ("ACCEPTED BY", Align::Left),
        ("CLIENT", Align::Left),
        ("UP", Align::Right),
        ("DOWN", Align::Right),
        ("SESSION", Align::Left),
        ("MESSAGES", Align::Right),
    ]);
    for stream in &streams {
        let accepted_by = match (&stream.plugin, &stream.version) {
            (Some(plugin), Some(version)) => format!("{plugin}@{}", output::short(version)),
            _ => format!("route {}", stream.route.as_deref().unwrap_or("-")),
        };
        let session = stream.session.as_ref();
        table.row([
            stream.id.to_string(),
            output::age(stream.age_s),
            stream.key.clone().unwrap_or_else(|| "-".into()),
            stream.endpoint.clone(),
            accepted_by,
            stream.client.clone(),
            output::size(stream.bytes_up),
            output::size(stream.bytes_down),
            session.map_or_else(|| "-".into(), Session::state),
            session.map_or_else(|| "-".into(), messages),
        ]);
    }
    table.print(out)?;
    if answer["more"] == true {
        out.flush()?;
        output::aside(format_args!(
            "… the limit of {limit} is reached, --limit raises it"
        ));
    }
    Ok(())
}
