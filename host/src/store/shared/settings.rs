//! How an engine that proxies share is reached.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What keys begin with unless it is said.
pub const PREFIX: &str = "throwbar";
/// Longest time for a connection to be made, TLS and login included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for an answer.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// How often a follower makes sure that it has everything.
pub const ETCD_HEARTBEAT: Duration = Duration::from_secs(1);
/// How often a follower makes sure that it has everything, and removes what expired.
pub const REDIS_HEARTBEAT: Duration = Duration::from_millis(500);
/// etcd's own default of `--max-txn-ops`.
pub const ETCD_TRANSACTION_WRITES_MAX: usize = 128;
/// etcd's own default of `--max-request-bytes`.
pub const ETCD_TRANSACTION_BYTES_MAX: usize = 3 << 19;
/// Transactions that Redis keeps for followers that were away.
pub const REDIS_LOG_ENTRIES: u64 = 100_000;
/// Longest time to wait for replicas of Redis.
pub const REDIS_REPLICAS_TIMEOUT: Duration = Duration::from_secs(1);

const PREFIX_BYTES_MAX: usize = 256;

/// The engines that proxies share, as the config has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedSettings {
    /// For buckets with `backend = "etcd"`.
    pub etcd: Option<EtcdSettings>,
    /// For buckets with `backend = "redis"`.
    pub redis: Option<RedisSettings>,
}

/// An etcd (v3) that proxies share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSettings {
    /// Its members, as `host:port` or `http(s)://host:port`. One is used until it fails, then the next.
    pub endpoints: Vec<String>,
    /// Keys are `prefix/bucket/key`. Proxies with the same prefix share their buckets.
    pub prefix: String,
    /// None: without TLS.
    pub tls: Option<TlsFiles>,
    /// None: without a login.
    pub credentials: Option<Credentials>,
    /// Longest time for a connection to be made, TLS and login included.
    pub connect_timeout: Duration,
    /// Longest time for an answer.
    pub timeout: Duration,
    /// How often a follower makes sure that it has everything. Before 3.4.25 and 3.5.8 etcd cannot be asked: then one
    /// proxy of all writes the key `prefix/` so often, and all see it.
    pub heartbeat: Duration,
    /// The server's `--max-txn-ops`.
    pub transaction_writes_max: usize,
    /// The server's `--max-request-bytes`.
    pub transaction_bytes_max: usize,
}

impl EtcdSettings {
    /// Those members, and the default of everything else.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: PREFIX.into(),
            tls: None,
            credentials: None,
            connect_timeout: CONNECT_TIMEOUT,
            timeout: TIMEOUT,
            heartbeat: ETCD_HEARTBEAT,
            transaction_writes_max: ETCD_TRANSACTION_WRITES_MAX,
            transaction_bytes_max: ETCD_TRANSACTION_BYTES_MAX,
        }
    }

    /// Checks what does not need the server.
    ///
    /// # Errors
    /// The setting, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        check_prefix(&self.prefix, '/')?;
        if self.endpoints.is_empty() {
            return Err("`endpoints` is empty, expected at least one host:port".into());
        }
        for endpoint in &self.endpoints {
            let (scheme, address) = endpoint.split_once("://").unwrap_or(("", endpoint));
            let fits = match scheme {
                "" => true,
                "http" => self.tls.is_none(),
                "https" => self.tls.is_some(),
                _ => false,
            };
            if !fits {
                return Err(format!(
                    "endpoint {endpoint:?} does not begin as expected: https:// if there is `tls`, http:// if not, or \
                     neither"
                ));
            }
            parse_address(address, None)?;
        }
        if self.transaction_writes_max == 0 || self.transaction_bytes_max == 0 {
            return Err(
                "`transaction_writes_max` and `transaction_bytes_max` are expected above 0".into(),
            );
        }
        check_spans(self.connect_timeout, self.timeout, self.heartbeat)
    }
}

