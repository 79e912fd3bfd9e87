//! `throwbar plugin push | activate --with`: a version and the writes that belong to it, in one moment.

use super::{UNCHANGED, read_component, refused};
use crate::admin::check_writes;
use crate::cli::client::{Client, ClientError, with_query};
use crate::cli::problem::Problem;
use crate::cli::{Ended, Exit, read_text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use std::path::Path;

/// What is to be active with the writes.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'w> {
    /// The component in a file.
    Component(&'w Path),
    /// A kept version, by the first digits of its digest.
    Version(&'w str),
}

/// Makes a version the active one in the moment of some writes, or only checks it, or does so whatever the guard has said of it.
///
/// # Errors
/// If a file cannot be read, or the proxy cannot be reached or refuses.
pub(super) async fn activate(
    client: &Client,
    name: &str,
    wanted: Wanted<'_>,
    writes: &Path,
    (dry_run, force): (bool, bool),
) -> anyhow::Result<Value> {
    let shown = writes.display();
    let invalid = |why: String| Ended::error(Exit::ConfigInvalid, format!("{shown}: {why}"));
    let text = read_text(writes).map_err(|error| invalid(error.to_string()))?;
    // A mark of the byte order is no part of it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    // The proxy takes them as part of a request, where places of this file mean nothing.
    let checked = check_writes(text);
    let writes: Value =
        serde_json::from_str(text).map_err(|error| invalid(format!("no JSON: {error}")))?;
    checked.map_err(|why| match writes.get("writes") {
        Some(_) => invalid(format!(
            "{why}\n  expected what is under \"writes\" in POST /v1/batch: {{\"BUCKET\": {{\"set\": {{\"KEY\": \"VALUE\"}}}}}}"
        )),
        None => invalid(why),
    })?;
    let mut activate = json!({ "plugin": name, "force": force });
    let mut bytes = 0;
    match wanted {
        Wanted::Component(file) => {
            let component = read_component(file)?;
            bytes = component.len();
            activate["component"] = json!({ "base64": STANDARD.encode(component) });
        }
        Wanted::Version(version) => activate["version"] = json!(version),
    }
    let body = json!({ "writes": writes, "activate": activate });
    let dry_run = dry_run.then(|| "true".to_owned());
    let path = with_query("/v1/batch".to_owned(), &[("dry_run", dry_run)]);
    let media_type = "application/json";
    let upload = client.upload(
        Method::POST,
        &path,
        media_type,
        body.to_string(),
        "compiling",
    );
    let answer = upload.await.map_err(|error| match error {
        ClientError::Problem(problem) if is_of_writes(&problem) => Ended::error(
            match problem.status {
                404 | 413 | 422 => Exit::ConfigInvalid,
                _ => Exit::Failed,
            },
            format!("{shown}: refused: {problem}\n  {UNCHANGED}"),
        ),
        error => match wanted {
            Wanted::Component(file) => refused(error, file, bytes),
            Wanted::Version(_) => error.into(),
        },
    })?;
    answer.json()
}

/// Whether a refusal of writes and a component together is of the writes.
fn is_of_writes(problem: &Problem) -> bool {
    matches!(
        problem.code.as_deref(),
        Some(
            "invalid-body"
                | "invalid-value"
                | "no-such-bucket"
                | "several-backends"
                | "batch-too-large"
                | "quota"
                | "precondition-failed"
        )
    )
}
