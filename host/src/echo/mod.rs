//! A server that answers with what it received, HTTP and WebSocket: for trying things out, demonstrations and tests.
//!
//! Not a part of the data plane. It trusts its clients more than the proxy would, but keeps at most 4 KiB of a request
//! and one chunk of a WebSocket.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use sha1::{Digest, Sha1};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

mod websocket;

/// Connections served at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 65_536;

/// Part of a request body that is sent back.
const BODY_BYTES_SHOWN: usize = 4 << 10;

/// Bytes read from a WebSocket at once.
const CHUNK_BYTES: usize = 16 << 10;

/// A client must have sent its request's head by then.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait when no connection can be accepted, as when descriptors run out.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// What RFC 6455 has appended to a key before it is hashed.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Answers each request on the listener with a JSON object of what it held, and echoes the messages of each WebSocket.
///
/// `name` tells one echo server from another: it stands in the answer and in its `x-echo-server` field. Never ends;
/// dropping the future closes every connection.
///
/// # Errors
/// None so far: a connection that fails ends alone, and what cannot be accepted is tried again.
pub async fn serve(listener: TcpListener, name: String) -> io::Result<Infallible> {
    let name: Arc<str> = name.into();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(connection(socket, name.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "echo: cannot accept");
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves requests until the connection ends, or its WebSocket if it becomes one.
async fn connection(socket: TcpStream, name: Arc<str>) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "echo: socket refused");
        return;
    }
    let (upgrades, mut upgraded) = tokio::sync::mpsc::channel(1);
    let service = service_fn(move |request| {
        let (name, upgrades) = (name.clone(), upgrades.clone());
        async move { Ok::<_, Infallible>(answer(request, &name, &upgrades).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "echo: connection failed");
        return;
    }
    if let Some(upgrade) = upgraded.recv().await
        && let Err(error) = echo_websocket(upgrade).await
    {
        tracing::debug!(%error, "echo: websocket failed");
    }
}

async fn answer(
    mut request: Request<Incoming>,
    name: &str,
    upgrades: &tokio::sync::mpsc::Sender<OnUpgrade>,
) -> Response<Full<Bytes>> {
    let mut response = match websocket_accept(&request) {
        // One upgrade ends the requests of a connection, so there is room for it.
        Some(accept) if upgrades.try_send(hyper::upgrade::on(&mut request)).is_ok() => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            response
        }
        _ => describe(request, name).await,
    };
    if let Ok(name) = HeaderValue::from_str(name) {
        response.headers_mut().insert("x-echo-server", name);
    }
    response
}

/// The proof that a WebSocket request was understood, if it is one.
fn websocket_accept<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let asks = request.method() == Method::GET
        && has_token(headers, CONNECTION, "upgrade")
        && has_token(headers, UPGRADE, "websocket");
    let key = headers
        .get(http::header::SEC_WEBSOCKET_KEY)
        .filter(|_| asks)?;
    let digest = Sha1::new()
        .chain_update(key.as_bytes())
        .chain_update(ACCEPT_GUID)
        .finalize();
    HeaderValue::from_str(&STANDARD.encode(digest)).ok()
}

fn has_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|found| found.trim().eq_ignore_ascii_case(token))
}

