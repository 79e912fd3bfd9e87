//! The admin API's client: where it is, the token, one request on one connection, and errors that say what to do.

mod connect;
mod early;
mod token;

pub(crate) use connect::{ADMIN_DEFAULT, Connect, DATA_DEFAULT, parse_address, show_address};

use super::problem::Problem;
use crate::admin::Address;
use bytes::Bytes;
use early::Early;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use token::{Token, find_token};
use tokio::io::{AsyncRead, AsyncWrite};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For answers that need no compiling and no bulk write.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// For uploads: the proxy itself gives up on a compile after two minutes.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// A JSON answer; exports are streamed and have no bound.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Why a body could not be made.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a request to the admin API gave no answer to go on with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody answers there.
    #[error(
        "no proxy answers at {address}: {reason}\n  start one:      throwbar serve\n  or point to it: --admin ADDR, or THROWBAR_ADMIN"
    )]
    Connect {
        /// The address.
        address: String,
        /// What the system says; no source, for the advice comes after it.
        reason: std::io::Error,
    },
    /// The token is missing or wrong.
    #[error("{address} refuses the token: {}", advice(.sent, .places))]
    Unauthorized {
        /// The address.
        address: String,
        /// Whether a token was sent.
        sent: bool,
        /// Where it was looked for, or found.
        places: Vec<String>,
    },
    /// The proxy says no, and why.
    #[error("{0}")]
    Problem(Problem),
    /// Another program answers there, or another listener of the proxy.
    #[error(
        "{address}: what answers there is not throwbar's admin API: {answer}\n  point to it: --admin ADDR, or THROWBAR_ADMIN"
    )]
    Foreign {
        /// The address.
        address: String,
        /// What it said.
        answer: String,
    },
    /// The conversation broke off.
    #[error("{address}: {reason}")]
    Broken {
        /// The address.
        address: String,
        /// What happened.
        reason: String,
    },
}

fn advice(sent: &bool, places: &[String]) -> String {
    if *sent {
        format!(
            "it was read from {}; give that proxy's own with --data DIR, --token-file FILE or THROWBAR_TOKEN",
            places.join(", ")
        )
    } else {
        format!(
            "none was found, looked at {}; give --data DIR (the proxy's data directory), --token-file FILE or THROWBAR_TOKEN",
            places.join(", ")
        )
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its `ETag` without quotes.
    pub(crate) etag: Option<String>,
    /// When the key that was read ends, if it does.
    pub(crate) expires_at: Option<String>,
    /// How old what was read may be, if proxies share it.
    pub(crate) staleness: Option<Duration>,
    /// The body.
    pub(crate) body: Bytes,
    /// Where it came from.
    address: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// If it is not what we expect: another program, or another release of the proxy.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body).map_err(|e| {
            let foreign = ClientError::Foreign {
                address: self.address.clone(),
                answer: e.to_string(),
            };
            foreign.into()
        })
    }
}

/// A proxy's admin API.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    address: Address,
    token: Token,
}

impl Client {
    /// The admin API at an address, with the token in a file if there is one.
    pub(crate) fn new(address: Address, token_file: Option<&Path>) -> anyhow::Result<Self> {
        let token = match token_file {
            Some(file) => find_token(Some(file), None)?,
            None => Token::default(),
        };
        Ok(Self { address, token })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> String {
        show_address(&self.address)
    }

    /// Reads.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.send(Method::GET, path, &[], http_body_util::Empty::new(), None)
            .await
    }

