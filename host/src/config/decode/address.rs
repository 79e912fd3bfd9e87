//! Addresses as they are written: where to listen, what to dial, networks and ports.

use crate::store::Target;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Reads where to listen: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`, or `:8080` for every IPv4 interface.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = split_port(text)?;
    match host {
        "" => Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        "localhost" => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        _ => Err(format!(
            r#"expected an IP address, such as "127.0.0.1:{port}", or ":{port}" for all interfaces"#
        )),
    }
}

/// Reads what to dial: `10.0.0.7:9000`, `[::1]:9000` or `name:9000`.
pub(super) fn dial(text: &str) -> Result<(Target, u16), String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.split('/').next().unwrap_or_default();
        return Err(match scheme {
            "http" => format!(r#"expected no scheme: write "{rest}""#),
            _ => "expected a host and its port, such as \"127.0.0.1:9000\", without scheme"
                .to_owned(),
        });
    }
    let address = text.parse::<SocketAddr>();
    let (target, port) = match address {
        Ok(address) => (Target::Ip(address.ip(), None), address.port()),
        Err(_) => {
            if text.parse::<IpAddr>().is_ok() {
                let example = if text.contains(':') {
                    format!("[{text}]:8080")
                } else {
                    format!("{text}:8080")
                };
                return Err(format!("it has no port: write {example:?}"));
            }
            let (host, port) = split_port(text)?;
            (Target::Name(host_name(host)?.into(), None), port)
        }
    };
    if port == 0 {
        return Err("port 0 cannot be dialled: expected 1 to 65535".to_owned());
    }
    Ok((target, port))
}

fn split_port(text: &str) -> Result<(&str, u16), String> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(if text.parse::<u16>().is_ok() {
            format!(r#"expected an address: write ":{text}" or "127.0.0.1:{text}""#)
        } else {
            "it has no port: expected a host and its port, such as \"127.0.0.1:8080\"".to_owned()
        });
    };
    match port.parse::<u16>() {
        Ok(number) if port.bytes().all(|b| b.is_ascii_digit()) => Ok((host, number)),
        _ => Err(format!(
            "port {:?} is not a number from 0 to 65535",
            crate::config::diagnostic::shorten(port)
        )),
    }
}

/// Checks a host name and makes it lower case.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err("the host is missing".to_owned());
    }
    if !name.is_ascii() {
        return Err("expected a host name in its ASCII form (xn--…)".to_owned());
    }
    let valid_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > 253 || !name.split('.').all(valid_label) {
        return Err("expected an IP address or a host name".to_owned());
    }
    // 127.0.0.300 would be looked up as a name; it is meant as an address.
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("expected an IP address or a host name: numbers of an IPv4 address are 0 to 255, four of them".to_owned());
    }
    Ok(name.to_ascii_lowercase())
}

/// Reads the absolute path of a file or directory.
pub(crate) fn absolute(text: &str) -> Result<Box<str>, String> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err("expected an absolute path, such as \"/run/apps\"".to_owned());
    }
    Ok(text.into())
}

/// Reads a network: `10.0.0.0/8`, or an address for that one alone.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip.to_canonical()));
    }
    let net = text
        .parse::<IpNet>()
        .map_err(|_| r#"expected a network, such as "10.0.0.0/8" or "fd00::/8""#.to_owned())?;
    if net.trunc() != net {
        return Err(format!(
            "it has bits set beyond its prefix: write \"{}\"",
            net.trunc()
        ));
    }
    if matches!(net.addr(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()) {
        return Err(
            "IPv4-mapped addresses are compared as IPv4: write the IPv4 network".to_owned(),
        );
    }
    Ok(net)
}

/// Reads a range of ports: `1024-65535`, or `80` for that one alone.
pub(super) fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    const EXPECTED: &str = r#"expected ports from 1 to 65535, such as "1024-65535" or "80""#;
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        (Some(first), Some(last)) => Err(format!(r#"the range is empty: write "{last}-{first}""#)),
        _ => Err(EXPECTED.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_takes_addresses_ports_and_localhost() {
        assert_eq!(listen(":8080"), Ok("0.0.0.0:8080".parse().expect("valid")));
        assert_eq!(
            listen("localhost:0"),
            Ok("127.0.0.1:0".parse().expect("valid"))
        );
        assert_eq!(listen("[::]:80"), Ok("[::]:80".parse().expect("valid")));
        assert_eq!(
            listen("8080").expect_err("bare"),
            r#"expected an address: write ":8080" or "127.0.0.1:8080""#
        );
        for bad in [
            "",
            "127.0.0.1",
            "example.com:80",
            ":65536",
            ":",
            ":+1",
            "::1:80",
        ] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dial_takes_addresses_and_names_with_a_port() {
        let ip = |text: &str| Target::Ip(text.parse().expect("valid"), None);
        assert_eq!(dial("10.0.0.7:9000"), Ok((ip("10.0.0.7"), 9000)));
        assert_eq!(dial("[::1]:1"), Ok((ip("::1"), 1)));
        assert_eq!(
            dial("App.Local.:80"),
            Ok((Target::Name("app.local".into(), None), 80))
        );
        assert_eq!(
            dial("http://h:1/x").expect_err("scheme"),
            r#"expected no scheme: write "h:1""#
        );
        assert_eq!(
            dial("::1").expect_err("no port"),
            r#"it has no port: write "[::1]:8080""#
        );
        for bad in [
            "",
            ":80",
            "h",
            "h:0",
            "h:70000",
            "127.0.0.300:80",
            "a b:80",
            "-a:80",
            "é:80",
            "h:80\r\n",
            "a..b:80",
        ] {
            assert!(dial(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_have_no_bits_beyond_their_prefix() {
        assert_eq!(
            network("10.0.0.0/8"),
            Ok("10.0.0.0/8".parse().expect("valid"))
        );
        assert_eq!(
            network("::ffff:10.0.0.7"),
            Ok("10.0.0.7/32".parse().expect("valid"))
        );
        let error = network("10.1.0.0/8").expect_err("bits");
        assert!(error.contains("\"10.0.0.0/8\""), "{error}");
        assert!(network("::ffff:10.0.0.0/104").is_err());
        assert!(network("10.0.0.0/33").is_err());
    }

    #[test]
    fn ports_are_ranges_or_single() {
        assert_eq!(ports("80"), Ok(80..=80));
        assert_eq!(ports("1024-65535"), Ok(1024..=65535));
        for bad in ["0", "", "-", "9-1", "1-65536", "a", "1-2-3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
