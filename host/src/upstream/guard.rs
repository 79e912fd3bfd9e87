//! What may be dialled, whatever a plugin or the map says.

use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What plugins and the map may have dialled. Addresses of `to` and `upstreams` of the config are trusted and need no
/// entry here; link-local addresses, our own listeners and the admin address are refused always, for everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Networks; all but link-local by default.
    pub allow: Vec<IpNet>,
    /// Ports; all by default.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Unix sockets: these, and those in these directories and below; none by default, since many a service trusts whoever
    /// can reach its socket.
    pub unix: Vec<Box<str>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow: vec![
                "0.0.0.0/0".parse().expect("a network"),
                "::/0".parse().expect("a network"),
            ],
            ports: vec![1..=65535],
            unix: Vec::new(),
        }
    }
}

/// The checks, made for one config.
#[derive(Debug, Clone)]
pub struct Guard {
    config: Config,
    own: Vec<SocketAddr>,
    /// That of the admin API.
    own_socket: Option<PathBuf>,
}

/// Why an address is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not in `guard.allow`.
    #[error("address {0} is in no network of guard.allow")]
    Network(SocketAddr),
    /// Not in `guard.ports`.
    #[error("port of {0} is not in guard.ports")]
    Port(SocketAddr),
    /// Link-local, unspecified, multicast or broadcast.
    #[error("address {0} is link-local, unspecified or multicast")]
    Special(SocketAddr),
    /// One of our own listeners or the admin address.
    #[error("address {0} is our own")]
    Own(SocketAddr),
    /// Not in `guard.unix`.
    #[error("unix socket {0} is in no directory of guard.unix")]
    Socket(Arc<str>),
    /// That of the admin API.
    #[error("unix socket {0} is our own")]
    OwnSocket(Arc<str>),
}

impl Guard {
    /// `own`: bound listeners and the admin address. An unspecified one (0.0.0.0, ::) stands for its port on every
    /// address of this machine.
    pub fn new(config: Config, own: Vec<SocketAddr>) -> Self {
        let own = own
            .into_iter()
            .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
            .collect();
        Self {
            config,
            own,
            own_socket: None,
        }
    }

    /// The same, which refuses this socket, too: that of the admin API.
    pub fn beside(self, own_socket: Option<PathBuf>) -> Self {
        Self { own_socket, ..self }
    }

    /// What [`Guard::beside`] was given.
    pub fn own_socket(&self) -> Option<&Path> {
        self.own_socket.as_deref()
    }

    /// Checks the path of a Unix socket that a request goes to.
    ///
    /// # Errors
    /// [`Refused`] says which rule.
    pub fn check_socket(&self, path: &Arc<str>, trusted: bool) -> Result<(), Refused> {
        let mut allowed = self.config.unix.iter();
        if trusted || allowed.any(|allowed| Path::new(&**path).starts_with(&**allowed)) {
            return Ok(());
        }
        Err(Refused::Socket(Arc::clone(path)))
    }

    /// Checks a socket that [`Guard::check_socket`] let pass, before it is connected to: by which name ever it is called, it
    /// must not be our own.
    ///
    /// # Errors
    /// [`Refused::OwnSocket`].
    pub fn check_dial_socket(&self, path: &Arc<str>) -> Result<(), Refused> {
        let file = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        let own = self.own_socket.as_deref().and_then(file);
        if own.is_some() && own == file(Path::new(&**path)) {
            return Err(Refused::OwnSocket(Arc::clone(path)));
        }
        Ok(())
    }

    /// Checks where a request goes; `trusted` addresses come from the config and skip networks and ports. It knows no
    /// interfaces, so that the same config is right or wrong on every machine: see [`Guard::check_dial`].
    ///
    /// # Errors
    /// [`Refused`] says which rule.
    pub fn check(&self, address: SocketAddr, trusted: bool) -> Result<(), Refused> {
        // ::ffff:169.254.169.254 reaches the same machine as 169.254.169.254.
        let ip = address.ip().to_canonical();
        if is_special(ip) {
            return Err(Refused::Special(address));
        }
        if self
            .own
            .iter()
            .any(|own| stands_for(*own, ip, address.port()))
        {
            return Err(Refused::Own(address));
        }
        if trusted {
            return Ok(());
        }
        if !self.config.allow.iter().any(|net| net.contains(&ip)) {
            return Err(Refused::Network(address));
        }
        if !self
            .config
            .ports
            .iter()
            .any(|ports| ports.contains(&address.port()))
        {
            return Err(Refused::Port(address));
        }
        Ok(())
    }

