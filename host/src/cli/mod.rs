//! The command line: arguments in, exit code out; one file per command.
//!
//! `serve`, `check`, `demo`, `import` and `echo` do their work in this process, but for compiling: for that they start this
//! program once more, with `compile-component`. `plugin`, `kv`, `fleet`, `streams` and `top` are clients of a
//! running proxy's admin API. Exit codes are [`Exit`].

use crate::plugin::{DeployError, confined};
use clap::{Parser, Subcommand};
use client::ClientError;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

mod check;
mod client;
mod compile_component;
mod demo;
pub mod echo;
mod fleet;
mod import;
mod kv;
mod logging;
mod map;
mod number;
mod output;
mod plugin;
mod problem;
mod progress;
mod serve;
mod streams;
mod top;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It failed: not reachable, not found, a conflict, a claim of the demonstration that did not hold.
    Failed = 1,
    /// The arguments are wrong.
    Usage = 2,
    /// A file that was given cannot be read or is refused: the config, a map, what is imported, a component that is not there.
    ConfigInvalid = 3,
    /// The plugin was refused; what was active is active still.
    PluginRefused = 4,
    /// Two versions decide differently.
    Differs = 5,
}

/// An error that ends the process with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Ended {
    exit: Exit,
    message: String,
}

impl Ended {
    /// The error, for `?`.
    fn error(exit: Exit, message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self {
            exit,
            message: message.into(),
        })
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: not reachable, not found, a conflict
  2  wrong arguments
  3  a file cannot be read or is refused: config, map, import
  4  plugin refused; the active version serves on
  5  versions decide differently

Environment:
  THROWBAR_ADMIN  address of the admin API, as --admin
  THROWBAR_TOKEN  its token, in place of a token file
  THROWBAR_LOG    what is logged on standard error, as --log-level
  NO_COLOR        no colours";

const EXAMPLES: &str = "\
Examples:
  throwbar demo                                       see what it does, on this machine only
  throwbar serve --map id1=127.0.0.2                  route by the header X-ID, no file needed
  throwbar serve throwbar.toml                        the same from a config
  throwbar kv set upstreams id1=127.0.0.3             change the map; closes nothing
  throwbar plugin push by-header router.wasm          replace the routing code; closes nothing
";

/// A reverse proxy whose routing is a WebAssembly component.
///
/// Plugin, map and config change while traffic flows: a change takes effect for the next request and never touches a
/// stream that is open.
#[derive(Debug, Parser)]
#[command(name = "throwbar", version, max_term_width = 100)]
#[command(after_help = format!("{EXAMPLES}\n{EXIT_CODES}"))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Serve(serve::Args),
    /// Check a config and the plugins it names; binds nothing
    Check(check::Args),
    /// Show on this machine what the proxy does: map change, plugin swap, a WebSocket that stays open
    Demo(demo::Args),
    /// Answer HTTP and WebSocket with what was sent, for trying things out
    Echo(echo::Args),
    /// Push, list, roll back and inspect plugins
    Plugin(plugin::Args),
    /// Read and change the buckets of the store
    Kv(kv::Args),
    /// Show the nodes of a fleet and whether each has what they agreed on, or forget a plugin that none has
    Fleet(fleet::Args),
    /// Make a config and a filled bucket of another proxy's config; `kv import` fills a bucket of this one
    Import(import::Args),
    /// List and close open streams
    Streams(streams::Args),
    /// Watch requests, decisions, streams and map changes, second by second
    Top(top::Args),
    /// Compile a component, for the proxy that starts it: no command for people
    #[command(name = confined::COMMAND, hide = true)]
    CompileComponent(compile_component::Args),
}

/// Runs the command the arguments name.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => check::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Echo(args) => block_on(echo::run(args)),
        Command::Plugin(args) => block_on(plugin::run(args)),
        Command::Kv(args) => block_on(kv::run(args)),
        Command::Fleet(args) => block_on(fleet::run(args)),
        Command::Import(args) => block_on(import::run(args)),
        Command::Streams(args) => block_on(streams::run(args)),
        Command::Top(args) => block_on(top::run(args)),
        Command::CompileComponent(args) => return compile_component::run(args),
    };
    let exit = match result {
        Ok(()) => Exit::Ok,
        // Whoever read our output has had enough: `throwbar kv export … | head` has not failed.
        Err(error) if error.is::<output::Closed>() => Exit::Ok,
        Err(error) => {
            // Standard error closed: there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            exit_of(&error)
        }
    };
    ExitCode::from(exit as u8)
}

/// The exit code an error stands for.
fn exit_of(error: &anyhow::Error) -> Exit {
    error
        .chain()
        .find_map(|cause| match cause.downcast_ref::<Ended>() {
            Some(ended) => Some(ended.exit),
            None => match cause.downcast_ref::<ClientError>() {
                // What the proxy cannot make sense of comes from the arguments.
                Some(ClientError::Problem(problem)) if problem.status == 400 => Some(Exit::Usage),
                _ => cause.is::<DeployError>().then_some(Exit::PluginRefused),
            },
        })
        .unwrap_or(Exit::Failed)
}

/// Reads a file of text.
fn read_text(file: &Path) -> std::io::Result<String> {
    use std::io::{Error, ErrorKind};
    std::fs::read_to_string(file).map_err(|error| match error.kind() {
        ErrorKind::InvalidData => Error::new(ErrorKind::InvalidData, "is not text in UTF-8"),
        _ => error,
    })
}

/// This program as it was called, for commands that are shown to be copied.
fn program() -> String {
    std::env::args()
        .next()
        .unwrap_or_else(|| "throwbar".to_owned())
}

/// Runs a client command on this thread.
fn block_on(command: impl std::future::Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_of_the_arguments_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_exit_code_is_in_the_help() {
        for exit in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::ConfigInvalid,
            Exit::PluginRefused,
            Exit::Differs,
        ] {
            let line = format!("\n  {}  ", exit as u8);
            assert!(EXIT_CODES.contains(&line), "{exit:?}");
        }
    }

    #[test]
    fn an_error_keeps_its_exit_code_under_added_context() {
        let error = Ended::error(Exit::PluginRefused, "not a component").context("plugin \"x\"");
        assert_eq!(exit_of(&error), Exit::PluginRefused);
        let refused = anyhow::Error::new(DeployError::Init("no".to_owned()));
        assert_eq!(
            exit_of(&refused.context("plugin \"x\"")),
            Exit::PluginRefused
        );
        assert_eq!(exit_of(&anyhow::anyhow!("other")), Exit::Failed);
    }

    #[test]
    fn wrong_arguments_are_usage_errors() {
        let error = Cli::try_parse_from(["throwbar", "serve", "a.toml", "--map", "a=b"])
            .expect_err("a file and flags exclude each other");
        assert_eq!(error.exit_code(), Exit::Usage as i32);
    }

    #[test]
    fn every_command_has_examples() {
        fn examine(command: &clap::Command, path: &str) {
            for inner in command.get_subcommands() {
                let path = format!("{path} {}", inner.get_name());
                let help = inner.get_after_help().map(|h| h.to_string());
                assert!(
                    help.is_some_and(|h| h.contains("throwbar ")),
                    "{path} has no example"
                );
                examine(inner, &path);
            }
        }
        examine(&Cli::command(), "throwbar");
    }
}
