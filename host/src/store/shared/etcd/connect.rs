//! Connections to one member of etcd at a time, and what its errors mean.

use super::EngineError;
use super::keys::Keys;
use crate::store::shared::settings::EtcdSettings;
use crate::store::shared::stranger::{self, Expected};
use crate::store::shared::tls::{self, Pem};
use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, Identity, KvClient, LeaseClient,
    TlsOptions, WatchClient,
};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Longest answer that is taken: a page of entries, or a piece of the log.
/// In tests little, so that they meet it.
const ANSWER_BYTES_MAX: usize = if cfg!(test) { 4 << 20 } else { 64 << 20 };
/// How often the connection is probed when nothing is heard; etcd closes those that are probed more often than every 5 s.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// The code of gRPC for what is wrong with a request however often it is made.
const DEFINITE: [i32; 7] = [3, 5, 7, 8, 9, 11, 16];
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

/// Makes connections.
pub(super) struct Connector {
    settings: EtcdSettings,
    options: ConnectOptions,
    /// The member to begin with, counted on when it fails.
    member: AtomicUsize,
    keys: Keys,
}

/// A connection to one member, which answered and had a leader.
#[derive(Clone)]
pub(super) struct Connection {
    client: Client,
    pub(super) endpoint: Arc<str>,
    /// The newest revision when it was made.
    pub(super) revision: u64,
    pub(super) cluster: u64,
}

impl Connection {
    /// Whether both are handles of the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.endpoint, &other.endpoint)
    }

    pub(super) fn kv(&self) -> KvClient {
        self.client
            .kv_client()
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn leases(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(super) fn watch(&self) -> WatchClient {
        self.client
            .watch_client()
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// The version of the member.
    pub(super) async fn version(&self) -> Result<String, Error> {
        let status = self.client.maintenance_client().status().await?;
        Ok(status.version().to_owned())
    }
}

impl Connector {
    pub(super) fn new(settings: EtcdSettings, keys: Keys) -> Result<Self, EngineError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(settings.connect_timeout)
            .with_keep_alive(PROBE_INTERVAL, settings.timeout)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(files) = &settings.tls {
            let pem = Pem::read(files)?;
            let mut tls = match pem.ca {
                Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca)),
                None => TlsOptions::new().with_native_roots(),
            };
            if let Some((chain, key)) = pem.certificate {
                tls = tls.identity(Identity::from_pem(chain, key));
            }
            options = options.with_tls(tls);
        }
        if let Some(credentials) = &settings.credentials {
            let user = credentials.user.clone().ok_or_else(|| {
                EngineError::Refused("`user` is missing, expected one beside `password`".into())
            })?;
            options = options.with_user(user, credentials.password.clone());
        }
        Ok(Self {
            settings,
            options,
            member: AtomicUsize::new(0),
            keys,
        })
    }

    /// Connects to the first member that answers, beginning with the one that was used last.
    pub(super) async fn connect(&self) -> Result<Connection, EngineError> {
        let endpoints = &self.settings.endpoints;
        let first = self.member.load(Relaxed);
        let (mut failed, mut unclear) = (None, None);
        for member in first..first + endpoints.len() {
            let endpoint = &endpoints[member % endpoints.len()];
            let failure = match self.open(endpoint).await {
                Ok(connection) => {
                    self.member.store(member % endpoints.len(), Relaxed);
                    return Ok(connection);
                }
                Err(failure) => failure,
            };
            if failure.is_unclear {
                unclear = Some((endpoint, failure));
                continue;
            }
            // What a member refuses says more than that another is away.
            if !matches!(failed, Some(EngineError::Refused(_))) {
                failed = Some(failure.unsent());
            }
        }
        // It takes a while, in which another member would have answered.
        if let Some((endpoint, failure)) = unclear
            && !matches!(failed, Some(EngineError::Refused(_)))
        {
            // Boxed: it is rare, and would make every request's future larger.
            return Err(Box::pin(self.explained(endpoint, failure)).await);
        }
        Err(failed.unwrap_or_else(|| EngineError::Refused("`endpoints` is empty".into())))
    }

    /// The next connection is made to another member.
    pub(super) fn avoid(&self, connection: &Connection) {
        let endpoints = &self.settings.endpoints;
        let member = self.member.load(Relaxed);
        if endpoints
            .get(member)
            .is_some_and(|endpoint| **endpoint == *connection.endpoint)
        {
            self.member.store((member + 1) % endpoints.len(), Relaxed);
        }
    }

    /// A failure to connect, with what to do about it if that can be told.
    async fn explained(&self, endpoint: &str, mut failure: Failure) -> EngineError {
        let (_, address) = endpoint.split_once("://").unwrap_or(("", endpoint));
        let files = self.settings.tls.as_ref();
        if let Some(advice) = stranger::advice(address, None, Expected::Etcd, files.is_some()).await
        {
            failure.reason = format!("etcd {endpoint}: {advice}");
        } else if let Some(files) = files
            && let Some(advice) = tls::advice_if_closed(&failure.reason, files, "store.etcd")
        {
            failure.reason = format!("{}: {advice}", failure.reason);
        }
        failure.unsent()
    }

    async fn open(&self, endpoint: &str) -> Result<Connection, Failure> {
        let made = async {
            let client = Client::connect([endpoint], Some(self.options.clone())).await?;
            let probe = GetOptions::new().with_keys_only();
            let answer = client
                .kv_client()
                .get(self.keys.prefix(), Some(probe))
                .await?;
            Ok((client, answer))
        };
        let (client, answer) = answered(endpoint, self.settings.connect_timeout, made).await?;
        let header = answer.header();
        Ok(Connection {
            client,
            endpoint: endpoint.into(),
            revision: header.map_or(0, |header| revision(header.revision())),
            cluster: header.map_or(0, etcd_client::ResponseHeader::cluster_id),
        })
    }
}

