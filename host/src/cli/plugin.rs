//! `throwbar plugin`: push, list, roll back and inspect plugins, and try versions beside the active one.

use super::client::{Client, ClientError, Connect, encode, with_query};
use super::output::{self, Out};
use super::{Ended, Exit};
use clap::Subcommand;
use http::Method;
use http_body_util::Empty;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod inspect;
mod report;
mod rollout;
mod with;

pub(crate) use report::Deployed;
use report::{report, table_of};

/// Arguments of `plugin`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  throwbar plugin ls
  throwbar plugin push by-header router.wasm
  throwbar plugin canary by-header --file router.wasm --percent 5 --by header:x-id
  throwbar plugin rollback by-header")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a component the active version of a plugin; open streams stay with the version that accepted them
    #[command(after_help = "\
Examples:
  throwbar plugin push by-header router.wasm
  throwbar plugin push by-header router.wasm --dry-run    compile and try it, change nothing
  throwbar plugin push by-header router.wasm --with writes.json
                                                          {\"BUCKET\": {\"set\": {\"KEY\": \"VALUE\"}}}, in the same moment")]
    Push {
        /// The plugin's name in the config
        name: String,
        /// The component (.wasm)
        file: PathBuf,
        /// Writes that belong to it (JSON): no request sees one without the other; in a fleet, to buckets of its backend
        #[arg(long, value_name = "FILE")]
        with: Option<PathBuf>,
        /// Check only; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Also if the guard took the version back before, or its migration fails: then on the data as they are
        #[arg(long)]
        force: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// List plugins with their versions
    #[command(after_help = "Example:\n  throwbar plugin ls --json")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the version that was active before the active one again
    #[command(after_help = "Example:\n  throwbar plugin rollback by-header")]
    Rollback {
        /// The plugin's name
        name: String,
        /// Check only; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Also if its migration fails: then on the data as they are
        #[arg(long)]
        force: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a kept version the active one
    #[command(after_help = "\
Examples:
  throwbar plugin activate by-header 10a028062eb9
  throwbar plugin activate by-header 10a028062eb9 --with writes.json")]
    Activate {
        /// The plugin's name
        name: String,
        /// The first digits of the version's digest
        version: String,
        /// Writes that belong to it (JSON), as for `push`
        #[arg(long, value_name = "FILE")]
        with: Option<PathBuf>,
        /// Check only; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Also if the guard took the version back before
        #[arg(long)]
        force: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one plugin's versions in full: errors by kind, decision times, memory, why one failed
    #[command(after_help = "Example:\n  throwbar plugin show by-header")]
    Show {
        /// The plugin's name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a version decide a share of the requests, the same IDs always
    #[command(after_help = "\
Examples:
  throwbar plugin canary by-header --file router.wasm --percent 5 --by header:x-id
  throwbar plugin canary by-header --percent 25    the IDs it had and more
  throwbar plugin canary by-header                 show it
  throwbar plugin canary by-header promote")]
    Canary(rollout::Canary),
    /// Compare what a version would decide with what the active one does, on live requests, acting on nothing
    #[command(after_help = "\
Examples:
  throwbar plugin shadow by-header router.wasm --sample 0.1
  throwbar plugin shadow by-header show
  throwbar plugin shadow by-header off")]
    Shadow(rollout::Shadow),
    /// Remove a version that is not in use from disk and from every list
    #[command(after_help = "Example:\n  throwbar plugin forget by-header 10a028062eb9")]
    Forget {
        /// The plugin's name
        name: String,
        /// The first digits of the version's digest
        version: String,
        /// Also if a rollback would activate it, or streams of it are open
        #[arg(long)]
        force: bool,
        /// Print what was done as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one plugin of the proxy, or what a component file asks for (needs no proxy)
    #[command(after_help = "\
Examples:
  throwbar plugin inspect by-header
  throwbar plugin inspect target/wasm32-wasip2/release/router.wasm")]
    Inspect {
        /// A plugin's name, or a file
        #[arg(value_name = "NAME-OR-FILE")]
        subject: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

const UNCHANGED: &str = "nothing changed: the active version serves on";

/// Runs the command.
///
/// # Errors
/// If the proxy cannot be reached or refuses.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Push {
            name,
            file,
            with: Some(writes),
            dry_run,
            force,
            json,
        } => {
            let client = args.connect.client()?;
            let wanted = with::Wanted::Component(&file);
            let answer = with::activate(&client, &name, wanted, &writes, (dry_run, force)).await?;
            report(&answer, dry_run, json)
        }
        Command::Push {
            name,
            file,
            with: None,
            dry_run,
            force,
            json,
        } => {
            let client = args.connect.client()?;
            let flag = |set: bool| set.then(|| "true".to_owned());
            let query = [("dry_run", flag(dry_run)), ("force", flag(force))];
            let path = with_query(format!("/v1/plugins/{}", encode(&name)), &query);
            let answer = push_to(&client, &path, &file).await?;
            report(&answer, dry_run, json)
        }
        Command::Rollback {
            name,
            dry_run,
            force,
            json,
        } => {
            let client = args.connect.client()?;
            let answer = rollback(&client, &name, dry_run, force).await?;
            report(&answer, dry_run, json)
        }
        Command::Ls { json } => {
            let answer: Value = args.connect.client()?.get("/v1/plugins").await?.json()?;
            let mut out = Out::stdout();
            if json {
                out.json(&answer)?;
            } else {
                table_of(super::kv::listed(&answer, "plugins"))?.print(&mut out)?;
            }
            out.flush()
        }
        Command::Activate {
            name,
            version,
            with,
            dry_run,
            force,
            json,
        } => {
            let client = args.connect.client()?;
            let answer = match with {
                Some(writes) => {
                    let wanted = with::Wanted::Version(&version);
                    with::activate(&client, &name, wanted, &writes, (dry_run, force)).await?
                }
                None => rollout::activate(&client, &name, &version, (dry_run, force)).await?,
            };
            report(&answer, dry_run, json)
        }
        Command::Show { name, json } => rollout::show(&args.connect.client()?, &name, json).await,
        Command::Canary(canary) => rollout::canary(&args.connect.client()?, canary).await,
        Command::Shadow(shadow) => rollout::shadow(&args.connect.client()?, shadow).await,
        Command::Forget {
            name,
            version,
            force,
            json,
        } => rollout::forget(&args.connect.client()?, &name, &version, force, json).await,
        Command::Inspect { subject, json } => inspect::run(args.connect, &subject, json).await,
    }
}

/// Uploads a component as the new version of a plugin.
///
/// # Errors
/// See [`ClientError`].
pub(crate) async fn push(
    client: &Client,
    name: &str,
    component: Vec<u8>,
    dry_run: bool,
) -> Result<Value, ClientError> {
    let path = with_query(
        format!("/v1/plugins/{}", encode(name)),
        &[("dry_run", dry_run.then(|| "true".to_owned()))],
    );
    let answer = client
        .upload(
            Method::PUT,
            &path,
            "application/wasm",
            component,
            "compiling",
        )
        .await?;
    answer.json().map_err(|e| client.broken(e))
}

/// Uploads a component's file to a path.
async fn push_to(client: &Client, path: &str, file: &Path) -> anyhow::Result<Value> {
    let component = read_component(file)?;
    let bytes = component.len();
    let upload = client.upload(
        Method::PUT,
        path,
        "application/wasm",
        component,
        "compiling",
    );
    let answer = upload.await.map_err(|error| refused(error, file, bytes))?;
    answer.json()
}

fn read_component(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file)
        .map_err(|error| Ended::error(Exit::ConfigInvalid, format!("{}: {error}", file.display())))
}

/// Activates the version before.
///
/// # Errors
/// See [`ClientError`].
pub(crate) async fn rollback(
    client: &Client,
    name: &str,
    dry_run: bool,
    force: bool,
) -> Result<Value, ClientError> {
    let flag = |set: bool| set.then(|| "true".to_owned());
    let path = with_query(
        format!("/v1/plugins/{}/rollback", encode(name)),
        &[("dry_run", flag(dry_run)), ("force", flag(force))],
    );
    let timeout = Some(Duration::from_secs(180));
    let answer = client
        .send(Method::POST, &path, &[], Empty::new(), timeout)
        .await?;
    answer.json().map_err(|e| client.broken(e))
}

/// An error of a push with its exit code: a refusal of the component is not a failure to reach anybody.
fn refused(error: ClientError, file: &Path, bytes: usize) -> anyhow::Error {
    let name = file.display();
    match error {
        ClientError::Problem(problem) if problem.status == 413 => {
            let bytes = output::size(bytes as u64);
            let text = format!("{name}: refused: {bytes}: {problem}\n  {UNCHANGED}");
            Ended::error(Exit::PluginRefused, text)
        }
        ClientError::Problem(problem) if matches!(problem.status, 400 | 415 | 422) => {
            let text = format!("{name}: refused: {problem}\n  {UNCHANGED}");
            Ended::error(Exit::PluginRefused, text)
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit_of;
    use crate::cli::problem::Problem;

    fn problem(status: u16) -> ClientError {
        ClientError::Problem(Problem {
            status,
            title: "not a component".to_owned(),
            ..Problem::default()
        })
    }

    #[test]
    fn a_refused_component_is_told_apart_from_other_failures() {
        let file = Path::new("x.wasm");
        for status in [400, 413, 415, 422] {
            let error = refused(problem(status), file, 1);
            assert_eq!(exit_of(&error), Exit::PluginRefused, "{status}");
            assert!(error.to_string().contains("x.wasm"), "{error}");
        }
        for status in [404, 409, 500] {
            assert_eq!(exit_of(&refused(problem(status), file, 1)), Exit::Failed);
        }
    }
}
