//! HTTP/1.1 requests, one connection each.

use super::soon;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    path: String,
    fields: Vec<(String, String)>,
    body: Bytes,
}

/// A response, read to its end.
#[derive(Debug, Clone)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

impl Request {
    /// A request with a method.
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.into(),
            path: path.into(),
            fields: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// A GET.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A POST.
    pub fn post(path: &str, body: impl Into<Bytes>) -> Self {
        Self::new("POST", path).body(body)
    }

    /// Adds a field.
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Adds fields.
    pub fn fields(self, fields: &[(&str, &str)]) -> Self {
        fields
            .iter()
            .fold(self, |request, (name, value)| request.field(name, value))
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    fn build(self, address: SocketAddr) -> http::Request<Full<Bytes>> {
        let mut request = http::Request::builder()
            .method(self.method.as_str())
            .uri(self.path.as_str());
        if !self
            .fields
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            request = request.header("host", address.to_string());
        }
        for (name, value) in &self.fields {
            request = request.header(name.as_str(), value.as_str());
        }
        request.body(Full::new(self.body)).expect("a valid request")
    }

    /// Sends it; panics if there is no whole response.
    pub async fn send(self, address: SocketAddr) -> Response {
        let shown = format!("{} {}", self.method, self.path);
        match soon(&format!("a response to {shown}"), self.try_send(address)).await {
            Ok(response) => response,
            Err(error) => panic!("{shown}: {error}"),
        }
    }

    /// Sends it.
    pub async fn try_send(self, address: SocketAddr) -> Result<Response, String> {
        KeptAlive::connect(address).await?.send(self).await
    }
}

/// A connection that is used again and again.
pub struct KeptAlive {
    address: SocketAddr,
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

impl KeptAlive {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            // The one who sent the request is told.
            let _ = connection.await;
        });
        Ok(Self { address, sender })
    }

    /// Sends a request and reads the whole response.
    pub async fn send(&mut self, request: Request) -> Result<Response, String> {
        let request = request.build(self.address);
        self.sender
            .ready()
            .await
            .map_err(|e| format!("ready: {e}"))?;
        let response = self.sender.send_request(request).await;
        let response = response.map_err(|e| format!("response: {e}"))?;
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.map_err(|e| format!("body: {e}"))?;
        Ok(Response {
            status: parts.status.as_u16(),
            headers: parts.headers,
            trailers: collected.trailers().cloned(),
            body: collected.to_bytes(),
        })
    }
}

impl Response {
    /// A field's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |v| v.to_str().unwrap_or("?"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}
