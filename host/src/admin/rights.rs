//! Tokens for a part of the store: some buckets, and of their keys those that begin in one way.
//!
//! What a request names is looked at as the handlers read it, by the same parsers: the path before they are asked, the prefix
//! of a list and the keys of a body by themselves.

use super::problem::Problem;
use super::token::Token;
use crate::plugin::Access;
use crate::store::WriteBatch;
use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;
use http::{Method, StatusCode, Uri};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

/// A token that is good for some buckets and keys, and for nothing else of the admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitedToken {
    /// Its name in the config and the audit log.
    pub name: String,
    /// What its holder sends.
    pub token: Token,
    /// The buckets it is good for.
    pub buckets: BTreeMap<String, Access>,
    /// What keys must begin with; empty: any key.
    pub prefix: String,
}

/// Whose token a request had.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// The process's own, or none is needed.
    Admin,
    /// A limited one.
    Limited(Arc<LimitedToken>),
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // The gate stands before every route and says who it let in.
        Ok(parts.extensions.get().cloned().unwrap_or(Self::Admin))
    }
}

impl Caller {
    /// Whether a request may go on, whose path has these parts if it is that of a route; of lists, batches and imports, this
    /// looks at the bucket only.
    ///
    /// # Errors
    /// 403 with what is beyond the token.
    pub(super) fn permit(
        &self,
        method: &Method,
        uri: &Uri,
        params: Option<&RawPathParams>,
    ) -> Result<(), Problem> {
        let Self::Limited(token) = self else {
            return Ok(());
        };
        let is_of_store = uri.path().starts_with("/v1/kv/");
        // The list of buckets is of the caller's own: see [`Self::has_bucket`].
        if uri.path() == "/v1/kv" && matches!(*method, Method::GET | Method::HEAD) {
            return Ok(());
        }
        let params = params.filter(|_| is_of_store);
        let named = |wanted| {
            let mut params = params.into_iter().flatten();
            params.find_map(|(name, value)| (name == wanted).then_some(value))
        };
        token.permit(method, named("bucket"), named("key"))
    }

    /// The same caller with the rights it has by these tokens, if it may still use a bucket so; of a name or secret that is
    /// another now, the secret counts.
    ///
    /// # Errors
    /// 401 if its token is not among them, 403 if the bucket is beyond it.
    pub(super) fn renewed(
        &self,
        tokens: &[Arc<LimitedToken>],
        method: &Method,
        bucket: &str,
    ) -> Result<Self, Problem> {
        let Self::Limited(before) = self else {
            return Ok(Self::Admin);
        };
        let now = tokens.iter().find(|now| now.token == before.token);
        let now = now.ok_or_else(|| {
            let detail = format!("token {:?} is good no longer", before.name);
            Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        })?;
        now.permit(method, Some(bucket), None)?;
        Ok(Self::Limited(now.clone()))
    }

    /// Whether a bucket is the caller's to read.
    pub(super) fn has_bucket(&self, name: &str) -> bool {
        match self {
            Self::Admin => true,
            Self::Limited(token) => token.buckets.contains_key(name),
        }
    }

    /// Whether the caller may list keys that begin so.
    ///
    /// # Errors
    /// 403 if some of them are beyond the caller's rights.
    pub(super) fn may_list(&self, prefix: &str) -> Result<(), Problem> {
        match self {
            Self::Limited(token) if !token.has_key(prefix) => Err(token.refuse(format_args!(
                "lists keys that begin with {:?} only: expected them as prefix in the query",
                token.prefix
            ))),
            _ => Ok(()),
        }
    }

    /// How every key has to begin that the caller may see or write.
    pub(super) fn prefix(&self) -> &str {
        match self {
            Self::Admin => "",
            Self::Limited(token) => &token.prefix,
        }
    }

    /// Whether an entry that another key found is within the caller's rights. The gate has looked at the bucket.
    ///
    /// # Errors
    /// 403 if it is not.
    pub(super) fn may_read(&self, key: &str) -> Result<(), Problem> {
        match self {
            Self::Limited(token) if !token.has_key(key) => Err(token.not_its_key(key)),
            _ => Ok(()),
        }
    }

