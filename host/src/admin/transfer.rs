//! `/v1/kv/{bucket}/batch`, `/import` and `/undo`, and the export: many keys at once, all or none.

mod batch;
mod chunks;
mod diff;
mod ending;
mod export;
mod import;
mod table;
mod undo;

use super::Data;
use super::input::{Actor, Chunks, Path, Query, read_body};
use super::kv::{Required, commit_problem, find};
use super::operation::{Done, Operation, Told};
use super::problem::Problem;
use super::revocation::Tokens;
use super::rights::Caller;
use crate::store::{BucketId, CommitError, Committed, Expect, Store, WriteBatch};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
pub(crate) use batch::check_write;
use batch::parse_batch;
pub(super) use batch::{BatchBody, Content};
use diff::diff;
pub(super) use ending::Ending;
pub(super) use export::{Export, ExportFormat, export};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use import::{Format, Intake};
use serde::Deserialize;
use serde_json::json;

/// What a write of many keys may be told in its query.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TransferQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    replace: bool,
    #[serde(default)]
    diff: bool,
    /// Rows of an import that are written at a time, each so many all or none; without it, all of them are.
    chunk: Option<usize>,
}

/// `POST /v1/kv/{bucket}/batch`, `POST /v1/kv/{bucket}/import` and `POST /v1/kv/{bucket}/undo`
pub(super) async fn post(
    State(data): State<Data>,
    Path((name, action)): Path<(String, String)>,
    Query(query): Query<TransferQuery>,
    caller: Caller,
    operation: Operation,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (bucket, kind) = {
        let snapshot = data.store.snapshot();
        let (id, bucket) = find(&snapshot, &name)?;
        (id, bucket.config().values)
    };
    let required = Required::of(&headers)?;
    if query.diff && !query.dry_run {
        return Err(bad_query(
            "diff=true shows what would be changed: expected dry_run=true beside it",
        ));
    }
    let order = Order {
        store: data.store,
        bucket,
        name,
        query,
        caller,
        tokens: data.tokens,
        actor: operation.actor(),
    };
    let (mut batch, ended) = match action.as_str() {
        "batch" => {
            query.check_chunk(false)?;
            let body = read_body(&headers, body, data.body_bytes_max).await?;
            // A large body takes long to parse: the thread that answers probes is not for that.
            (offload(move || parse_batch(&body, bucket)).await??, None)
        }
        "undo" => {
            query.check_chunk(false)?;
            return undo::post(order, required, &headers, body).await;
        }
        "import" => {
            query.check_chunk(required.is_nothing())?;
            let intake = Intake::new(Format::of(&headers)?, bucket, kind, query.chunk);
            // What is not written need not be parted.
            if query.chunk.is_some() && !query.dry_run {
                // Whatever its length: only a chunk of it is held.
                let body = Chunks::endless(&headers, body)?.until(operation.stopping());
                return chunks::import(order, operation, intake, body).await;
            }
            let body = Chunks::new(&headers, body, data.body_bytes_max)?;
            let mut body = body.until(operation.stopping());
            let (batch, ended) = import::take(intake, &mut body).await?;
            (batch, Some(ended))
        }
        _ => return Err(post_on_key(&order.name, &action)),
    };
    if query.replace {
        batch.replace = vec![bucket];
    }
    let is_import = ended.is_some();
    let required = Some(required);
    let (done, mut answer) = order.commit(batch, required, is_import).await?;
    if let Some(ended) = ended {
        answer["ended"] = ended.into();
    }
    Ok(Told::with(done, query.dry_run, Json(answer)))
}

impl TransferQuery {
    /// Whether an import in chunks, if it is one, can do the rest of what is asked for.
    fn check_chunk(&self, may_be: bool) -> Result<(), Problem> {
        match self.chunk {
            None => Ok(()),
            Some(_) if !may_be || self.replace => Err(bad_query(
                "chunk is for an import that does not replace the bucket, and has no condition",
            )),
            Some(chunk) if !(1..=chunks::ROWS_MAX).contains(&chunk) => Err(bad_query(format!(
                "chunk {chunk}: expected 1 to {}",
                chunks::ROWS_MAX
            ))),
            Some(_) => Ok(()),
        }
    }
}

fn bad_query(detail: impl std::fmt::Display) -> Problem {
    Problem::bad_request("query", format!("query: {detail}"))
}

