//! The config that options of `throwbar serve` stand for.

use crate::admin::{self, Address, Auth};
use crate::app::{Seed, Start};
use crate::cli::client::{ADMIN_DEFAULT, DATA_DEFAULT, parse_address};
use crate::cli::{Ended, Exit, map, number, read_text};
use crate::config::Config;
use crate::plugin::{Access, PluginConfig, PluginLimits, Source};
use crate::proxy::access_log::Sink;
use crate::proxy::{Handler, OnFailure, RouteConfig, matcher::Matcher};
use crate::store::{BackendKind, BucketConfig, ValueKind};
use crate::worker::WORKERS_MAX;
use clap::builder::NonEmptyStringValueParser;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The bucket, and the plugin, of a proxy without a config.
pub(in crate::cli) const BUCKET: &str = "upstreams";
pub(in crate::cli) const PLUGIN: &str = "by-header";
const LISTEN_DEFAULT: &str = "127.0.0.1:8080";
/// The largest map file.
const MAP_BYTES_MAX: u64 = 1 << 30;
/// Bad lines of a map file that are shown.
const PROBLEMS_SHOWN: usize = 20;

/// What stands in for a config.
#[derive(Debug, clap::Args)]
#[group(id = "inline", multiple = true)]
#[command(next_help_heading = "Without a config")]
pub(super) struct Inline {
    /// Where clients connect: IP:PORT, or :PORT for all interfaces [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = parse_listen)]
    listen: Vec<SocketAddr>,
    /// An entry of the map: requests for ID go to HOST, or HOST:PORT
    #[arg(long, value_name = "ID=HOST", value_parser = map::parse_entry)]
    map: Vec<(String, String)>,
    /// A file with an entry `ID HOST` on each line; `#` begins a comment line. --map goes before it
    #[arg(long, value_name = "FILE")]
    map_file: Vec<PathBuf>,
    /// The request header that holds the ID [default: X-ID]
    #[arg(long, value_name = "HEADER", value_parser = parse_header)]
    by_header: Option<String>,
    /// The request header that holds the port; `none` takes the ports of the map [default: X-Port]
    #[arg(long, value_name = "HEADER", value_parser = parse_header)]
    port_header: Option<String>,
    /// Where the admin API listens: IP:PORT or unix:PATH [default: 127.0.0.1:2019]
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    admin: Option<Address>,
    /// Who may use the admin API; `none` on loopback and Unix sockets only
    #[arg(long, value_name = "WHO", value_enum)]
    admin_auth: Option<AdminAuth>,
    /// Keep map, plugin versions and token here; without it the map is in memory, the rest in ./throwbar-data
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Threads that serve requests [default: one per core]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = number::whole::<u16>(1, WORKERS_MAX as u64))]
    workers: Option<u16>,
    /// A line for each request: `stdout`, `off` or a file [default: stdout]
    #[arg(long, value_name = "WHERE", value_parser = NonEmptyStringValueParser::new())]
    access_log: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AdminAuth {
    /// Whoever has the token in DIR/admin.token
    Token,
    /// Everyone who can connect
    None,
}

/// Reads where to listen.
pub(in crate::cli) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    const EXPECTED: &str = "expected IP:PORT such as 127.0.0.1:8080, or :PORT for all interfaces";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
    let port = number::port(port, EXPECTED)?;
    match host {
        "" => Ok((Ipv4Addr::UNSPECIFIED, port).into()),
        "localhost" => Ok((Ipv4Addr::LOCALHOST, port).into()),
        _ => Err(EXPECTED.to_owned()),
    }
}

fn parse_header(text: &str) -> Result<String, String> {
    http::HeaderName::try_from(text)
        .map(|_| text.to_owned())
        .map_err(|_| "expected the name of a header such as X-ID".to_owned())
}