/// The answer to a request, if it comes in time.
pub(super) async fn answered<T>(
    endpoint: &str,
    timeout: Duration,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(timeout, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Failure::new(endpoint, &error)),
        Err(_) => Err(Failure {
            kind: Kind::Silent,
            is_unclear: false,
            reason: format!("etcd {endpoint}: no answer within {:?}", rounded(timeout)),
        }),
    }
}

/// To milliseconds: what is left of a limit is a number of many digits.
fn rounded(timeout: Duration) -> Duration {
    let half = Duration::from_micros(500);
    Duration::from_millis(timeout.saturating_add(half).as_millis() as u64)
}

/// A revision of etcd's, which are never negative.
pub(super) fn revision(of: i64) -> u64 {
    u64::try_from(of).unwrap_or(0)
}

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure {
    kind: Kind,
    /// Whether it was broken off, in a way that does not say why.
    is_unclear: bool,
    pub(super) reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Surely not done.
    Undone,
    /// Surely not done, and another connection may help: there was nobody, the login is no longer valid, or the member
    /// has no leader.
    Stale,
    Compacted,
    TooLarge,
    AnswerTooLarge,
    LeaseExists,
    Refused,
    /// It may have been done.
    Silent,
}

impl Failure {
    pub(super) fn new(endpoint: &str, error: &Error) -> Self {
        let (kind, text) = match error {
            Error::GRpcStatus(status) => {
                let cause = innermost(status);
                let kind = status_kind(status.code() as i32, status.message(), cause);
                // The transport says little itself; its cause says why.
                let text = match std::error::Error::source(status) {
                    Some(_) => cause.to_string(),
                    None => status.message().to_owned(),
                };
                (kind, text)
            }
            Error::InvalidArgs(text) => (Kind::Refused, text.clone()),
            Error::TransportError(error) => (Kind::Stale, innermost(error).to_string()),
            error => (Kind::Silent, error.to_string()),
        };
        let text = text.strip_prefix("etcdserver: ").unwrap_or(&text);
        let advice = advice(text).map(str::to_owned);
        let reason = match advice.or_else(|| tls::advice(text, "store.etcd")) {
            Some(advice) => format!("etcd {endpoint}: {text}: {advice}"),
            None => format!("etcd {endpoint}: {text}"),
        };
        let is_unclear = match error {
            Error::TransportError(error) => !refused_connection(innermost(error)),
            // What the server itself answered has no cause.
            Error::GRpcStatus(status) => {
                kind == Kind::Silent && std::error::Error::source(status).is_some()
            }
            _ => false,
        };
        Self {
            kind,
            is_unclear,
            reason,
        }
    }

