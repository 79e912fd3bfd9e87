//! Connections to the server that has the data: alone, named by sentinels, or found in a cluster.

use super::keys::Keys;
use super::record::{array, bytes};
use crate::store::shared::EngineError;
use crate::store::shared::settings::{
    Credentials, REDIS_PORT, RedisServers, RedisSettings, SENTINEL_PORT, parse_address,
};
use crate::store::shared::stranger::{self, Expected};
use crate::store::shared::tls::{self, Pem};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, RedisResult,
    ServerErrorKind, TlsCertificates, Value,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Makes connections.
pub(super) struct Connector {
    settings: RedisSettings,
    tls: Option<TlsCertificates>,
    keys: Keys,
}

/// A connection to the server that has the data.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) redis: MultiplexedConnection,
    pub(super) address: String,
    closed: Arc<AtomicBool>,
}

impl Connection {
    /// Whether both are handles of the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.closed, &other.closed)
    }

    /// Whether it is known to have been closed, so that nothing can be sent on it.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }
}

/// Why an address was not found, or does not answer as it should.
type Failed = (String, RedisError);

impl Connector {
    pub(super) fn new(settings: RedisSettings, keys: Keys) -> Result<Self, EngineError> {
        let tls = match &settings.tls {
            None => None,
            Some(files) => {
                let pem = Pem::read(files)?;
                Some(TlsCertificates {
                    client_tls: pem
                        .certificate
                        .map(|(client_cert, client_key)| ClientTlsConfig {
                            client_cert,
                            client_key,
                        }),
                    root_cert: pem.ca,
                })
            }
        };
        Ok(Self {
            settings,
            tls,
            keys,
        })
    }

    /// Finds the server and connects to it. An answer to a request is awaited for the timeout and `longer`.
    pub(super) async fn connect(&self, longer: Duration) -> Result<Connection, EngineError> {
        let limit = self.settings.connect_timeout;
        match tokio::time::timeout(limit, self.find(longer)).await {
            Ok(Ok(connection)) => Ok(connection),
            // Boxed: it is rare, and would make every request's future larger.
            Ok(Err((address, error))) => Err(Box::pin(self.explained(&address, &error)).await),
            Err(_) => {
                let named = self.named();
                let late = format!("no connection within {limit:?}");
                let told = Box::pin(self.silence(&named)).await.unwrap_or(late);
                Err(EngineError::Unavailable(format!("redis {named}: {told}")))
            }
        }
    }

    /// What a failure to connect means, with what to do about it if that can be told.
    async fn explained(&self, address: &str, error: &RedisError) -> EngineError {
        let meant = unsent(address, error);
        let is_unclear = match error.kind() {
            // A certificate says itself what is wrong with it.
            ErrorKind::Io => {
                let is_clear = error.is_connection_refusal() || error.is_timeout();
                !is_clear && matches!(meant, EngineError::Unavailable(_))
            }
            ErrorKind::Parse => true,
            _ => false,
        };
        let of_certificate = match error.kind() {
            ErrorKind::Io => tls::advice(&error.to_string(), "store.redis"),
            _ => None,
        };
        let told = match error.code() {
            Some("NOAUTH") => Some(self.login_wanted(address)),
            Some("WRONGPASS") => {
                let [user, password] = self.login_keys(address);
                let text =
                    format!("the login is refused: see `{user}` and `{password}` of [store.redis]");
                Some(text)
            }
            _ if error.kind() == ErrorKind::RESP3NotSupported => {
                Some("it knows no HELLO, expected Redis 7 or newer".to_owned())
            }
            _ if let Some(advice) = of_certificate => Some(format!("{error}: {advice}")),
            _ if is_unclear => match self.advice(address).await {
                None => self.advice_if_closed(&error.to_string()),
                advice => advice,
            },
            _ if error.is_timeout() => self.silence(address).await,
            _ => None,
        };
        // What could not be read is nothing to show.
        let unread = error.kind() == ErrorKind::Parse;
        let unread = unread.then(|| "what answers there does not speak Redis".to_owned());
        let Some(told) = told.or(unread) else {
            return meant;
        };
        let text = match error.code() {
            Some(code) => format!("redis {address}: {code}: {told}"),
            None => format!("redis {address}: {told}"),
        };
        match meant {
            EngineError::Refused(_) => EngineError::Refused(text),
            _ => EngineError::Unavailable(text),
        }
    }

    async fn advice(&self, address: &str) -> Option<String> {
        let port = match self.is_sentinel(address) {
            true => SENTINEL_PORT,
            false => REDIS_PORT,
        };
        let tls = self.tls.is_some();
        stranger::advice(address, Some(port), Expected::Redis, tls).await
    }