/// What is to be started.
///
/// # Errors
/// If a map file cannot be read or is wrong, or the admin API would be open to everyone.
pub(super) fn from_flags(flags: Inline) -> anyhow::Result<Start> {
    let mut seed: Vec<Seed> = Vec::new();
    let mut problems = Vec::new();
    // By ID, the file it is in.
    let mut from = BTreeMap::new();
    for file in &flags.map_file {
        let name = file.display().to_string();
        let refused =
            |why: String| Ended::error(Exit::ConfigInvalid, format!("map file {name}: {why}"));
        let found = std::fs::metadata(file).map_err(|error| refused(error.to_string()))?;
        if found.len() > MAP_BYTES_MAX {
            let why = "is larger than 1 GiB: import it with `throwbar kv import`";
            return Err(refused(why.to_owned()));
        }
        let text = read_text(file).map_err(|error| refused(error.to_string()))?;
        match map::parse_file(&text, &name) {
            Ok(entries) => {
                for (id, host) in entries {
                    match from.insert(id.clone(), name.clone()) {
                        Some(first) => problems.push(format!(
                            "{name}: ID {id:?} is in {first} already, expected in one of them"
                        )),
                        None => seed.push(entry(id, host)),
                    }
                }
            }
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        let more = problems.len().saturating_sub(PROBLEMS_SHOWN);
        problems.truncate(PROBLEMS_SHOWN);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        return Err(Ended::error(
            Exit::ConfigInvalid,
            format!("map is invalid\n  {}", problems.join("\n  ")),
        ));
    }
    let mut seen = BTreeMap::new();
    for (id, host) in &flags.map {
        if let Some(first) = seen.insert(id, host) {
            let why = format!("--map: ID {id:?} is given twice, as {id}={first} and {id}={host}");
            return Err(Ended::error(Exit::Usage, why));
        }
    }
    seed.extend(flags.map.into_iter().map(|(k, v)| entry(k, v)));

    let port_header = match flags.port_header {
        Some(name) if name == "none" => String::new(),
        Some(name) => name,
        None => "X-Port".to_owned(),
    };
    let mut config = by_header(
        flags.by_header.as_deref().unwrap_or("X-ID"),
        &port_header,
        match flags.data {
            Some(_) => BackendKind::Embedded,
            None => BackendKind::Memory,
        },
    );
    config.data = flags.data.unwrap_or_else(|| DATA_DEFAULT.into());
    config.listeners = listeners(if flags.listen.is_empty() {
        vec![LISTEN_DEFAULT.parse().expect("the default is an address")]
    } else {
        flags.listen
    });
    config.admin = admin::Config {
        listen: flags
            .admin
            .unwrap_or_else(|| parse_address(ADMIN_DEFAULT).expect("the default is an address")),
        auth: match flags.admin_auth {
            Some(AdminAuth::None) => Auth::None,
            Some(AdminAuth::Token) | None => Auth::Token,
        },
        ..admin::Config::default()
    };
    if let (Auth::None, Address::Tcp(address)) = (config.admin.auth, &config.admin.listen)
        && !address.ip().is_loopback()
    {
        return Err(Ended::error(
            Exit::Usage,
            format!(
                "--admin-auth none: the admin API listens on {address}, expected a loopback address or unix:PATH"
            ),
        ));
    }
    if let Some(workers) = flags.workers {
        config.workers = workers.into();
    }
    config.log.access = match flags.access_log.as_deref() {
        None | Some("stdout") => Sink::Stdout,
        Some("off") => Sink::Off,
        Some(file) => Sink::File(file.into()),
    };
    Ok(Start::new(config, seed))
}

fn entry(key: String, value: String) -> Seed {
    Seed {
        bucket: BUCKET.to_owned(),
        key,
        value,
    }
}

/// Listeners with names of their own.
pub(in crate::cli) fn listeners(addresses: Vec<SocketAddr>) -> Vec<crate::listener::Config> {
    addresses
        .into_iter()
        .enumerate()
        .map(|(i, address)| crate::listener::Config {
            name: if i == 0 {
                "web".to_owned()
            } else {
                format!("web-{}", i + 1)
            },
            address,
            http1: true,
            h2c: true,
        })
        .collect()
}

/// A config that routes everything by one header through the built-in plugin; listeners are missing still.
pub(in crate::cli) fn by_header(header: &str, port_header: &str, backend: BackendKind) -> Config {
    Config {
        buckets: vec![BucketConfig::new(BUCKET, backend, ValueKind::Endpoint)],
        plugins: vec![PluginConfig {
            name: PLUGIN.to_owned(),
            source: Source::Builtin(PLUGIN.to_owned()),
            grants: BTreeMap::from([(BUCKET.to_owned(), Access::Read)]),
            settings: BTreeMap::from([
                ("bucket".to_owned(), BUCKET.to_owned()),
                ("header".to_owned(), header.to_owned()),
                ("port-header".to_owned(), port_header.to_owned()),
            ]),
            limits: PluginLimits::default(),
            sessions: Default::default(),
            versions: Default::default(),
        }],
        routes: vec![RouteConfig {
            name: PLUGIN.to_owned(),
            matcher: Matcher::default(),
            handler: Handler::Plugin {
                plugin: PLUGIN.to_owned(),
                on_failure: OnFailure::default(),
            },
            streams: Default::default(),
        }],
        // Who comes from Caddy has this id in his scripts.
        caddy_ids: BTreeMap::from([("proxy-map".to_owned(), BUCKET.to_owned())]),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Args;
    use super::*;
    use clap::Parser;
    use std::path::Path;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &[&str]) -> Result<Inline, clap::Error> {
        Line::try_parse_from(std::iter::once(&"serve").chain(arguments))
            .map(|line| line.args.inline)
    }

    #[test]
    fn flags_alone_make_a_whole_config() {
        let flags = parse(&[
            "--listen",
            ":8081",
            "--listen",
            "127.0.0.1:0",
            "--map",
            "id1=127.0.0.2",
            "--by-header",
            "X-Agent",
            "--port-header",
            "none",
            "--workers",
            "3",
            "--access-log",
            "off",
            "--admin",
            "unix:a.sock",
            "--admin-auth",
            "none",
        ])
        .expect("valid flags");
        let start = from_flags(flags).expect("a config");
        let config = start.config;
        assert_eq!(config.workers, 3);
        assert_eq!(config.listeners.len(), 2);
        assert_eq!(config.listeners[0].address.to_string(), "0.0.0.0:8081");
        assert_ne!(config.listeners[0].name, config.listeners[1].name);
        assert_eq!(config.admin.auth, Auth::None);
        assert_eq!(config.admin.listen, Address::Unix("a.sock".into()));
        assert_eq!(config.log.access, Sink::Off);
        assert_eq!(config.buckets[0].backend, BackendKind::Memory);
        assert_eq!(config.plugins[0].settings["header"], "X-Agent");
        assert_eq!(config.plugins[0].settings["port-header"], "");
        assert_eq!(start.seed.len(), 1);
    }

    #[test]
    fn a_data_directory_makes_the_map_durable() {
        let flags = parse(&["--data", "d"]).expect("valid flags");
        let config = from_flags(flags).expect("a config").config;
        assert_eq!(config.buckets[0].backend, BackendKind::Embedded);
        assert_eq!(config.data, Path::new("d"));
        assert_eq!(config.listeners[0].address.to_string(), LISTEN_DEFAULT);
    }

    #[test]
    fn an_open_admin_api_is_refused_off_loopback() {
        let flags = parse(&["--admin", "0.0.0.0:2019", "--admin-auth", "none"]).expect("flags");
        let error = from_flags(flags).err().expect("refused");
        assert_eq!(crate::cli::exit_of(&error), Exit::Usage);
    }

    #[test]
    fn a_bad_map_file_ends_with_the_code_of_a_bad_config() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "id1\n").expect("write");
        let path = file.path().to_str().expect("text");
        let error = from_flags(parse(&["--map-file", path]).expect("flags"))
            .err()
            .expect("refused");
        assert_eq!(crate::cli::exit_of(&error), Exit::ConfigInvalid);
        assert!(error.to_string().contains(":1: "), "{error}");
    }

    #[test]
    fn an_id_is_given_once_and_an_option_goes_before_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.to_str().expect("text").to_owned()
        };
        let (one, two) = (file("one", "a 10.0.0.1\n"), file("two", "a 10.0.0.2\n"));
        let start = |arguments: &[&str]| from_flags(parse(arguments).expect("flags"));
        let twice = start(&["--map", "a=10.0.0.1", "--map", "a=10.0.0.2"]).err();
        let twice = twice.expect("refused");
        assert_eq!(crate::cli::exit_of(&twice), Exit::Usage);
        assert!(
            twice.to_string().contains("a=10.0.0.1 and a=10.0.0.2"),
            "{twice}"
        );
        let both = start(&["--map-file", &one, "--map-file", &two]).err();
        let both = both.expect("refused");
        assert_eq!(crate::cli::exit_of(&both), Exit::ConfigInvalid);
        assert!(both.to_string().contains(&one), "{both}");
        let over = start(&["--map-file", &one, "--map", "a=10.0.0.3"]).expect("a config");
        assert_eq!(over.seed.last().expect("an entry").value, "10.0.0.3");
    }

    #[test]
    fn wrong_values_are_refused_with_what_was_expected() {
        for (arguments, expected) in [
            (["--listen", "8080"], "expected IP:PORT"),
            (["--map", "id1"], "ID=HOST"),
            (["--by-header", "X ID"], "name of a header"),
            (["--admin", "unix:"], "path is missing"),
            (["--workers", "0"], "expected a whole number from 1 to 256"),
            (["--listen", "127.0.0.1:99999"], "99999 is no port"),
            (["--admin", "127.0.0.1:99999"], "99999 is no port"),
        ] {
            let error = parse(&arguments).expect_err("refused").to_string();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }
}
