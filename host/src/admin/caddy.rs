//! `PATCH /id/{id}/mappings` as Caddy has it: the whole map in one request, on a bucket, closing nothing.

use super::State as AdminState;
use super::attempt::Told;
use super::input::{Actor, DryRun, Path, Query, etag, parse_json, read_body};
use super::kv::{Required, find};
use super::problem::Problem;
use super::transfer::{commit, done, offload};
use crate::store::{BucketId, Committed, Revision, Store, Write, WriteBatch};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// One entry of Caddy's `map` handler.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapping {
    #[serde(default)]
    input: String,
    /// What we do not have: refused by name rather than as an unknown field.
    #[serde(default, skip_serializing)]
    input_regexp: Option<String>,
    outputs: Vec<Option<String>>,
}

/// `PATCH /id/{id}/mappings`: 200 and no body, as Caddy answers.
pub(super) async fn patch(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    Query(DryRun { dry_run }): Query<DryRun>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let bucket = bucket_of(&state, &id)?;
    let required = Required::of(&headers)?;
    let body = read_body(&headers, body, state.config.body_bytes_max).await?;
    let order = Order { required, dry_run };
    let committed = replace(&state.store, &bucket, body.to_vec(), order, &actor).await?;
    Ok(Told::with(done(&committed), dry_run, StatusCode::OK))
}

/// `GET /id/{id}/mappings`
pub(super) async fn get(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let bucket = bucket_of(&state, &id)?;
    let (revision, mappings) = mappings(&state.store, &bucket).await?;
    Ok(([(header::ETAG, etag(revision))], Json(mappings)).into_response())
}

fn bucket_of(state: &AdminState, id: &str) -> Result<String, Problem> {
    let running = state.control.running();
    running.config.caddy_ids.get(id).cloned().ok_or_else(|| {
        Problem::not_found(
            "no-such-id",
            format!("no id {id:?} in the config: expected one that names a bucket"),
        )
    })
}

/// How mappings are to be replaced.
struct Order {
    /// What has to be so of the bucket.
    required: Required,
    dry_run: bool,
}

/// Makes the mappings the whole content of a bucket.
async fn replace(
    store: &Store,
    bucket: &str,
    body: Vec<u8>,
    order: Order,
    actor: &Actor,
) -> Result<Committed, Problem> {
    let id = find(&store.snapshot(), bucket)?.0;
    let writes = offload(move || parse(&body, id)).await??;
    let batch = WriteBatch {
        writes,
        replace: vec![id],
        dry_run: order.dry_run,
        ..WriteBatch::default()
    };
    commit(store, batch, actor, Some((id, order.required))).await
}

fn parse(body: &[u8], bucket: BucketId) -> Result<Vec<Write>, Problem> {
    let mappings: Vec<Mapping> = parse_json(body)?;
    let mut writes = Vec::with_capacity(mappings.len());
    let mut seen = HashMap::with_capacity(mappings.len());
    for (index, mapping) in mappings.into_iter().enumerate() {
        let refused = |reason: String| {
            Problem::invalid("invalid-mapping", format!("mappings[{index}]: {reason}"))
        };
        if mapping.input_regexp.is_some() {
            return Err(refused(
                "input_regexp is not supported: expected input, an exact key".into(),
            ));
        }
        if mapping.input.is_empty() {
            return Err(refused("input is empty: expected a key".into()));
        }
        let [output] = <[Option<String>; 1]>::try_from(mapping.outputs)
            .map_err(|outputs| refused(format!("{} outputs, expected one", outputs.len())))?;
        // Caddy's users put an entry without a target there, so that the adapter makes a list.
        let Some(output) = output.filter(|output| !output.is_empty()) else {
            continue;
        };
        // Caddy takes the first entry that fits, a batch the last write.
        if let Some(first) = seen.insert(mapping.input.clone(), index) {
            return Err(refused(format!(
                "input {:?} is that of mappings[{first}] already",
                mapping.input
            )));
        }
        writes.push(Write::put(bucket, mapping.input, output.into_bytes()));
    }
    Ok(writes)
}