/// A Redis (7 or newer) that proxies share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// Where it is.
    pub servers: RedisServers,
    /// Keys begin with `{prefix}:`, so that a cluster keeps them on one server. Proxies with the same prefix share
    /// their buckets.
    pub prefix: String,
    /// The number of the database; 0 in a cluster.
    pub database: u32,
    /// None: without TLS. Sentinels are spoken to the same way.
    pub tls: Option<TlsFiles>,
    /// None: without a login.
    pub credentials: Option<Credentials>,
    /// For the sentinels; none: without a login.
    pub sentinel_credentials: Option<Credentials>,
    /// Longest time for a connection to be made, TLS, login and asking for the address included.
    pub connect_timeout: Duration,
    /// Longest time for an answer.
    pub timeout: Duration,
    /// How often a follower makes sure that it has everything, and removes what expired.
    pub heartbeat: Duration,
    /// Transactions that are kept, with their values, for followers that were away; the server may keep some more.
    pub log_entries: u64,
    /// Replicas that must have a write before it is acknowledged; 0: none, so a failover may lose it.
    pub replicas: u32,
    /// Longest time to wait for them; then the outcome is unknown.
    pub replicas_timeout: Duration,
}

/// Where a Redis is. Addresses are `host:port`, or `host` if the port is the usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisServers {
    /// One server.
    Single(String),
    /// The master that the sentinels name.
    Sentinel {
        /// Their addresses; the first that answers is believed.
        sentinels: Vec<String>,
        /// What they call the master.
        master: String,
    },
    /// The server of a cluster that has the prefix's slot.
    Cluster(Vec<String>),
}

impl RedisSettings {
    /// Those servers, and the default of everything else.
    pub fn new(servers: RedisServers) -> Self {
        Self {
            servers,
            prefix: PREFIX.into(),
            database: 0,
            tls: None,
            credentials: None,
            sentinel_credentials: None,
            connect_timeout: CONNECT_TIMEOUT,
            timeout: TIMEOUT,
            heartbeat: REDIS_HEARTBEAT,
            log_entries: REDIS_LOG_ENTRIES,
            replicas: 0,
            replicas_timeout: REDIS_REPLICAS_TIMEOUT,
        }
    }

    /// Checks what does not need the server.
    ///
    /// # Errors
    /// The setting, its value and what was expected.
    pub fn check(&self) -> Result<(), String> {
        check_prefix(&self.prefix, '}')?;
        let (addresses, port) = match &self.servers {
            RedisServers::Single(address) => (std::slice::from_ref(address), REDIS_PORT),
            RedisServers::Sentinel { sentinels, .. } => (&sentinels[..], SENTINEL_PORT),
            RedisServers::Cluster(addresses) => (&addresses[..], REDIS_PORT),
        };
        if addresses.is_empty() {
            return Err("no address is given, expected at least one host:port".into());
        }
        for address in addresses {
            parse_address(address, Some(port))?;
        }
        if matches!(self.servers, RedisServers::Cluster(_)) && self.database != 0 {
            return Err(format!(
                "`database` is {}, expected 0: a cluster has no other",
                self.database
            ));
        }
        if self.log_entries == 0 {
            return Err("`log_entries` is 0, expected at least 1".into());
        }
        if self.replicas > 0 && self.replicas_timeout.as_millis() == 0 {
            return Err("`replicas_timeout` is less than 1ms, expected more".into());
        }
        check_spans(self.connect_timeout, self.timeout, self.heartbeat)
    }
}

pub(super) const REDIS_PORT: u16 = 6379;
pub(super) const SENTINEL_PORT: u16 = 26379;

/// PEM files of a TLS client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// Certificates that the server's must come from; none: those of the system.
    pub ca: Option<PathBuf>,
    /// The proxy's own certificate and its key, if the server asks for one.
    pub certificate: Option<ClientCertificate>,
}

/// The files of a certificate of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those between it and the root.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// None: Redis's `default`. etcd needs one.
    pub user: Option<String>,
    /// Never shown.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Host and port of `host:port`, `[v6]:port`, or without the port if there is a usual one.