    /// A bucket is larger than it is expected to be.
    pub(super) fn holds_more(endpoint: &str, bucket: &str, bytes_max: usize) -> Self {
        Self {
            kind: Kind::TooLarge,
            is_unclear: false,
            reason: format!(
                "etcd {endpoint}: bucket {bucket:?} holds more than was expected, at most {bytes_max} bytes"
            ),
        }
    }

    pub(super) fn compacted(&self) -> bool {
        self.kind == Kind::Compacted
    }

    pub(super) fn answer_too_large(&self) -> bool {
        self.kind == Kind::AnswerTooLarge
    }

    pub(super) fn lease_exists(&self) -> bool {
        self.kind == Kind::LeaseExists
    }

    /// Whether another connection may do better, with nothing done on this one.
    pub(super) fn again(&self) -> bool {
        self.kind == Kind::Stale
    }

    /// Whether the connection is of no use any longer.
    pub(super) fn ends_connection(&self) -> bool {
        matches!(self.kind, Kind::Undone | Kind::Stale | Kind::Silent)
    }

    /// For a request that changes what others see.
    pub(super) fn sent(self) -> EngineError {
        match self.kind {
            Kind::Silent => EngineError::Unknown(self.reason),
            _ => self.unsent(),
        }
    }

    /// For a request that may be made again.
    pub(super) fn unsent(self) -> EngineError {
        match self.kind {
            Kind::Refused => EngineError::Refused(self.reason),
            Kind::TooLarge => EngineError::TooLarge(self.reason),
            _ => EngineError::Unavailable(self.reason),
        }
    }
}

/// What to do about what etcd says of a login.
fn advice(text: &str) -> Option<&'static str> {
    let says = |part: &str| text.contains(part);
    if says("user name is empty") {
        Some("the server wants a login: set `user` and `password` in [store.etcd]")
    } else if says("authentication failed") {
        Some("see `user` and `password` of [store.etcd]")
    } else if says("authentication is not enabled") {
        Some("leave out `user` and `password` of [store.etcd]")
    } else if says("permission denied") {
        Some(
            "`user` of [store.etcd], or without it the name in `tls.certificate`, needs to read and write all keys that \
             begin with `prefix`",
        )
    } else {
        None
    }
}

/// What the status of an answer means, or the cause that stands for one.
fn status_kind(code: i32, text: &str, cause: &(dyn std::error::Error + 'static)) -> Kind {
    let says = |part: &str| text.contains(part);
    if says("required revision has been compacted") {
        Kind::Compacted
    } else if says("too many operations")
        || says("request is too large")
        || says("received message larger")
    {
        Kind::TooLarge
    } else if says("decoded message length too large") {
        Kind::AnswerTooLarge
    } else if says("lease already exists") {
        Kind::LeaseExists
    } else if code == UNAUTHENTICATED
        || says("revision of auth store is old")
        || says("no leader")
        || refused_connection(cause)
    {
        Kind::Stale
    } else if code == PERMISSION_DENIED
        || (code == INVALID_ARGUMENT && !says("lease"))
        || says("authentication is not enabled")
        || cause.to_string().to_lowercase().contains("certificate")
    {
        Kind::Refused
    } else if DEFINITE.contains(&code) {
        Kind::Undone
    } else {
        Kind::Silent
    }
}

/// Whether there was nobody to send it to.
fn refused_connection(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn innermost<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> &'e (dyn std::error::Error + 'static) {
    causes(error).last().unwrap_or(error)
}
