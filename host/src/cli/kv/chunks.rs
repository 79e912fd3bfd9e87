//! An import in chunks: the rows are sent while the proxy tells how far it is with them.

use super::parting::Way;
use super::source::Upload;
use super::write::report as report_written;
use crate::cli::client::{Client, ClientError};
use crate::cli::output::{self, Out};
use crate::cli::problem::Problem;
use crate::cli::progress::Sent;
use crate::cli::{Ended, Exit};
use anyhow::Context;
use http::{Method, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

/// The longest line of the answer: a hundred bad rows are told in one.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Sends rows, and returns the last that is said of them.
///
/// # Errors
/// If the proxy cannot be reached, refuses all of it, or breaks off.
pub(super) async fn send(
    client: &Client,
    path: &str,
    content_type: &str,
    upload: Upload,
    sent: &Sent,
) -> anyhow::Result<Value> {
    let headers = [(header::CONTENT_TYPE, content_type.to_owned())];
    let response = client.exchange_streams(Method::POST, path, &headers, upload);
    let mut body = response.await?.into_body();
    let (mut pending, mut last) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken_off(client.broken(error), last.as_ref()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        pending.extend_from_slice(&data);
        while let Some(end) = memchr::memchr(b'\n', &pending) {
            let line: Value = serde_json::from_slice(&pending[..end])
                .context("the admin API's answer is not what was expected")?;
            pending.drain(..=end);
            sent.applied(line["applied"].as_u64().unwrap_or_default());
            let is_last = line["problem"].is_object() || line["outcome"].is_string();
            last = Some(line);
            if is_last {
                return last.context("a line was read");
            }
        }
        anyhow::ensure!(
            pending.len() <= LINE_BYTES_MAX,
            "the admin API's answer has a line of more than {LINE_BYTES_MAX} bytes"
        );
    }
    Err(broken_off(
        client.broken("the answer breaks off"),
        last.as_ref(),
    ))
}

/// What was written before is there.
fn broken_off(error: ClientError, last: Option<&Value>) -> anyhow::Error {
    let error = anyhow::Error::new(error);
    let rows = last.map(|line| line["applied"].as_u64().unwrap_or_default());
    error.context(format!("{}, and then", at_least(rows.unwrap_or_default())))
}

/// What is known to be written when the proxy says no more.
pub(super) fn at_least(rows: u64) -> String {
    match rows {
        0 => "it is not known whether rows were written".to_owned(),
        rows => format!("at least {} stay written", output::counted(rows, "row")),
    }
}

/// The number of the signal that ends the command, once it comes.
pub(super) async fn interrupted() -> i32 {
    let of = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => signal.recv().await,
            // It ends the process by itself.
            Err(_) => std::future::pending().await,
        }
    };
    let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
    tokio::select! {
        _ = of(interrupt) => interrupt.as_raw_value(),
        _ = of(terminate) => terminate.as_raw_value(),
    }
}

/// Says what was written.
///
/// # Errors
/// If not all of it was.
pub(super) fn report(
    (bucket, name): (&str, &str),
    way: Way,
    answer: &Value,
    json: bool,
) -> anyhow::Result<()> {
    let Some(problem) = answer.get("problem") else {
        return report_written(bucket, answer, false, json);
    };
    if json {
        let mut out = Out::stdout();
        out.json(answer)?;
        out.flush()?;
    }
    let mut problem: Problem = serde_json::from_value(problem.clone())
        .context("the admin API's answer is not what was expected")?;
    way.explain(&mut problem);
    let exit = match problem.status {
        422 => Exit::ConfigInvalid,
        _ => Exit::Failed,
    };
    let text = format!("{name}: {problem}\n  {}", written(answer));
    Err(Ended::error(exit, text))
}

/// How far it came.
fn written(line: &Value) -> String {
    let number = |name: &str| line[name].as_u64().unwrap_or_default();
    match number("applied") {
        0 => "nothing was written".to_owned(),
        rows => format!(
            "{} up to line {} stay written",
            output::counted(rows, "row"),
            number("line")
        ),
    }
}
