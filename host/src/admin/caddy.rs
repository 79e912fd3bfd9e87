//! `PATCH /id/{id}/mappings` as Caddy has it: the whole map in one request, on a bucket, closing nothing. The default is no
//! mapping: it stays.

pub(crate) mod mappings;

use super::State as AdminState;
use super::input::{Actor, DryRun, Path, Query, etag, parse_json, read_body};
use super::kv::{Required, find};
use super::operation::Told;
use super::problem::Problem;
use super::staleness::staleness;
use super::transfer::{commit, done, offload};
use crate::store::ordered::pattern_in_order;
use crate::store::{
    Bucket, BucketId, Committed, Expect, LookupKind, LookupKinds, Revision, Store, Write,
    WriteBatch,
};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use mappings::Input;
use serde::{Deserialize, Serialize};

/// One entry of Caddy's `map` handler.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapping {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    input: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    input_regexp: String,
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
    let committed = replace(&state.store, &bucket, body, order, &actor).await?;
    Ok(Told::with(done(&committed), dry_run, StatusCode::OK))
}

/// `GET /id/{id}/mappings`
pub(super) async fn get(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let bucket = bucket_of(&state, &id)?;
    let staleness = {
        let snapshot = state.store.snapshot();
        staleness(&state.store, std::iter::once(find(&snapshot, &bucket)?.1))
    };
    let (revision, mappings) = mappings(&state.store, &bucket).await?;
    let tag = [(header::ETAG, etag(revision))];
    Ok((tag, staleness, Json(mappings)).into_response())
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

/// Replacing begins anew when somebody changes the default meanwhile, up to so many times.
const TURNS_MAX: usize = 8;

/// Makes the mappings the whole content of a bucket.
async fn replace(
    store: &Store,
    bucket: &str,
    body: Bytes,
    order: Order,
    actor: &Actor,
) -> Result<Committed, Problem> {
    let mut turns = 1;
    loop {
        let (id, kept, kinds, has_default) = {
            let snapshot = store.snapshot();
            let (id, found) = find(&snapshot, bucket)?;
            let kept = default_of(id, found);
            // Elsewhere its key is one like any other.
            let has_default = found.is_pattern(DEFAULT) && found.get(DEFAULT).is_some();
            (id, kept, found.config().lookup, has_default)
        };
        let body = body.clone();
        // Many expressions take seconds.
        let mut writes = offload(move || parse(&body, id, kinds, has_default)).await??;
        writes.extend(kept);
        let batch = WriteBatch {
            writes,
            replace: vec![id],
            dry_run: order.dry_run,
            ..WriteBatch::default()
        };
        let required = Some((id, order.required.clone()));
        match commit(store, batch, actor, required).await {
            Err(problem) if turns < TURNS_MAX && is_of_default(&problem) => turns += 1,
            committed => return committed,
        }
    }
}

fn is_of_default(problem: &Problem) -> bool {
    let entry = problem.entry.as_deref();
    problem.status == StatusCode::PRECONDITION_FAILED
        && entry.is_some_and(|(_, key)| key == DEFAULT)
}

/// What keeps the default as it is: there, or not.
fn default_of(id: BucketId, bucket: &Bucket) -> Option<Write> {
    if !bucket.is_pattern(DEFAULT) {
        return None;
    }
    let Some(entry) = bucket.get(DEFAULT) else {
        return Some(Write::delete(id, DEFAULT).expecting(Expect::Absent));
    };
    let write = Write::put(id, DEFAULT, entry.value.to_bytes().into_owned());
    Some(Write {
        until: entry.deadline,
        ..write.expecting(Expect::At(entry.revision))
    })
}

/// The key of a default, where the bucket has that kind.
const DEFAULT: &str = "*";

fn parse(
    body: &[u8],
    bucket: BucketId,
    kinds: LookupKinds,
    has_default: bool,
) -> Result<Vec<Write>, Problem> {
    let refused = |index: usize, reason: String| {
        Problem::invalid("invalid-mapping", format!("mappings[{index}]: {reason}"))
    };
    let given: Vec<Mapping> = parse_json(body)?;
    let mut mappings = Vec::with_capacity(given.len());
    for (index, mapping) in given.into_iter().enumerate() {
        let input = match (mapping.input, mapping.input_regexp) {
            (input, pattern) if pattern.is_empty() => Input::Whole(input),
            (input, pattern) if input.is_empty() => Input::Expression(pattern),
            _ => {
                let reason = "input and input_regexp exclude each other".to_owned();
                return Err(refused(index, reason));
            }
        };
        let [output] = <[Option<String>; 1]>::try_from(mapping.outputs).map_err(|outputs| {
            refused(index, format!("{} outputs, expected one", outputs.len()))
        })?;
        mappings.push(mappings::Mapping { input, output });
    }
    let keys = mappings::keys(&mappings, kinds, has_default);
    if let Some((index, reason)) = keys.refused.into_iter().next() {
        return Err(refused(index, reason));
    }
    let writes = keys.entries.into_iter();
    Ok(writes
        .map(|(key, output)| Write::put(bucket, key, output.into_bytes()))
        .collect())
}

/// The mappings, and the revision of the bucket.
async fn mappings(store: &Store, bucket: &str) -> Result<(Revision, Vec<Mapping>), Problem> {
    let snapshot = store.snapshot();
    let (id, found) = find(&snapshot, bucket)?;
    let revision = found.revision();
    let mappings = offload(move || {
        let Some(bucket) = snapshot.bucket(id) else {
            return Vec::new();
        };
        let sorted = bucket.sorted();
        let shown = sorted.filter_map(|(key, entry)| {
            let (input, input_regexp) = match bucket.kind_of(key) {
                LookupKind::Default => return None,
                LookupKind::Regex => (String::new(), pattern_in_order(key).to_owned()),
                _ => (key.to_owned(), String::new()),
            };
            let output = String::from_utf8_lossy(&entry.value.to_bytes()).into_owned();
            Some(Mapping {
                input,
                input_regexp,
                outputs: vec![Some(output)],
            })
        });
        shown.collect()
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
            replace(
                &store,
                "map",
                Bytes::copy_from_slice(body.as_bytes()),
                order,
                &actor,
            )
            .await
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

    #[tokio::test]
    async fn a_patch_keeps_the_default_and_the_order_of_expressions() {
        let dir = tempfile::tempdir().unwrap();
        let mut bucket = BucketConfig::new("map", BackendKind::Memory, ValueKind::Endpoint);
        bucket.lookup = LookupKinds::of(&[LookupKind::Regex, LookupKind::Default]);
        let store = Store::open(&[bucket], dir.path()).unwrap();
        let id = store.snapshot().bucket_id("map").unwrap();
        let batch = WriteBatch {
            writes: vec![
                Write::put(id, "*", *b"127.0.0.9"),
                Write::put(id, "old", *b"a"),
            ],
            ..WriteBatch::default()
        };
        store.commit(batch).await.unwrap();
        let body = r#"[{"input":"b","outputs":["127.0.0.1"]},{"input_regexp":"^b","outputs":["127.0.0.2"]},{"input_regexp":"^a","outputs":["127.0.0.3"]}]"#;
        let order = Order {
            required: Required::of(&HeaderMap::new()).unwrap(),
            dry_run: false,
        };
        let patched = replace(&store, "map", body.into(), order, &Actor("test".into())).await;
        patched.unwrap();
        let snapshot = store.snapshot();
        let found = |key: &str| {
            let found = snapshot.bucket(id).unwrap().lookup(key).unwrap();
            String::from_utf8(found.entry.value.to_bytes().into_owned()).unwrap()
        };
        assert_eq!(
            ["b", "bb", "a", "old"].map(found),
            ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.9"]
        );
        let (_, shown) = mappings(&store, "map").await.unwrap();
        assert_eq!(serde_json::to_string(&shown).unwrap(), body);
    }

    fn pairs(body: &str) -> Result<Vec<(String, String)>, String> {
        let kinds = LookupKinds::default();
        let writes = parse(body.as_bytes(), BucketId(0), kinds, false).map_err(|problem| {
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
            .starts_with("mappings[1]: input_regexp has no counterpart")
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
        assert!(
            error(r#"[{"input": "a", "input_regexp": "b", "outputs": ["x"]}]"#)
                .contains("exclude each other")
        );
        assert!(error(r#"{"input": "a"}"#).contains("expected a sequence"));
        assert!(error(r#"[{"input": "a", "output": ["x"]}]"#).contains("unknown field `output`"));
    }
}