    /// Checks an address that [`Guard::check`] let pass, before a connection to it is opened: whether an interface of
    /// this machine has it, and a socket of our own listens on all of them.
    ///
    /// # Errors
    /// [`Refused::Own`].
    pub fn check_dial(&self, address: SocketAddr) -> Result<(), Refused> {
        let listens = |own: &SocketAddr| own.ip().is_unspecified() && own.port() == address.port();
        if self.own.iter().any(listens) && is_of_this_machine(address.ip().to_canonical()) {
            return Err(Refused::Own(address));
        }
        Ok(())
    }
}

/// Whether packets to this address stay on this machine. Asks the kernel, sends nothing.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let bound = UdpSocket::bind((ip, 0));
    // With `ip_nonlocal_bind` any address can be bound, but no route leads from one that is not ours.
    bound
        .and_then(|socket| socket.connect((ip, DISCARD)))
        .is_ok()
}

/// A port to connect a datagram socket to that nothing is sent on.
const DISCARD: u16 = 9;

fn is_special(ip: IpAddr) -> bool {
    match ip {
        // The whole of 0.0.0.0/8 means "this host": no address to dial.
        IpAddr::V4(ip) => {
            ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0
        }
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified(),
    }
}

/// Whether dialling this address and port reaches our own socket, as far as the address alone says.
fn stands_for(own: SocketAddr, ip: IpAddr, port: u16) -> bool {
    own.port() == port && (own.ip() == ip || (own.ip().is_unspecified() && ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn guard(allow: &[&str], ports: &[RangeInclusive<u16>], own: &[&str]) -> Guard {
        Guard::new(
            Config {
                allow: allow
                    .iter()
                    .map(|net| net.parse().expect("a network"))
                    .collect(),
                ports: ports.to_vec(),
                unix: Vec::new(),
            },
            own.iter().map(|own| address(own)).collect(),
        )
    }

    #[test]
    fn default_allows_private_loopback_and_public_addresses() {
        let guard = Guard::new(Config::default(), Vec::new());
        for allowed in [
            "127.0.0.2:80",
            "10.1.2.3:65535",
            "[::1]:1",
            "28.0.1.1:8080",
            "[2001:db8::1]:443",
        ] {
            assert_eq!(guard.check(address(allowed), false), Ok(()), "{allowed}");
        }
    }

    #[test]
    fn special_addresses_are_refused_even_when_trusted() {
        let guard = Guard::new(Config::default(), Vec::new());
        for special in [
            "169.254.169.254:80",
            "[fe80::1]:80",
            "[febf::1]:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "[::]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255:80",
            "[::ffff:169.254.169.254]:80",
            "[::ffff:0.0.0.0]:80",
        ] {
            let special = address(special);
            assert_eq!(guard.check(special, true), Err(Refused::Special(special)));
        }
        assert_eq!(guard.check(address("[fec0::1]:80"), false), Ok(()));
    }

    #[test]
    fn own_address_is_refused_on_its_port_only() {
        let guard = guard(&["0.0.0.0/0"], &[1..=65535], &["127.0.0.1:2019"]);
        let own = address("127.0.0.1:2019");
        assert_eq!(guard.check(own, true), Err(Refused::Own(own)));
        let mapped = address("[::ffff:127.0.0.1]:2019");
        assert_eq!(guard.check(mapped, true), Err(Refused::Own(mapped)));
        assert_eq!(guard.check(address("127.0.0.1:2020"), false), Ok(()));
        assert_eq!(guard.check(address("127.0.0.2:2019"), false), Ok(()));
    }

    #[test]
    fn unspecified_own_address_stands_for_every_loopback() {
        for own in ["0.0.0.0:8080", "[::]:8080", "[::ffff:0.0.0.0]:8080"] {
            let guard = Guard::new(Config::default(), vec![address(own)]);
            for dialled in [
                "127.0.0.1:8080",
                "127.9.9.9:8080",
                "[::1]:8080",
                "[::ffff:127.0.0.1]:8080",
            ] {
                let dialled = address(dialled);
                assert_eq!(
                    guard.check(dialled, true),
                    Err(Refused::Own(dialled)),
                    "{own}"
                );
            }
            assert_eq!(guard.check(address("10.0.0.1:8080"), false), Ok(()));
        }
    }

    #[test]
    fn unspecified_own_address_stands_for_every_interface() {
        let guard = Guard::new(Config::default(), vec![address("0.0.0.0:8080")]);
        // A route to this network for documentation tells the address of an interface; nothing is sent.
        let route = UdpSocket::bind("0.0.0.0:0").expect("bound");
        if route.connect("203.0.113.77:9").is_ok() {
            let interface = route.local_addr().expect("bound").ip();
            let own = SocketAddr::new(interface, 8080);
            assert_eq!(guard.check_dial(own), Err(Refused::Own(own)));
            let other = SocketAddr::new(interface, 9001);
            assert_eq!(guard.check_dial(other), Ok(()));
        }
        let own = address("127.0.0.2:8080");
        assert_eq!(guard.check_dial(own), Err(Refused::Own(own)));
        for passes in ["203.0.113.77:8080", "[2001:db8::1]:8080", "127.0.0.2:9001"] {
            assert_eq!(guard.check_dial(address(passes)), Ok(()), "{passes}");
        }
        let one = Guard::new(Config::default(), vec![address("127.0.0.1:8080")]);
        assert_eq!(one.check_dial(address("127.0.0.2:8080")), Ok(()));
    }

    #[test]
    fn sockets_are_refused_unless_their_directory_is_named_and_our_own_always() {
        let dir = tempfile::tempdir().expect("a directory");
        let (own, other) = (dir.path().join("admin.sock"), dir.path().join("app.sock"));
        let named = dir.path().join("named.sock");
        for file in [&own, &other] {
            std::fs::write(file, "").expect("written");
        }
        std::os::unix::fs::symlink(&own, &named).expect("linked");
        let allowed = Config {
            unix: vec![
                dir.path().to_str().expect("text").into(),
                "/run/one.sock".into(),
            ],
            ..Config::default()
        };
        let path = |path: &Path| Arc::from(path.to_str().expect("text"));
        let none = Guard::new(Config::default(), Vec::new());
        let refused = none.check_socket(&path(&other), false);
        assert_eq!(refused, Err(Refused::Socket(path(&other))));
        assert_eq!(none.check_socket(&path(&other), true), Ok(()));
        let guard = Guard::new(allowed, Vec::new()).beside(Some(own.clone()));
        assert_eq!(guard.check_socket(&path(&other), false), Ok(()));
        assert_eq!(guard.check_socket(&"/run/one.sock".into(), false), Ok(()));
        let next: Arc<str> = "/run/one.socket".into();
        assert_eq!(guard.check_socket(&next, false), Err(Refused::Socket(next)));
        assert_eq!(guard.check_dial_socket(&path(&other)), Ok(()));
        for own in [&own, &named] {
            let refused = guard.check_dial_socket(&path(own));
            assert_eq!(refused, Err(Refused::OwnSocket(path(own))));
        }
    }

    #[test]
    fn networks_and_ports_bind_the_untrusted() {
        let guard = guard(&["10.0.0.0/8"], &[80..=80, 1024..=2000], &[]);
        assert_eq!(guard.check(address("10.1.1.1:80"), false), Ok(()));
        assert_eq!(
            guard.check(address("[::ffff:10.1.1.1]:1024"), false),
            Ok(())
        );
        let outside = address("11.0.0.1:80");
        assert_eq!(guard.check(outside, false), Err(Refused::Network(outside)));
        assert_eq!(guard.check(outside, true), Ok(()));
        let port = address("10.1.1.1:2001");
        assert_eq!(guard.check(port, false), Err(Refused::Port(port)));
        assert_eq!(guard.check(port, true), Ok(()));
    }

    #[test]
    fn nothing_allowed_refuses_everything_untrusted() {
        let guard = guard(&[], &[1..=65535], &[]);
        assert!(guard.check(address("127.0.0.1:80"), false).is_err());
    }
}