pub(super) fn parse_address(text: &str, usual: Option<u16>) -> Result<(String, u16), String> {
    let wrong = || match usual {
        Some(port) => format!(
            "address {text:?} is not of the expected form host:port, or host for port {port}"
        ),
        None => format!("address {text:?} is not of the expected form host:port"),
    };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or_else(wrong)?),
        };
        host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
        (host, port)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port > 0),
        None => usual,
    };
    let plain = |c: char| c.is_ascii_graphic() && !"/?#@[]".contains(c);
    if host.is_empty() || !host.chars().all(plain) {
        return Err(wrong());
    }
    Ok((host.to_owned(), port.ok_or_else(wrong)?))
}

fn check_prefix(prefix: &str, end: char) -> Result<(), String> {
    let fits = !prefix.is_empty()
        && prefix.len() <= PREFIX_BYTES_MAX
        && prefix.chars().all(|c| c.is_ascii_graphic())
        && !prefix.ends_with(end)
        && !(end == '}' && prefix.contains(['{', '}']));
    if fits {
        return Ok(());
    }
    let without = if end == '}' {
        "without { and }"
    } else {
        "without a / at its end"
    };
    Err(format!(
        "`prefix` is {prefix:?}, expected 1 to {PREFIX_BYTES_MAX} printable ASCII characters {without}"
    ))
}

fn check_spans(connect: Duration, timeout: Duration, heartbeat: Duration) -> Result<(), String> {
    for (name, span) in [
        ("connect_timeout", connect),
        ("timeout", timeout),
        ("heartbeat", heartbeat),
    ] {
        if span < Duration::from_millis(10) || span > Duration::from_secs(3600) {
            return Err(format!("`{name}` is {span:?}, expected 10ms to 1h"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        let parsed = |text| parse_address(text, Some(1));
        assert_eq!(parsed("a.b:80"), Ok(("a.b".into(), 80)));
        assert_eq!(parsed("a"), Ok(("a".into(), 1)));
        assert_eq!(parsed("[::1]:80"), Ok(("::1".into(), 80)));
        assert_eq!(parsed("[::1]"), Ok(("::1".into(), 1)));
        for wrong in [
            "", ":80", "a:", "a:0", "a:x", "a:70000", "[::1", "[x]:1", "a/b", "u@a:1", "::1",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
        assert!(parse_address("a", None).is_err());
    }

    #[test]
    fn a_wrong_setting_is_named_with_its_value() {
        let etcd = |change: fn(&mut EtcdSettings)| {
            let mut settings = EtcdSettings::new(vec!["a:2379".into()]);
            change(&mut settings);
            settings.check().err().unwrap_or_default()
        };
        assert_eq!(etcd(|_| ()), "");
        assert!(etcd(|settings| settings.endpoints.clear()).contains("`endpoints`"));
        assert!(etcd(|settings| settings.endpoints[0] = "https://a:1".into()).contains("https"));
        assert!(etcd(|settings| settings.endpoints[0] = "a".into()).contains("\"a\""));
        assert!(etcd(|settings| settings.prefix = "a/".into()).contains("\"a/\""));
        assert!(etcd(|settings| settings.timeout = Duration::ZERO).contains("`timeout`"));
        let redis = |change: fn(&mut RedisSettings)| {
            let mut settings = RedisSettings::new(RedisServers::Cluster(vec!["a".into()]));
            change(&mut settings);
            settings.check().err().unwrap_or_default()
        };
        assert_eq!(redis(|_| ()), "");
        assert!(redis(|settings| settings.prefix = "a}b".into()).contains("\"a}b\""));
        assert!(redis(|settings| settings.database = 3).contains("`database` is 3"));
        assert!(redis(|settings| settings.log_entries = 0).contains("`log_entries`"));
        assert!(
            redis(|settings| settings.servers = RedisServers::Single(String::new()))
                .contains("\"\"")
        );
    }

    #[test]
    fn a_password_is_never_shown() {
        let credentials = Credentials {
            user: Some("proxy".into()),
            password: "hunter2".into(),
        };
        let shown = format!("{credentials:?}");
        assert!(
            shown.contains("proxy") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
