//! An import in chunks: rows are applied while others arrive, each chunk all or none, and the answer tells how far it is.
//!
//! It takes no more memory for a longer body: one row, what has just arrived, and the chunks that came together in it. A
//! chunk is at most [`CHUNK_BYTES_MAX`] of keys and values, or one row more.

use super::import::{Chunk, Intake};
use super::{Order, commit, done, offload, outcome};
use crate::admin::handed::Handed;
use crate::admin::input::Chunks;
use crate::admin::operation::{Done, Operation, Told};
use crate::admin::problem::Problem;
use crate::store::{Committed, WriteBatch};
use axum::body::{Body, Bytes};
use axum::response::Response;
use http::header;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Most rows of a chunk.
pub(super) const ROWS_MAX: usize = 65_536;
/// Bytes of keys and values that make a chunk whole, whatever its rows.
pub(super) const CHUNK_BYTES_MAX: usize = 16 << 20;
/// Least time between two lines of the answer, so that a client that reads it late is not waited for.
const TOLD_EVERY: Duration = Duration::from_millis(100);
/// Lines of the answer made before the client took them.
const LINES_AHEAD: usize = 4;

/// The answer, lines of JSON, told by a task that does the work while they are taken. It ends when the client goes away: what had
/// arrived by then is written, and audited. It ends, too, when the process does, after the chunk that it is at. The last line has
/// either `outcome` or `problem`.
///
/// # Errors
/// If nothing arrives. It is waited for, because a client may hold its body back until it is asked for: once the answer has
/// begun it is too late for that.
pub(super) async fn import(
    order: Order,
    operation: Operation,
    intake: Intake,
    mut body: Chunks,
) -> Result<Response, Problem> {
    let first = body.next().await?;
    let (lines, told) = mpsc::channel(LINES_AHEAD);
    tokio::spawn(async move {
        let mut run = Run {
            order,
            operation,
            lines,
            last_told: Instant::now(),
            applied: 0,
            line: 0,
            sum: None,
        };
        match run.all(intake, first, &mut body).await {
            Ok(ended) => {
                if run.sum.is_none() {
                    run.operation.tell(&Told::Done(Done::new("unchanged")));
                }
                run.tell(&run.done(ended)).await;
            }
            Err(problem) => {
                let line = run.progress(Some(&problem));
                run.operation
                    .tell(&Told::Refused(problem.code, problem.detail));
                run.tell(&line).await;
            }
        }
    });
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok(Told::Later.within((content_type, Body::new(Handed(told)))))
}

struct Run {
    order: Order,
    operation: Operation,
    lines: mpsc::Sender<Bytes>,
    last_told: Instant,
    /// Rows.
    applied: u64,
    /// The last that is applied.
    line: u64,
    sum: Option<Committed>,
}

impl Run {
    /// Applies all, and returns how many entries had ended.
    async fn all(
        &mut self,
        mut intake: Intake,
        mut data: Option<Bytes>,
        body: &mut Chunks,
    ) -> Result<u64, Problem> {
        loop {
            let is_end = data.is_none();
            intake = offload(move || {
                match data {
                    Some(data) => intake.feed(&data),
                    None => intake.end(),
                }
                intake
            })
            .await?;
            for chunk in intake.take_ready() {
                self.apply(chunk).await?;
            }
            let problem = intake.problem("the import stopped there");
            if let Some(problem) = problem {
                return Err(problem);
            }
            if is_end {
                return Ok(intake.ended());
            }
            data = body.next().await?;
        }
    }

    async fn apply(&mut self, chunk: Chunk) -> Result<(), Problem> {
        let rows = chunk.writes.len() as u64;
        let batch = WriteBatch {
            writes: chunk.writes,
            ..WriteBatch::default()
        };
        let order = &self.order;
        order.permit(&batch)?;
        self.operation.owe();
        let committed = commit(&order.store, batch, &order.actor, None).await?;
        self.operation.tell(&Told::Done(done(&committed)));
        self.applied += rows;
        self.line = chunk.line;
        self.sum = Some(match self.sum {
            None => committed,
            Some(sum) => Committed {
                created: sum.created + committed.created,
                updated: sum.updated + committed.updated,
                touched: sum.touched + committed.touched,
                deleted: sum.deleted + committed.deleted,
                unchanged: sum.unchanged + committed.unchanged,
                ..committed
            },
        });
        if self.last_told.elapsed() >= TOLD_EVERY {
            self.last_told = Instant::now();
            let line = self.progress(None);
            self.tell(&line).await;
        }
        Ok(())
    }

    async fn tell(&self, line: &Value) {
        // Nobody is left to be told: the body of the request ends, too.
        let _ = self.lines.send(format!("{line}\n").into()).await;
    }

    fn progress(&self, problem: Option<&Problem>) -> Value {
        let mut line = json!({
            "applied": self.applied,
            "line": self.line,
            "revision": self.sum.map(|sum| sum.revision),
        });
        if let Some(problem) = problem {
            line["problem"] = problem.to_json();
        }
        line
    }

    fn done(&self, ended: u64) -> Value {
        let mut line = self.progress(None);
        let sum = self.sum;
        line["outcome"] = sum.as_ref().map_or("unchanged", outcome).into();
        let count = |of: fn(&Committed) -> u64| sum.as_ref().map_or(0, of);
        line["created"] = count(|sum| sum.created).into();
        line["updated"] = count(|sum| sum.updated).into();
        line["touched"] = count(|sum| sum.touched).into();
        line["deleted"] = count(|sum| sum.deleted).into();
        line["unchanged"] = count(|sum| sum.unchanged).into();
        line["ended"] = ended.into();
        line
    }
}