    /// Whether the writes of a batch are all within the caller's rights. The gate has looked at the bucket.
    ///
    /// # Errors
    /// 403, with the first that is not.
    pub(super) fn may_commit(&self, batch: &WriteBatch) -> Result<(), Problem> {
        let Self::Limited(token) = self else {
            return Ok(());
        };
        if !batch.replace.is_empty() && !token.prefix.is_empty() {
            return Err(token.refuse(format_args!(
                "replaces whole buckets, expected keys that begin with {:?}",
                token.prefix
            )));
        }
        let other = batch.writes.iter().find(|write| !token.has_key(&write.key));
        other.map_or(Ok(()), |write| Err(token.not_its_key(&write.key)))
    }
}

impl LimitedToken {
    fn permit(
        &self,
        method: &Method,
        bucket: Option<&str>,
        key: Option<&str>,
    ) -> Result<(), Problem> {
        let Some(bucket) = bucket else {
            return Err(self.refuse(format_args!(
                "is for /v1/kv, /v1/kv/{{bucket}} and its keys"
            )));
        };
        let reads = matches!(*method, Method::GET | Method::HEAD);
        match self.buckets.get(bucket) {
            None => Err(self.refuse(format_args!("is not for bucket {bucket:?}"))),
            Some(Access::Read) if !reads => {
                Err(self.refuse(format_args!("is for reading bucket {bucket:?} only")))
            }
            Some(_) => match key {
                // Whatever is named in the query or the body is looked at when it is read.
                None => Ok(()),
                Some("batch" | "import" | "undo") if *method == Method::POST => Ok(()),
                Some(key) if self.has_key(key) => Ok(()),
                Some(key) => Err(self.not_its_key(key)),
            },
        }
    }

    fn has_key(&self, key: &str) -> bool {
        key.starts_with(&self.prefix)
    }

    fn not_its_key(&self, key: &str) -> Problem {
        self.refuse(format_args!(
            "is not for key {key:?}, expected one that begins with {:?}",
            self.prefix
        ))
    }

    fn refuse(&self, why: std::fmt::Arguments<'_>) -> Problem {
        let detail = format!("token {:?} {why}", self.name);
        Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BucketId, Write};
    use axum::body::Body;
    use axum::extract::Request;
    use axum::middleware::{Next, from_fn};
    use axum::response::IntoResponse;
    use axum::routing::any;
    use axum::{RequestExt, Router};
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    fn token(prefix: &str) -> LimitedToken {
        LimitedToken {
            name: "agents".to_owned(),
            token: Token::given("0123456789abcdef0123456789abcdef").unwrap(),
            buckets: [
                ("ids".to_owned(), Access::Write),
                ("names".to_owned(), Access::Read),
            ]
            .into(),
            prefix: prefix.to_owned(),
        }
    }

    /// Whether a request gets to the handler that the table has for it.
    async fn is_permitted(prefix: &str, method: Method, uri: &str) -> bool {
        let caller = Caller::Limited(Arc::new(token(prefix)));
        let look = from_fn(move |mut request: Request, next: Next| {
            let caller = caller.clone();
            async move {
                let params = request.extract_parts::<RawPathParams>().await.ok();
                let permitted = caller.permit(request.method(), request.uri(), params.as_ref());
                match permitted {
                    Ok(()) => next.run(request).await,
                    Err(problem) => problem.into_response(),
                }
            }
        });
        let router = Router::new()
            .route("/v1/kv", any(|| async {}))
            .route("/v1/kv/{bucket}", any(|| async {}))
            .route("/v1/kv/{bucket}/{*key}", any(|| async {}))
            .route("/v1/plugins/{bucket}", any(|| async {}))
            .fallback(|| async {})
            .layer(look);
        let request = Request::builder().method(method).uri(uri);
        let request = request.body(Body::empty()).unwrap();
        let response = TowerToHyperService::new(router).call(request).await;
        match response.unwrap().status() {
            StatusCode::OK => true,
            StatusCode::FORBIDDEN => false,
            other => panic!("{uri}: {other}"),
        }
    }

