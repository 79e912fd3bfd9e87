//! `throwbar demo`: the promise kept before your eyes. A WebSocket stays open while the map changes and the routing
//! code is replaced and put back; every claim is checked, the first that does not hold ends it with an error.

mod directory;
mod screen;
mod steps;
mod traffic;
mod upstreams;
mod websocket;

use super::logging;
use super::serve::{self, BUCKET};
use crate::admin::{self, Address};
use crate::app::{self, Seed, Start};
use crate::plugin::Access;
use crate::proxy::access_log::{self, Sink};
use crate::store::BackendKind;
use anyhow::Context;
use directory::Directory;
use screen::Screen;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;
use steps::Demo;
use upstreams::Upstreams;

/// The built-in plugin that takes the place of the first one: it routes as that does, and lets agents keep the map.
const NEXT_PLUGIN: &str = "self-register";
const LISTEN_PREFERRED: &str = "127.0.0.1:8080";
const ADMIN_PREFERRED: &str = "127.0.0.1:2019";
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar demo             show everything, then go on serving until Ctrl-C
  throwbar demo --once      show everything, then end: 0 if every claim held

Nothing leaves this machine: everything listens on loopback, and its data is deleted at the end.")]
pub(crate) struct Args {
    /// End after the demonstration
    #[arg(long)]
    once: bool,
    /// Where the proxy listens [default: 127.0.0.1:8080 if that is free, else any free port]
    #[arg(long, value_name = "ADDR", value_parser = serve::parse_listen)]
    listen: Option<SocketAddr>,
    /// What is logged on standard error [default: $THROWBAR_LOG, else warn]
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

/// Runs the demonstration.
///
/// # Errors
/// The first claim that does not hold, or what could not be started.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let quiet = access_log::Config {
        level: Some("warn".to_owned()),
        ..access_log::Config::default()
    };
    let log = logging::start(args.log_level, &quiet)?;
    let upstreams = Upstreams::start()?;
    let data = Directory::new()?;
    let listen = args.listen.unwrap_or_else(|| free(LISTEN_PREFERRED));
    let mut start = start_of(listen, data.path(), &upstreams)?;
    start.log_dropped = Some(log.dropped.clone());
    start.audit_losses = log.audit_losses.clone();
    let app = app::start(start).context("start the demonstration's proxy")?;
    data.await_signals();
    let demo = Demo::of(&app, data.path(), &upstreams)?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut screen = Screen::stdout();
    let shown = tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            shown = demo.show(&mut screen) => shown.map(|()| true),
            () = data.interrupted() => Ok(false),
        }
    });
    let result = match shown {
        Ok(true) if args.once => Ok(()),
        Ok(true) => {
            let invited = demo.invite(&mut screen);
            if invited.is_ok() {
                runtime.block_on(data.interrupted());
            }
            invited
        }
        Ok(false) => Err(anyhow::anyhow!("interrupted")),
        Err(error) => Err(error),
    };
    drop(runtime);
    app.stop(STOP_GRACE);
    result
}

/// The preferred address, or any port of its host if that one is taken.
fn free(preferred: &str) -> SocketAddr {
    let mut address: SocketAddr = preferred.parse().expect("a constant that parses");
    if TcpListener::bind(address).is_err() {
        address.set_port(0);
    }
    address
}

fn start_of(
    listen: SocketAddr,
    data: &std::path::Path,
    upstreams: &Upstreams,
) -> anyhow::Result<Start> {
    let mut config = serve::by_header("X-ID", "X-Port", BackendKind::Embedded);
    config.data = data.to_owned();
    config.listeners = serve::listeners(vec![listen]);
    config.admin = admin::Config {
        listen: Address::Tcp(free(ADMIN_PREFERRED)),
        ..admin::Config::default()
    };
    config.log.access = Sink::Off;
    config.streams.shutdown_grace = STOP_GRACE;
    let plugin = &mut config.plugins[0];
    // What the second version needs: it keeps the map for agents that know the secret.
    plugin.grants.insert(BUCKET.to_owned(), Access::Write);
    plugin.settings.insert("secret".to_owned(), secret()?);
    let seed = ["id1", "id2"]
        .iter()
        .zip(upstreams.addresses)
        .map(|(key, address)| Seed {
            bucket: BUCKET.to_owned(),
            key: (*key).to_owned(),
            value: address.ip().to_string(),
        })
        .collect();
    Ok(Start::new(config, seed))
}

fn secret() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("random numbers: {e}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::builtin;

    #[test]
    fn a_preferred_address_that_is_taken_gives_any_port_of_its_host() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = taken.local_addr().expect("bound");
        assert_eq!(free(&address.to_string()).to_string(), "127.0.0.1:0");
    }

    #[test]
    fn the_config_suits_both_versions_of_the_plugin() {
        let upstreams = Upstreams::start().expect("upstreams on loopback");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let start = start_of(listen, std::path::Path::new("d"), &upstreams).expect("a start");
        let plugin = &start.config.plugins[0];
        assert_eq!(plugin.grants[BUCKET], Access::Write);
        assert!(plugin.settings["secret"].len() >= 16);
        assert_eq!(start.seed.len(), 2);
        assert!(builtin::component(NEXT_PLUGIN).is_some());
    }
}
