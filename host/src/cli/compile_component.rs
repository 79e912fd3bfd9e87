//! `throwbar compile-component`: the process in which a proxy compiles one component; no command for people.

use crate::plugin::CompileBounds;
use crate::plugin::confined::{self, Order};
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `compile-component`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Standard input is the component, standard output the code for the engine of the proxy that starts this:
  throwbar compile-component --parent=PID --engine=ID --cpu-seconds=10 --memory-bytes=536870912")]
pub(crate) struct Args {
    /// The process that started this one; it ends with it
    #[arg(long, value_name = "PID")]
    parent: i32,
    /// What the code has to fit
    #[arg(long, value_name = "ID")]
    engine: String,
    /// Seconds on a core
    #[arg(long, value_name = "SECONDS")]
    cpu_seconds: u64,
    /// Bytes of memory
    #[arg(long, value_name = "BYTES")]
    memory_bytes: u64,
}

/// Compiles; the exit code says how that went.
pub(crate) fn run(args: Args) -> ExitCode {
    let order = Order {
        parent: args.parent,
        engine: args.engine,
        bounds: CompileBounds {
            cpu: Duration::from_secs(args.cpu_seconds),
            memory_bytes: args.memory_bytes,
        },
    };
    ExitCode::from(confined::compile(&order) as u8)
}
