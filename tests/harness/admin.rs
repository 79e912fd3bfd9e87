//! The admin API's client.

use super::client::{Request, Response};
use super::eventually;
use bytes::Bytes;
use serde_json::Value;
use std::net::SocketAddr;

/// A client of one admin API.
#[derive(Debug, Clone)]
pub struct Admin {
    address: SocketAddr,
    token: Option<String>,
}

impl Admin {
    /// A client with a token.
    pub fn new(address: SocketAddr, token: Option<String>) -> Self {
        Self { address, token }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The field with the token as a line, or nothing.
    pub fn authorization(&self) -> String {
        let token = self.token.as_ref();
        token.map_or_else(String::new, |token| {
            format!("authorization: Bearer {token}\r\n")
        })
    }

    /// PATCH with JSON.
    pub async fn patch(&self, path: &str, body: Value) -> Response {
        self.send(Request::new("PATCH", path).body(body.to_string()))
            .await
    }

    /// Sends a request with the token.
    pub async fn send(&self, request: Request) -> Response {
        self.with_token(request).send(self.address).await
    }

    /// The same, however long the answer takes.
    pub async fn send_and_wait(&self, request: Request) -> Response {
        let answer = self.with_token(request).try_send(self.address).await;
        answer.expect("a response")
    }

    fn with_token(&self, request: Request) -> Request {
        match &self.token {
            Some(token) => request.field("authorization", &format!("Bearer {token}")),
            None => request,
        }
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Response {
        self.send(Request::get(path)).await
    }

    /// PUT.
    pub async fn put(&self, path: &str, body: impl Into<Bytes>) -> Response {
        self.send(Request::new("PUT", path).body(body)).await
    }

    /// POST.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Response {
        self.send(Request::post(path, body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Response {
        self.send(Request::new("DELETE", path)).await
    }

    /// Sets a key; panics if that is refused.
    pub async fn set(&self, bucket: &str, key: &str, value: &str) {
        let response = self
            .put(&format!("/v1/kv/{bucket}/{key}"), value.to_owned())
            .await;
        assert!(
            matches!(response.status, 200 | 201),
            "{} {}",
            response.status,
            response.text()
        );
    }

    /// Pushes a component.
    pub async fn push(&self, plugin: &str, component: impl Into<Bytes>) -> Response {
        self.put(&format!("/v1/plugins/{plugin}"), component).await
    }

    /// Pushes a component and expects that it is taken; returns its digest.
    pub async fn push_ok(&self, plugin: &str, component: impl Into<Bytes>) -> String {
        let response = self.push(plugin, component).await;
        assert!(
            matches!(response.status, 200 | 201),
            "{} {}",
            response.status,
            response.text()
        );
        response.json()["digest"]
            .as_str()
            .expect("a digest")
            .to_owned()
    }

    /// One plugin.
    pub async fn plugin(&self, name: &str) -> Value {
        self.get(&format!("/v1/plugins/{name}")).await.json()
    }

    /// Open streams.
    pub async fn streams(&self) -> Vec<Value> {
        let listed = self.get("/v1/streams?limit=10000").await.json();
        listed["streams"].as_array().expect("a list").clone()
    }

    /// Waits for a number of open streams.
    pub async fn streams_are(&self, count: usize) -> Vec<Value> {
        eventually(&format!("{count} open streams"), async || {
            let streams = self.streams().await;
            (streams.len() == count).then_some(streams)
        })
        .await
    }

    /// The sum of all samples whose name and labels begin so.
    pub async fn metric(&self, begin: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let samples = text.lines().filter(|line| line.starts_with(begin));
        samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits for a metric to fit.
    pub async fn metric_is(&self, begin: &str, fits: impl Fn(f64) -> bool) -> f64 {
        eventually(&format!("metric {begin}"), async || {
            let value = self.metric(begin).await;
            fits(value).then_some(value)
        })
        .await
    }
}
