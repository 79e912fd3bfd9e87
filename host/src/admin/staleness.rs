//! `Throwbar-Staleness`: how old what is read of a bucket that proxies share may be.

use super::rights::Caller;
use crate::store::{Bucket, Store};
use axum::RequestExt;
use axum::extract::{RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderName, Method};

/// In seconds; of several buckets that of the oldest.
const STALENESS: HeaderName = HeaderName::from_static("throwbar-staleness");

/// Puts it on every answer to a read of buckets, refusals among them: a key that is not there may be so of old.
pub(super) async fn tell(State(store): State<Store>, mut request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    // As of before the read, so that it is not too low.
    let fields = match reads {
        true => {
            let params = request.extract_parts::<RawPathParams>().await.ok();
            let caller = request.extensions().get().unwrap_or(&Caller::Admin);
            of_path(&store, request.uri().path(), params.as_ref(), caller)
        }
        false => HeaderMap::new(),
    };
    let mut response = next.run(request).await;
    response.headers_mut().extend(fields);
    response
}

fn of_path(
    store: &Store,
    path: &str,
    params: Option<&RawPathParams>,
    caller: &Caller,
) -> HeaderMap {
    let snapshot = store.snapshot();
    let params = params.filter(|_| path.starts_with("/v1/kv/"));
    let mut params = params.into_iter().flatten();
    match params.find(|(name, _)| *name == "bucket") {
        Some((_, name)) => {
            let bucket = snapshot.bucket_id(name).and_then(|id| snapshot.bucket(id));
            staleness(store, bucket.into_iter())
        }
        None if path == "/v1/kv" => {
            let buckets = snapshot.buckets().map(|(_, bucket)| bucket);
            let own = buckets.filter(|bucket| caller.has_bucket(&bucket.config().name));
            staleness(store, own)
        }
        None => HeaderMap::new(),
    }
}

/// The field for what is read of these buckets; none if proxies share none of them.
pub(super) fn staleness<'b>(store: &Store, buckets: impl Iterator<Item = &'b Bucket>) -> HeaderMap {
    let mut backends: Vec<_> = buckets.map(|bucket| bucket.config().backend).collect();
    backends.retain(|backend| backend.is_shared());
    if backends.is_empty() {
        return HeaderMap::new();
    }
    let health = store.health().into_iter();
    let read = health.filter(|(backend, _)| backends.contains(backend));
    let oldest = read.filter_map(|(_, health)| health.staleness()).max();
    let text = oldest.map(|age| format!("{:.3}", age.as_secs_f64()));
    let value = text.and_then(|text| text.parse().ok());
    value.map(|value| (STALENESS, value)).into_iter().collect()
}