/// The answer to a plain request: a JSON object of what it held.
async fn describe(request: Request<Incoming>, name: &str) -> Response<Full<Bytes>> {
    let (head, mut body) = request.into_parts();
    let mut shown = Vec::new();
    let mut body_bytes = 0_u64;
    let mut failed = None;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                body_bytes += data.len() as u64;
                let room = BODY_BYTES_SHOWN - shown.len();
                shown.extend_from_slice(&data[..data.len().min(room)]);
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let path = head
        .uri
        .path_and_query()
        .map_or("", |path_and_query| path_and_query.as_str());
    let mut description = serde_json::json!({
        "server": name,
        "method": head.method.as_str(),
        "path": path,
        "headers": describe_headers(&head.headers),
        "body": String::from_utf8_lossy(&shown),
        "body_bytes": body_bytes,
    });
    let mut status = StatusCode::OK;
    if let Some(error) = failed {
        status = StatusCode::BAD_REQUEST;
        description["error"] = error.to_string().into();
    }
    let mut text = description.to_string();
    text.push('\n');
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Fields by name; the values of one given more than once are joined with commas.
fn describe_headers(headers: &HeaderMap) -> serde_json::Map<String, serde_json::Value> {
    headers
        .keys()
        .map(|name| {
            let values: Vec<_> = headers
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            (name.as_str().to_owned(), values.join(", ").into())
        })
        .collect()
}

/// Echoes messages until the client closes.
async fn echo_websocket(upgrade: OnUpgrade) -> io::Result<()> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let parts = upgraded
        .downcast::<TokioIo<TcpStream>>()
        .map_err(|_| io::Error::other("not the socket that was accepted"))?;
    let mut socket = parts.io.into_inner();
    let mut echo = websocket::Echo::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut out = Vec::new();
    let mut end = echo.take(&parts.read_buf, &mut out);
    loop {
        socket.write_all(&out).await?;
        out.clear();
        if end.is_break() {
            return socket.shutdown().await;
        }
        let read = socket.read(&mut chunk).await?;
        if read == 0 {
            return Ok(());
        }
        end = echo.take(&chunk[..read], &mut out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_request_is_answered_with_the_proof_of_the_standard() {
        let request = Request::get("/chat")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .expect("a request");
        let accept = websocket_accept(&request).expect("a proof");
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_request_without_a_key_is_no_websocket() {
        let request = Request::get("/")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(())
            .expect("a request");
        assert_eq!(websocket_accept(&request), None);
    }

    /// Starts a server and connects to it.
    async fn connect() -> (TcpStream, JoinSet<io::Result<Infallible>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut server = JoinSet::new();
        server.spawn(serve(listener, "one".to_owned()));
        (
            TcpStream::connect(address).await.expect("connected"),
            server,
        )
    }

    #[tokio::test]
    async fn a_request_is_described_in_json() {
        let (mut client, _server) = connect().await;
        let body = "x".repeat(5_000);
        let request = format!(
            "PUT /a?b=c HTTP/1.1\r\nhost: h\r\nx-id: 1\r\nx-id: 2\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("answered");
        let (head, json) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("x-echo-server: one"), "{head}");
        let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(json["server"], "one");
        assert_eq!(json["method"], "PUT");
        assert_eq!(json["path"], "/a?b=c");
        assert_eq!(json["headers"]["x-id"], "1, 2");
        assert_eq!(json["body_bytes"], 5_000);
        assert_eq!(json["body"], body[..BODY_BYTES_SHOWN]);
    }

    #[tokio::test]
    async fn a_websocket_is_echoed_until_it_is_closed() {
        use crate::stream::frame::samples::{client_frame, server_frame};
        let (mut client, _server) = connect().await;
        let mut sent =
            b"GET /ws HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                .to_vec();
        // In one piece, so that a frame follows the head at once.
        sent.extend(client_frame(0x81, b"hello"));
        client.write_all(&sent).await.expect("sent");
        let mut expected = server_frame(0x81, b"hello");
        expected.extend(server_frame(0x82, &[3; 70_000]));
        expected.extend(server_frame(0x88, &[0x03, 0xe8]));
        let mut rest = client_frame(0x82, &[3; 70_000]);
        rest.extend(client_frame(0x88, &[0x03, 0xe8]));
        let (mut reader, mut writer) = client.split();
        let mut received = Vec::new();
        let (sent, read) = tokio::join!(writer.write_all(&rest), reader.read_to_end(&mut received));
        sent.expect("sent");
        read.expect("received");
        let head = received
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("a head")
            + 4;
        let text = String::from_utf8_lossy(&received[..head]);
        assert!(text.starts_with("HTTP/1.1 101"), "{text}");
        assert!(text.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{text}");
        assert!(received[head..] == expected);
    }
}