/// Many writes to a bucket, and who wants them.
struct Order {
    store: Store,
    bucket: BucketId,
    name: String,
    query: TransferQuery,
    caller: Caller,
    tokens: Tokens,
    actor: Actor,
}

impl Order {
    /// Whether a batch is within the rights that the caller has now: its body may have been long on its way.
    ///
    /// # Errors
    /// 401 or 403 if it is not.
    fn permit(&self, batch: &WriteBatch) -> Result<(), Problem> {
        let caller = self.tokens.renew(&self.caller, &Method::POST, &self.name)?;
        caller.may_commit(batch)
    }

    /// Commits a batch if the bucket is as it is required to be, or says what it would do; also if it is too much at once, of
    /// what `can_be_parted`.
    async fn commit(
        &self,
        mut batch: WriteBatch,
        required: Option<Required>,
        can_be_parted: bool,
    ) -> Result<(Done, serde_json::Value), Problem> {
        batch.dry_run = self.query.dry_run;
        self.permit(&batch)?;
        let changes = if self.query.diff {
            let (snapshot, bucket) = (self.store.snapshot(), self.bucket);
            let (changes, kept) = offload(move || {
                let changes = snapshot.bucket(bucket).map(|bucket| diff(bucket, &batch));
                (changes, batch)
            })
            .await?;
            batch = kept;
            changes
        } else {
            None
        };
        let required = required.map(|required| (self.bucket, required));
        let (ends, batch) = Ending::of(batch).await?;
        let (committed, excess) = match try_commit(&self.store, batch, &self.actor, required).await
        {
            Err(CommitError::TooLarge {
                reason,
                writes_max,
                would: Some(would),
            }) if can_be_parted => (*would, Some((reason, writes_max))),
            committed => (committed.map_err(commit_problem)?, None),
        };
        let mut answer = committed_json(&committed, self.query.dry_run);
        if let Some((reason, writes_max)) = excess {
            answer["too_large"] = reason.into();
            answer["writes_max"] = writes_max.into();
        }
        ends.tell(&self.store, &committed, &mut answer).await;
        if let Some((changes, more)) = changes {
            answer["changes"] = changes.into();
            answer["changes_not_shown"] = more.into();
        }
        Ok((done(&committed), answer))
    }
}

fn post_on_key(bucket: &str, key: &str) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!(
            "POST is not allowed on \"/v1/kv/{bucket}/{key}\": expected PUT or PATCH, or POST on batch, import or undo"
        ),
    )
    .with_header(
        header::ALLOW,
        HeaderValue::from_static("GET,HEAD,PUT,PATCH,DELETE"),
    )
}

/// Commits in the name of the actor, if a bucket is as it is required to be.
pub(super) async fn commit(
    store: &Store,
    batch: WriteBatch,
    actor: &Actor,
    required: Option<(BucketId, Required)>,
) -> Result<Committed, Problem> {
    let committed = try_commit(store, batch, actor, required).await;
    committed.map_err(commit_problem)
}

async fn try_commit(
    store: &Store,
    mut batch: WriteBatch,
    actor: &Actor,
    required: Option<(BucketId, Required)>,
) -> Result<Committed, CommitError> {
    batch.by = Some(actor.0.as_str().into());
    match required {
        None => store.commit(batch).await,
        Some((bucket, required)) => {
            let put = |batch: &mut WriteBatch, expect| {
                // What requires nothing need not be looked at.
                batch.expect = match expect {
                    Expect::Any => Vec::new(),
                    other => vec![(bucket, other)],
                };
            };
            required.commit(store, batch, put).await
        }
    }
}

/// A write of many keys as it is audited.
pub(super) fn done(committed: &Committed) -> Done {
    Done::written(outcome(committed), committed)
}

fn outcome(committed: &Committed) -> &'static str {
    match (
        committed.created + committed.updated + committed.deleted,
        committed.touched,
    ) {
        (0, 0) => "unchanged",
        (0, _) => "touched",
        _ => "changed",
    }
}

pub(super) fn committed_json(committed: &Committed, dry_run: bool) -> serde_json::Value {
    let mut body = json!({
        "revision": committed.revision,
        "outcome": outcome(committed),
        "created": committed.created,
        "updated": committed.updated,
        "deleted": committed.deleted,
        "touched": committed.touched,
        "unchanged": committed.unchanged,
    });
    if dry_run {
        body["dry_run"] = true.into();
    }
    body
}

/// Runs work that takes long on a thread for such work.
pub(super) async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the work was cut",
        )
    })
}