    #[tokio::test]
    async fn a_token_is_good_for_its_buckets_and_for_nothing_else() {
        for (method, path) in [
            // It has the token's own buckets only.
            (Method::GET, "/v1/kv"),
            (Method::GET, "/v1/kv/ids"),
            (Method::GET, "/v1/kv/ids?watch=1"),
            (Method::GET, "/v1/kv/ids/a/b"),
            (Method::GET, "/v1/kv/n%61mes/k"),
            (Method::PUT, "/v1/kv/ids/k"),
            (Method::DELETE, "/v1/kv/ids/k"),
            (Method::PATCH, "/v1/kv/ids/k"),
            (Method::POST, "/v1/kv/ids/batch"),
        ] {
            assert!(is_permitted("", method, path).await, "{path}");
        }
        for (method, path) in [
            (Method::PUT, "/v1/kv/names/k"),
            (Method::DELETE, "/v1/kv/names/k"),
            (Method::PATCH, "/v1/kv/names/k"),
            (Method::POST, "/v1/kv/names/batch"),
            (Method::GET, "/"),
            (Method::GET, "/metrics"),
            (Method::POST, "/v1/kv"),
            (Method::GET, "/v1/kv/"),
            (Method::GET, "/v1/kv/other/k"),
            (Method::GET, "/v1/kv/ids%2Fk"),
            (Method::GET, "/v1/kvs/ids/k"),
            (Method::GET, "/v1/plugins/ids"),
            (Method::GET, "/v1/config"),
        ] {
            assert!(!is_permitted("", method, path).await, "{path}");
        }
    }

    #[tokio::test]
    async fn keys_are_those_with_the_prefix_as_the_handlers_read_them() {
        for (prefix, method, path) in [
            ("eu-", Method::PUT, "/v1/kv/ids/eu-1"),
            ("eu-", Method::GET, "/v1/kv/ids/%65u-1"),
            ("eu-", Method::POST, "/v1/kv/ids/batch"),
            ("a+", Method::GET, "/v1/kv/ids/a+1"),
            ("a+", Method::GET, "/v1/kv/ids/a%2B1"),
            ("a b", Method::GET, "/v1/kv/ids/a%20b"),
            ("%+5", Method::GET, "/v1/kv/ids/%+5x"),
            ("/", Method::GET, "/v1/kv/ids//x"),
        ] {
            assert!(is_permitted(prefix, method, path).await, "{path}");
        }
        for (prefix, method, path) in [
            ("eu-", Method::PUT, "/v1/kv/ids/us-1"),
            ("eu-", Method::PUT, "/v1/kv/ids/batch"),
            ("eu-", Method::GET, "/v1/kv/ids/EU-1"),
            ("eu-", Method::GET, "/v1/kv/ids/../eu-1"),
            ("eu-", Method::GET, "/v1/kv/ids//eu-1"),
            ("a ", Method::GET, "/v1/kv/ids/a+1"),
            ("\u{5}", Method::GET, "/v1/kv/ids/%+5x"),
            // No text: the handler would refuse it, too.
            ("\u{fffd}", Method::GET, "/v1/kv/ids/%ff"),
        ] {
            assert!(!is_permitted(prefix, method, path).await, "{path}");
        }
    }

    #[test]
    fn a_list_is_of_keys_with_the_prefix() {
        let caller = Caller::Limited(Arc::new(token("eu-")));
        assert!(caller.may_list("eu-").is_ok() && caller.may_list("eu-a").is_ok());
        for prefix in ["", "e", "us-"] {
            let problem = caller.may_list(prefix).unwrap_err();
            assert!(
                problem.detail.contains("\"eu-\" only"),
                "{}",
                problem.detail
            );
        }
        assert!(Caller::Admin.may_list("").is_ok());
    }

    #[test]
    fn a_batch_is_within_the_prefix_whole_or_not_at_all() {
        let write = |key: &str| Write::delete(BucketId(1), key);
        let batch = |keys: &[&str], replace: bool| WriteBatch {
            writes: keys.iter().map(|key| write(key)).collect(),
            replace: if replace {
                vec![BucketId(1)]
            } else {
                Vec::new()
            },
            ..WriteBatch::default()
        };
        let limited = |prefix: &str| Caller::Limited(Arc::new(token(prefix)));
        assert!(
            limited("eu-")
                .may_commit(&batch(&["eu-1", "eu-2"], false))
                .is_ok()
        );
        let problem = limited("eu-")
            .may_commit(&batch(&["eu-1", "us-1"], false))
            .unwrap_err();
        assert_eq!(
            (problem.status.as_u16(), problem.detail.contains("us-1")),
            (403, true)
        );
        assert!(limited("eu-").may_commit(&batch(&["eu-1"], true)).is_err());
        assert!(limited("").may_commit(&batch(&["x"], true)).is_ok());
        assert!(Caller::Admin.may_commit(&batch(&["x"], true)).is_ok());
    }
}