    /// Sends a small JSON body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn post_json(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<Answer, ClientError> {
        let headers = [(header::CONTENT_TYPE, "application/json".to_owned())];
        let body = http_body_util::Full::new(Bytes::from(body.to_string()));
        self.send(Method::POST, path, &headers, body, Some(UPLOAD_TIMEOUT))
            .await
    }

    /// Sends a body and shows its progress; `after` says what the proxy does with it then.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn upload(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
        after: &'static str,
    ) -> Result<Answer, ClientError> {
        let body = body.into();
        let total = body.len() as u64;
        let upload = super::progress::Upload::new(body);
        let sent = upload.sent();
        let headers = [(header::CONTENT_TYPE, content_type.to_owned())];
        let work = self.send(method, path, &headers, upload, Some(UPLOAD_TIMEOUT));
        super::progress::watch(total, sent, after, work).await
    }

    /// Sends a body of any length for an answer that waits for all of it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn upload_all<B>(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, String)],
        body: B,
    ) -> Result<Answer, ClientError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        self.send(method, path, headers, body, Some(UPLOAD_TIMEOUT))
            .await
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn send<B>(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, String)],
        body: B,
        timeout: Option<Duration>,
    ) -> Result<Answer, ClientError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let timeout = timeout.unwrap_or(ANSWER_TIMEOUT);
        let walk = async {
            let response = self.exchange_streams(method, path, headers, body).await?;
            let field = |name: &str| {
                let value = response.headers().get(name)?.to_str().ok()?;
                Some(value.trim_matches('"').to_owned())
            };
            let (etag, expires_at) = (field("etag"), field("throwbar-expires-at"));
            let staleness = staleness_of(response.headers());
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|e| self.broken(e))?
                .to_bytes();
            let address = self.address();
            Ok(Answer {
                etag,
                expires_at,
                staleness,
                body,
                address,
            })
        };
        match tokio::time::timeout(timeout, walk).await {
            Ok(result) => result,
            Err(_) => Err(self.broken(format!("no answer within {timeout:?}"))),
        }
    }

    /// Reads an answer of any length as it comes: the caller takes its frames.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn stream(
        &self,
        path: &str,
        headers: &[(HeaderName, String)],
    ) -> Result<Response<Incoming>, ClientError> {
        self.stream_within(ANSWER_TIMEOUT, Method::GET, path, headers)
            .await
    }

    /// The same after a POST without a body, which the proxy may work on for long before it answers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn stream_post(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        self.stream_within(UPLOAD_TIMEOUT, Method::POST, path, &[])
            .await
    }

    async fn stream_within(
        &self,
        timeout: Duration,
        method: Method,
        path: &str,
        headers: &[(HeaderName, String)],
    ) -> Result<Response<Incoming>, ClientError> {
        let open = self.exchange_streams(method, path, headers, http_body_util::Empty::new());
        match tokio::time::timeout(timeout, open).await {
            Ok(result) => result,
            Err(_) => Err(self.broken(format!("no answer within {timeout:?}"))),
        }
    }

    /// An error of the conversation.
    pub(crate) fn broken(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Broken {
            address: self.address(),
            reason: reason.to_string(),
        }
    }

    /// Sends a body of any length while the caller takes the frames of the answer to it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub(crate) async fn exchange_streams<B>(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, String)],
        body: B,
    ) -> Result<Response<Incoming>, ClientError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.host())
            .header(
                header::USER_AGENT,
                concat!("throwbar/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = &self.token.value {
            request = request.header(header::AUTHORIZATION, token);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(|e| self.broken(e))?;
        let response = match &self.address {
            Address::Tcp(address) => {
                let socket = self
                    .connect(tokio::net::TcpStream::connect(reachable(*address)))
                    .await?;
                // A request is one write: waiting for more of it only costs time.
                let _ = socket.set_nodelay(true);
                self.exchange(socket, request).await?
            }
            Address::Unix(path) => {
                let socket = self.connect(tokio::net::UnixStream::connect(path)).await?;
                self.exchange(socket, request).await?
            }
        };
        self.checked(response).await
    }

    /// What a `Host` field of ours says: the admin API takes its own address and names of loopback only.
    fn host(&self) -> String {
        match &self.address {
            Address::Tcp(address) => reachable(*address).to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        }
    }

    async fn connect<S>(
        &self,
        connecting: impl Future<Output = std::io::Result<S>>,
    ) -> Result<S, ClientError> {
        let timed = tokio::time::timeout(CONNECT_TIMEOUT, connecting);
        let result = timed
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        result.map_err(|reason| ClientError::Connect {
            address: self.address(),
            reason,
        })
    }

    async fn exchange<S, B>(
        &self,
        socket: S,
        request: Request<B>,
    ) -> Result<Response<Incoming>, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(Early::new(socket)))
                .await
                .map_err(|e| self.broken(e))?;
        // Ends with the exchange: when `sender` and the body are dropped, or with the runtime.
        tokio::spawn(connection);
        sender
            .send_request(request)
            .await
            .map_err(|e| self.broken(e))
    }

    /// Turns an answer with an error status into the error it describes.
    async fn checked(
        &self,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, ClientError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(ClientError::Unauthorized {
                address: self.address(),
                sent: self.token.value.is_some(),
                places: self.token.places.clone(),
            });
        }
        const PROBLEM_BYTES_MAX: usize = 16 << 20;
        let staleness = staleness_of(response.headers());
        let body = Limited::new(response.into_body(), PROBLEM_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| self.broken(format!("status {status}, and then: {e}")))?
            .to_bytes();
        let mut problem = Problem::of(status, &body);
        problem.staleness = staleness;
        // A request that the API's HTTP itself cannot take is answered without a document.
        let unread = body.is_empty() && matches!(status.as_u16(), 400 | 414 | 431);
        if problem.code.is_none() && !unread {
            return Err(ClientError::Foreign {
                address: self.address(),
                answer: problem.to_string(),
            });
        }
        Err(ClientError::Problem(problem))
    }
}

/// How old what was read may be, as the fields of an answer say it.
pub(crate) fn staleness_of(fields: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = fields
        .get("throwbar-staleness")?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// An address to dial: one that listens on every interface is reached on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            address.set_ip(std::net::Ipv6Addr::LOCALHOST.into());
        }
        _ => {}
    }
    address
}

/// A piece of a path or query, with everything escaped that could mean something there.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write;
    // A segment of dots alone is taken by some parsers for a step up, however it is meant.
    let dots = matches!(text, "." | "..");
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'.' if dots => out.push_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => write!(out, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    out
}

/// A path with a query of the parameters that have a value.
pub(crate) fn with_query(path: String, parameters: &[(&str, Option<String>)]) -> String {
    let mut out = path;
    let mut mark = '?';
    for (name, value) in parameters {
        if let Some(value) = value {
            out.push(mark);
            out.push_str(name);
            out.push('=');
            out.push_str(&encode(value));
            mark = '&';
        }
    }
    out
}

#[cfg(test)]
mod tests;
