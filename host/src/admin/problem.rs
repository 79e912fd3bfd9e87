//! Errors as RFC 9457 problem documents: every refusal of the admin API has this shape.

use super::operation::Told;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

/// Media type of a problem document.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// One refusal, told to the caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The response's status.
    pub status: StatusCode,
    /// A stable word for programs, such as `not-a-component`.
    pub code: &'static str,
    /// What is wrong: the thing, the value and what was expected.
    pub detail: String,
    /// The bucket and the key that it is about, if it is about one.
    pub entry: Option<Box<(String, String)>>,
    /// As many plain puts to one bucket, each as large as the largest of those that are too much at once, are taken for sure.
    pub writes_max: Option<usize>,
    /// Single problems of a text that has several.
    pub errors: Vec<Value>,
    /// Fields of the response.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem without single errors.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            entry: None,
            writes_max: None,
            errors: Vec::new(),
            headers: Vec::new(),
        }
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 404: the thing named is not there.
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// 412: a condition of the request does not hold.
    pub fn precondition(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "precondition-failed",
            detail,
        )
    }

    /// 422: understood, and wrong.
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// 413: the body is larger than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            format!("body is larger than {limit} bytes"),
        )
    }

    /// 503: the process ends, and does not wait for the rest of a body.
    pub fn stopping() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "the proxy is ending",
        )
    }

    /// Says which entry it is about.
    pub fn about(mut self, bucket: String, key: String) -> Self {
        self.entry = Some(Box::new((bucket, key)));
        self
    }

    /// Adds single errors.
    pub fn with_errors(mut self, errors: Vec<Value>) -> Self {
        self.errors = errors;
        self
    }

    /// Adds a field to the response.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The document.
    pub fn to_json(&self) -> Value {
        let mut document = json!({
            "type": format!("urn:throwbar:error:{}", self.code),
            "title": self.status.canonical_reason().unwrap_or("error"),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        if let Some((bucket, key)) = self.entry.as_deref() {
            document["bucket"] = bucket.as_str().into();
            document["key"] = key.as_str().into();
        }
        if let Some(most) = self.writes_max {
            document["writes_max"] = most.into();
        }
        if !self.errors.is_empty() {
            document["errors"] = Value::Array(self.errors.clone());
        }
        document
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, format!("{}\n", self.to_json())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        Told::Refused(self.code, self.detail).within(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_type_status_and_code() {
        let problem = Problem::invalid("world", "it exports nothing");
        assert_eq!(
            problem.to_json(),
            json!({
                "type": "urn:throwbar:error:world",
                "title": "Unprocessable Entity",
                "status": 422,
                "code": "world",
                "detail": "it exports nothing",
            })
        );
    }

    #[test]
    fn a_problem_of_one_entry_names_it_for_programs() {
        let problem = Problem::precondition("it is absent").about("b".into(), "k".into());
        let document = problem.to_json();
        assert_eq!(
            (&document["bucket"], &document["key"]),
            (&json!("b"), &json!("k"))
        );
    }

    #[test]
    fn single_errors_and_fields_are_sent_along() {
        let response = Problem::not_found("no-such-bucket", "no bucket \"x\"")
            .with_errors(vec![json!({"line": 3})])
            .with_header(header::ALLOW, HeaderValue::from_static("GET"))
            .into_response();
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()[header::CONTENT_TYPE], CONTENT_TYPE);
        assert_eq!(response.headers()[header::ALLOW], "GET");
    }
}