    fn advice_if_closed(&self, error: &str) -> Option<String> {
        let files = self.settings.tls.as_ref()?;
        let advice = tls::advice_if_closed(error, files, "store.redis")?;
        Some(format!("{error}: {advice}"))
    }

    /// What to do about an address that says nothing: without TLS, Redis waits for the end of what TLS begins with.
    async fn silence(&self, address: &str) -> Option<String> {
        match self.tls {
            Some(_) => self.advice(address).await,
            None => None,
        }
    }

    fn login_wanted(&self, address: &str) -> String {
        let [user, password] = self.login_keys(address);
        format!(
            "the server wants a login: set `{password}` in [store.redis], and `{user}` if it is not the default one"
        )
    }

    /// The settings of the login for this address.
    fn login_keys(&self, address: &str) -> [&'static str; 2] {
        match self.is_sentinel(address) {
            true => ["sentinel_user", "sentinel_password"],
            false => ["user", "password"],
        }
    }

    fn is_sentinel(&self, address: &str) -> bool {
        match &self.settings.servers {
            RedisServers::Sentinel { sentinels, .. } => sentinels.iter().any(|it| it == address),
            RedisServers::Single(_) | RedisServers::Cluster(_) => false,
        }
    }

    /// What the settings say of where it is.
    fn named(&self) -> String {
        match &self.settings.servers {
            RedisServers::Single(address) => address.clone(),
            RedisServers::Sentinel { sentinels, master } => {
                format!("{master:?} of sentinels {}", sentinels.join(", "))
            }
            RedisServers::Cluster(addresses) => format!("cluster {}", addresses.join(", ")),
        }
    }

    async fn find(&self, longer: Duration) -> Result<Connection, Failed> {
        let data = self.data(longer);
        match &self.settings.servers {
            RedisServers::Single(address) => self.open(address, REDIS_PORT, &data).await,
            RedisServers::Sentinel { sentinels, master } => {
                let address = self.ask_any(sentinels, Question::Master(master)).await?;
                let mut connection = self.open(&address, REDIS_PORT, &data).await?;
                // A sentinel may not know yet that it was demoted.
                let role: RedisResult<Value> =
                    redis::cmd("ROLE").query_async(&mut connection.redis).await;
                let role = role.map_err(|error| (address.clone(), error))?;
                match array(&role).and_then(|role| bytes(role.first()?)) {
                    Some(b"master") => Ok(connection),
                    _ => Err((address, unexpected("it is no master"))),
                }
            }
            RedisServers::Cluster(addresses) => {
                let address = self.ask_any(addresses, Question::Slot).await?;
                self.open(&address, REDIS_PORT, &data).await
            }
        }
    }

