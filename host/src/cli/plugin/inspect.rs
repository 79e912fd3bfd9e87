//! `throwbar plugin inspect`: a plugin of the proxy in short, or what a component file asks for.

use super::table_of;
use crate::cli::client::{Client, ClientError, Connect, encode};
use crate::cli::output::{self, Out};
use crate::cli::{Ended, Exit};
use anyhow::Context;
use serde_json::{Value, json};
use std::path::Path;

/// Runs the command.
///
/// # Errors
/// If there is no such file, it is no component, or the proxy does not know the plugin.
pub(super) async fn run(connect: Connect, subject: &str, json: bool) -> anyhow::Result<()> {
    let file = Path::new(subject);
    let refused = |why: &str| {
        Err(Ended::error(
            Exit::ConfigInvalid,
            format!("{subject}: {why}"),
        ))
    };
    if file.is_dir() {
        return refused("is a directory, expected a component (.wasm) or the name of a plugin");
    }
    if file.is_file() {
        return inspect_file(file, json);
    }
    // A path cannot be a plugin's name, so there is nobody to ask about it.
    if subject.contains(['/', '\\']) || subject.ends_with(".wasm") {
        return refused("no such file");
    }
    match inspect_plugin(&connect.client()?, subject, json).await {
        Err(error) if is_unknown(&error) => Err(Ended::error(
            Exit::Failed,
            format!("no file and no plugin {subject:?}"),
        )),
        done => done,
    }
}

fn is_unknown(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::Problem(problem)) if problem.status == 404)
}

async fn inspect_plugin(client: &Client, name: &str, json: bool) -> anyhow::Result<()> {
    let path = format!("/v1/plugins/{}", encode(name));
    let answer: Value = client.get(&path).await?.json()?;
    let mut out = Out::stdout();
    if json {
        out.json(&answer)?;
        return out.flush();
    }
    table_of(std::slice::from_ref(&answer))?.print(&mut out)?;
    if let Some(grants) = answer["grants"].as_object().filter(|g| !g.is_empty()) {
        let grants: Vec<String> = grants
            .iter()
            .map(|(bucket, access)| format!("{bucket} ({})", access.as_str().unwrap_or("-")))
            .collect();
        out.line(format_args!(
            "\nbuckets it may use: {}",
            output::printable(&grants.join(", "))
        ))?;
    }
    out.flush()
}

/// What a component file is and asks for.
fn inspect_file(file: &Path, json: bool) -> anyhow::Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("{}", file.display()))?;
    let report = crate::plugin::inspect::inspect(&bytes).map_err(|error| {
        Ended::error(Exit::PluginRefused, format!("{}: {error}", file.display()))
    })?;
    let mut out = Out::stdout();
    if json {
        out.json(&json!({
            "file": file,
            "bytes": bytes.len(),
            "digest": report.digest,
            "imports": { "yours": report.imports, "std": report.imports_of_std },
            "exports": report.exports,
        }))?;
        return out.flush();
    }
    out.line(format_args!(
        "{}   {}   version {}",
        file.display(),
        output::size(bytes.len() as u64),
        output::short(&report.digest)
    ))?;
    for (title, names) in [
        ("exports", &report.exports),
        ("asked for by you", &report.imports),
        (
            "asked for by std (nothing is granted)",
            &report.imports_of_std,
        ),
    ] {
        out.line(format_args!("\n{title}:"))?;
        if names.is_empty() {
            out.line("  none")?;
        }
        for name in names {
            out.line(format_args!("  {}", output::printable(name)))?;
        }
    }
    out.flush()
}
