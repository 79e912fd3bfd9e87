//! Tokens for a part of the store: some buckets, and of their keys those that begin in one way.

use super::problem::Problem;
use super::token::Token;
use crate::plugin::Access;
use crate::store::WriteBatch;
use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{Method, StatusCode, Uri};
use std::borrow::Cow;
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
        // The gate stands before every endpoint and says who it let in.
        Ok(parts.extensions.get().cloned().unwrap_or(Self::Admin))
    }
}

impl Caller {
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
    /// Whether a request may go on; of batches and imports, this looks at the bucket only.
    ///
    /// # Errors
    /// 403 with what is beyond the token.
    pub(super) fn permit(&self, method: &Method, uri: &Uri) -> Result<(), Problem> {
        let Some((bucket, key)) = bucket_and_key(uri.path()) else {
            return Err(self.refuse(format_args!("is for /v1/kv/{{bucket}} and its keys")));
        };
        let reads = matches!(*method, Method::GET | Method::HEAD);
        match self.buckets.get(&*bucket) {
            None => Err(self.refuse(format_args!("is not for bucket {bucket:?}"))),
            Some(Access::Read) if !reads => {
                Err(self.refuse(format_args!("is for reading bucket {bucket:?} only")))
            }
            Some(_) => match key {
                None => self.permit_list(uri.query().unwrap_or_default()),
                // Whatever is named in the body is looked at when it is read.
                Some(key)
                    if *method == Method::POST && matches!(&*key, "batch" | "import" | "undo") =>
                {
                    Ok(())
                }
                Some(key) if self.has_key(&key) => Ok(()),
                Some(key) => Err(self.not_its_key(&key)),
            },
        }
    }

    fn permit_list(&self, query: &str) -> Result<(), Problem> {
        let mut prefixes = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("prefix="));
        let (prefix, more) = (prefixes.next().unwrap_or_default(), prefixes.next());
        // In a query, unlike in a path, a plus is a space.
        if more.is_none() && self.has_key(&decoded(&prefix.replace('+', " "))) {
            return Ok(());
        }
        Err(self.refuse(format_args!(
            "lists keys that begin with {:?} only: expected them as prefix in the query",
            self.prefix
        )))
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

/// Bucket and key of a path of the store, as the endpoints will see them.
pub(super) fn bucket_and_key(path: &str) -> Option<(Cow<'_, str>, Option<Cow<'_, str>>)> {
    let rest = path.strip_prefix("/v1/kv/")?;
    let (bucket, key) = match rest.split_once('/') {
        Some((bucket, key)) => (bucket, Some(decoded(key))),
        None => (rest, None),
    };
    (!bucket.is_empty()).then(|| (decoded(bucket), key))
}

/// A part of a URI without percent-encoding; what is no UTF-8 then begins with no prefix of a config but the empty one.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).filter(|_| *first == b'%');
        let byte = digits
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        rest = if byte.is_some() { &after[2..] } else { after };
        bytes.push(byte.unwrap_or(*first));
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BucketId, Write};

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

    fn permitted(token: &LimitedToken, method: Method, uri: &str) -> Result<(), String> {
        let uri = uri.parse().unwrap();
        token.permit(&method, &uri).map_err(|problem| {
            assert_eq!(problem.status, 403);
            problem.detail
        })
    }

    #[test]
    fn a_token_is_good_for_its_buckets_and_for_nothing_else() {
        let token = token("");
        for path in [
            "/v1/kv/ids",
            "/v1/kv/ids?watch=1",
            "/v1/kv/ids/a/b",
            "/v1/kv/n%61mes/k",
        ] {
            assert_eq!(permitted(&token, Method::GET, path), Ok(()), "{path}");
        }
        for method in [Method::PUT, Method::DELETE, Method::PATCH, Method::POST] {
            assert_eq!(permitted(&token, method.clone(), "/v1/kv/ids/k"), Ok(()));
            assert!(
                permitted(&token, method, "/v1/kv/names/k")
                    .unwrap_err()
                    .contains("reading")
            );
        }
        assert!(permitted(&token, Method::POST, "/v1/kv/names/batch").is_err());
        for path in [
            "/",
            "/metrics",
            "/v1/kv",
            "/v1/kv/",
            "/v1/kv/other/k",
            "/v1/kvs/ids/k",
            "/id/x/mappings",
            "/v1/config",
        ] {
            assert!(permitted(&token, Method::GET, path).is_err(), "{path}");
        }
    }

    #[test]
    fn keys_and_lists_are_those_with_the_prefix() {
        let token = token("eu-");
        for (method, path) in [
            (Method::PUT, "/v1/kv/ids/eu-1"),
            (Method::GET, "/v1/kv/ids/%65u-1"),
            (Method::GET, "/v1/kv/ids?limit=5&prefix=eu-a"),
            (Method::GET, "/v1/kv/ids?prefix=%65u%2D"),
            (Method::POST, "/v1/kv/ids/batch"),
        ] {
            assert_eq!(permitted(&token, method, path), Ok(()), "{path}");
        }
        for (method, path) in [
            (Method::PUT, "/v1/kv/ids/us-1"),
            (Method::PUT, "/v1/kv/ids/batch"),
            (Method::GET, "/v1/kv/ids/EU-1"),
            (Method::GET, "/v1/kv/ids"),
            (Method::GET, "/v1/kv/ids?prefix=e"),
            (Method::GET, "/v1/kv/ids?prefix=eu-&prefix="),
            (Method::GET, "/v1/kv/ids?prefix=%ffeu-"),
        ] {
            assert!(permitted(&token, method, path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_prefix_is_read_as_the_list_reads_it() {
        let plus = token("a+");
        assert_eq!(
            permitted(&plus, Method::GET, "/v1/kv/ids?prefix=a%2B"),
            Ok(())
        );
        assert_eq!(permitted(&plus, Method::GET, "/v1/kv/ids/a+1"), Ok(()));
        // That is a list of what begins with "a ".
        assert!(permitted(&plus, Method::GET, "/v1/kv/ids?prefix=a+").is_err());
        let space = token("a ");
        assert_eq!(
            permitted(&space, Method::GET, "/v1/kv/ids?prefix=a+"),
            Ok(())
        );
        assert!(permitted(&space, Method::GET, "/v1/kv/ids?prefix=a%2B").is_err());
        // No number has a sign there.
        assert!(permitted(&token("\u{1}"), Method::GET, "/v1/kv/ids/%+1").is_err());
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