    /// The first answer of any of them, each asked for its share of the time.
    async fn ask_any(
        &self,
        addresses: &[String],
        question: Question<'_>,
    ) -> Result<String, Failed> {
        let share = self.share(addresses.len());
        let mut failed = None;
        for address in addresses {
            let asked = async {
                match question {
                    Question::Master(name) => self.ask_sentinel(address, name).await,
                    Question::Slot => self.ask_cluster(address).await,
                }
            };
            match tokio::time::timeout(share, asked).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => {
                    let reason = format!("no answer within {share:?}");
                    failed = Some((address.clone(), unexpected(&reason)));
                }
            }
        }
        Err(failed.unwrap_or_else(|| (String::new(), unexpected("no address is given"))))
    }

    async fn ask_sentinel(&self, sentinel: &str, master: &str) -> Result<String, Failed> {
        let login = Login {
            credentials: self.settings.sentinel_credentials.as_ref(),
            database: 0,
            timeout: self.settings.timeout,
        };
        let mut connection = self.open(sentinel, SENTINEL_PORT, &login).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let answer: RedisResult<Option<(String, u16)>> =
            question.query_async(&mut connection.redis).await;
        let reason = match answer {
            Ok(Some((host, port))) => return Ok(joined(&host, port)),
            Ok(None) => unexpected(&format!("it knows no master {master:?}")),
            Err(error) => error,
        };
        Err((sentinel.to_owned(), reason))
    }

    async fn ask_cluster(&self, address: &str) -> Result<String, Failed> {
        let mut connection = self
            .open(address, REDIS_PORT, &self.data(Duration::ZERO))
            .await?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("CLUSTER").arg("KEYSLOT").arg(&self.keys.head);
        pipeline.cmd("CLUSTER").arg("SLOTS");
        let answer: RedisResult<(i64, Value)> = pipeline.query_async(&mut connection.redis).await;
        let (slot, slots) = answer.map_err(|error| (address.to_owned(), error))?;
        let mut ranges = array(&slots).unwrap_or_default().iter();
        match ranges.find_map(|range| owner(range, slot)) {
            // The server that was asked, which does not know its own name.
            Some((host, port)) if host.is_empty() || host == "?" => {
                let asked = parse_address(address, Some(REDIS_PORT));
                Ok(joined(&asked.map_or(host, |(host, _)| host), port))
            }
            Some((host, port)) => Ok(joined(&host, port)),
            None => {
                let reason = format!("no server of the cluster has slot {slot}");
                Err((address.to_owned(), unexpected(&reason)))
            }
        }
    }

    /// How to log in where the data is.
    fn data(&self, longer: Duration) -> Login<'_> {
        Login {
            credentials: self.settings.credentials.as_ref(),
            database: i64::from(self.settings.database),
            timeout: self.settings.timeout + longer,
        }
    }

    /// Each of several gets an equal part of the time.
    fn share(&self, of: usize) -> Duration {
        let parts = u32::try_from(of + 1).unwrap_or(u32::MAX);
        self.settings.connect_timeout / parts
    }

    async fn open(
        &self,
        address: &str,
        usual_port: u16,
        login: &Login<'_>,
    ) -> Result<Connection, Failed> {
        let failed = |error| (address.to_owned(), error);
        let (host, port) = parse_address(address, Some(usual_port))
            .map_err(|reason| failed(unexpected(&reason)))?;
        // Only with this one is it told that a connection was closed.
        let mut settings = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(login.database);
        if let Some(credentials) = login.credentials {
            if let Some(user) = &credentials.user {
                settings = settings.set_username(user);
            }
            settings = settings.set_password(&credentials.password);
        }
        let place = match self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            },
        };
        let info = place
            .into_connection_info()
            .map_err(failed)?
            .set_redis_settings(settings);
        let client = match &self.tls {
            None => Client::open(info),
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
        };
        let closed = Arc::new(AtomicBool::new(false));
        let notice = Arc::clone(&closed);
        let config = AsyncConnectionConfig::new()
            .set_push_sender(move |push: PushInfo| {
                notice.fetch_or(push.kind == PushKind::Disconnection, Relaxed);
                Ok::<(), ()>(())
            })
            .set_connection_timeout(Some(self.settings.connect_timeout))
            .set_response_timeout(Some(login.timeout));
        let connection = client
            .map_err(failed)?
            .get_multiplexed_async_connection_with_config(&config)
            .await;
        Ok(Connection {
            redis: connection.map_err(failed)?,
            address: address.to_owned(),
            closed,
        })
    }
}

struct Login<'c> {
    credentials: Option<&'c Credentials>,
    database: i64,
    timeout: Duration,
}

/// What to ask for the address of.
#[derive(Clone, Copy)]
enum Question<'q> {
    /// The master that sentinels call so.
    Master(&'q str),
    /// The server of a cluster that has the prefix's slot.
    Slot,
}

/// Host and port of the master of a range of slots, if this slot is in it.
fn owner(range: &Value, slot: i64) -> Option<(String, u16)> {
    let [Value::Int(first), Value::Int(last), master, ..] = array(range)? else {
        return None;
    };
    let [host, Value::Int(port), ..] = array(master)? else {
        return None;
    };
    if !(*first..=*last).contains(&slot) {
        return None;
    }
    let host = bytes(host).unwrap_or_default();
    let host = String::from_utf8_lossy(host).into_owned();
    Some((host, u16::try_from(*port).ok()?))
}

fn joined(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn unexpected(reason: &str) -> RedisError {
    RedisError::from((ErrorKind::Client, "not found", reason.to_owned()))
}

/// What an error means for a request that changes what others see.
pub(super) fn sent(address: &str, error: &RedisError) -> EngineError {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse => EngineError::Unknown(shown(address, error)),
        _ => unsent(address, error),
    }
}

/// What an error means for a request that may be made again.
pub(super) fn unsent(address: &str, error: &RedisError) -> EngineError {
    let shown = shown(address, error);
    let refused = match error.kind() {
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::CrossSlot) => true,
        ErrorKind::Io => shown.contains("certificate"),
        _ => matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "WRONGTYPE")),
    };
    if refused {
        EngineError::Refused(shown)
    } else {
        EngineError::Unavailable(shown)
    }
}

/// Whether the connection is of no use any longer: it broke, or this is not the server that has the data.
pub(super) fn ends_connection(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse) || elsewhere(error)
}

/// Whether nothing was done because this is not, or no longer, the server that has the data.
pub(super) fn elsewhere(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
        )
    )
}

/// Whether the server only does not take writes for now.
pub(super) fn takes_no_writes(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOREPLICAS" | "MISCONF" | "OOM"))
}

pub(super) fn shown(address: &str, error: &RedisError) -> String {
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (None, Some(detail)) if error.kind() == ErrorKind::Client => detail.to_owned(),
        _ => error.to_string(),
    };
    format!("redis {address}: {text}")
}
