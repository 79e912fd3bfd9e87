//! Stand-in.

/// Arguments of `echo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  throwbar echo")]
pub struct Args {}

/// Stand-in.
pub fn run(_args: Args) -> anyhow::Result<()> {
    Ok(())
}