/// The mappings, and the revision of the bucket.
async fn mappings(store: &Store, bucket: &str) -> Result<(Revision, Vec<Mapping>), Problem> {
    let snapshot = store.snapshot();
    let (id, found) = find(&snapshot, bucket)?;
    let revision = found.revision();
    let mappings = offload(move || {
        let sorted = snapshot.bucket(id).map(|bucket| bucket.sorted());
        sorted
            .unwrap_or_default()
            .into_iter()
            .map(|(key, entry)| Mapping {
                input: key.to_owned(),
                input_regexp: None,
                outputs: vec![Some(
                    String::from_utf8_lossy(&entry.value.to_bytes()).into_owned(),
                )],
            })
            .collect()
    })
    .await?;
    Ok((revision, mappings))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::store::{Action, BackendKind, BucketConfig, ValueKind};

    #[tokio::test]
    async fn a_patch_becomes_the_whole_bucket_or_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let bucket = BucketConfig::new("map", BackendKind::Memory, ValueKind::Endpoint);
        let store = Store::open(&[bucket], dir.path()).unwrap();
        let patch = async |body: &str, dry_run| {
            let actor = Actor("test".into());
            let required = Required::of(&HeaderMap::new()).unwrap();
            let order = Order { required, dry_run };
            replace(&store, "map", body.into(), order, &actor).await
        };
        let shown = async || {
            let (_, mappings) = mappings(&store, "map").await.unwrap();
            serde_json::to_string(&mappings).unwrap()
        };
        let first =
            r#"[{"input":"id1","outputs":["127.0.0.2"]},{"input":"id2","outputs":["127.0.0.3"]}]"#;
        patch(first, false).await.unwrap();
        assert_eq!(shown().await, first);
        let revision = store.snapshot().revision();
        patch(first, false).await.unwrap();
        assert_eq!(store.snapshot().revision(), revision);
        let refused = patch(r#"[{"input":"id3","outputs":["not/a/host"]}]"#, false).await;
        assert_eq!(refused.unwrap_err().status, 422);
        patch("[]", true).await.unwrap();
        assert_eq!(shown().await, first);
        let second = r#"[{"input":"id2","outputs":["127.0.0.4"]}]"#;
        patch(second, false).await.unwrap();
        assert_eq!(shown().await, second);
    }

    fn pairs(body: &str) -> Result<Vec<(String, String)>, String> {
        let writes = parse(body.as_bytes(), BucketId(0)).map_err(|problem| {
            assert!(problem.status.is_client_error());
            problem.detail
        })?;
        Ok(writes
            .into_iter()
            .map(|write| {
                let Action::Put { value, ttl: None } = write.action else {
                    panic!("mappings only put");
                };
                (
                    write.key.into(),
                    String::from_utf8(value.into_vec()).unwrap(),
                )
            })
            .collect())
    }

    #[test]
    fn mappings_become_keys_and_placeholders_are_skipped() {
        let body = r#"[
            {"input": "__placeholder__", "outputs": [""]},
            {"input": "none", "outputs": [null]},
            {"input": "id1", "outputs": ["127.0.0.2"]},
            {"input": "id2", "outputs": ["127.0.0.3"]}
        ]"#;
        assert_eq!(
            pairs(body).unwrap(),
            [
                ("id1".to_owned(), "127.0.0.2".to_owned()),
                ("id2".to_owned(), "127.0.0.3".to_owned())
            ]
        );
        assert_eq!(pairs("[]").unwrap(), []);
    }

    #[test]
    fn what_a_bucket_cannot_hold_is_refused_by_its_index() {
        let error = |body: &str| pairs(body).unwrap_err();
        let good = r#"{"input": "a", "outputs": ["x"]}"#;
        assert!(
            error(&format!(
                r#"[{good}, {{"input_regexp": "^a", "outputs": ["x"]}}]"#
            ))
            .starts_with("mappings[1]: input_regexp is not supported")
        );
        assert_eq!(
            error(r#"[{"input": "a", "outputs": ["x", "y"]}]"#),
            "mappings[0]: 2 outputs, expected one"
        );
        assert_eq!(
            error(r#"[{"input": "a", "outputs": []}]"#),
            "mappings[0]: 0 outputs, expected one"
        );
        assert!(error(&format!("[{good}, {good}]")).contains("mappings[0] already"));
        assert!(error(r#"[{"outputs": ["x"]}]"#).contains("input is empty"));
        assert!(error(r#"{"input": "a"}"#).contains("expected a sequence"));
        assert!(error(r#"[{"input": "a", "output": ["x"]}]"#).contains("unknown field `output`"));
    }
}
