//! `throwbar echo`: a server to try things out with.

use anyhow::Context as _;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Answers with what it received, HTTP and WebSocket: an upstream to try things out with
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar echo
  throwbar echo --listen 127.0.0.2:9000")]
pub struct Args {
    /// Where to listen; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000", value_parser = super::serve::parse_listen)]
    pub listen: SocketAddr,
}

/// Serves until Ctrl-C.
///
/// # Errors
/// The address cannot be listened on.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen: cannot listen on {}", args.listen))?;
    let address = listener.local_addr().context("no address to listen on")?;
    println!(
        "echo listens on {address}   try: curl http://{address}/any/path   or: websocat ws://{address}/   stop: Ctrl-C"
    );
    tokio::select! {
        ended = crate::echo::serve(listener, address.to_string()) => match ended? {},
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for Ctrl-C"),
    }
}
