//! The `maintenance` plugin: one reply for everybody, while those who work on it pass.

use throwbar::prelude::*;

/// Replies to every request; those of allowed clients are left to the next route.
///
/// | setting | default | |
/// |---|---|---|
/// | `status` | `503` | 200 to 599 |
/// | `text` | `Down for maintenance, back soon` | the body, plain text |
/// | `retry-after` | `300` | seconds; empty: no such field |
/// | `allow` | none | client addresses that pass, separated by commas |
#[derive(Debug)]
pub struct Maintenance {
    client: Subscribed,
    allow: Vec<String>,
    reply: Reply,
}

#[throwbar::router]
impl Router for Maintenance {
    fn init(setup: &mut Setup) -> Result<Self, String> {
        let status = config::get_or("status", "503");
        let status = match status.parse() {
            Ok(number @ 200..=599) => number,
            _ => {
                return Err(format!(
                    "setting \"status\" is {status:?}, expected 200 to 599"
                ));
            }
        };
        let mut reply = Reply::text(
            status,
            config::get_or("text", "Down for maintenance, back soon\n"),
        );
        let seconds = config::get_or("retry-after", "300");
        if !seconds.is_empty() {
            let seconds: u32 = seconds
                .parse()
                .map_err(|_| format!("setting \"retry-after\" is {seconds:?}, expected seconds"))?;
            reply = reply.header("retry-after", seconds.to_string());
        }
        let allow = config::get_or("allow", "");
        let allow = allow.split(',').map(str::trim).filter(|ip| !ip.is_empty());
        Ok(Self {
            client: setup.field(Field::ClientIp),
            allow: allow.map(address).collect::<Result<_, _>>()?,
            reply,
        })
    }

    fn route(&self, req: &Request) -> Decision {
        let client = req.get(self.client);
        match self.allow.iter().any(|ip| Some(ip.as_str()) == client) {
            true => Decision::Pass,
            false => self.reply.clone().into(),
        }
    }
}

/// An address in the one form that the host writes.
fn address(text: &str) -> Result<String, String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(ip) => Ok(ip.to_canonical().to_string()),
        Err(_) => Err(format!(
            "setting \"allow\" has {text:?}, expected an IP address"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::Maintenance;
    use throwbar::testing::{Host, Outcome, get};

    #[test]
    fn everybody_gets_the_reply() {
        let plugin = Host::new().start::<Maintenance>().unwrap();
        let reply = plugin.route(get("/")).replied();
        assert_eq!(reply.status, 503);
        assert!(
            reply
                .headers
                .contains(&("retry-after".into(), "300".into()))
        );
        assert_eq!(reply.body, b"Down for maintenance, back soon\n");
    }

    #[test]
    fn settings_make_the_reply() {
        let host = Host::new()
            .config("status", "200")
            .config("text", "closed")
            .config("retry-after", "");
        let plugin = host.start::<Maintenance>().unwrap();
        let reply = plugin.route(get("/")).replied();
        assert_eq!((reply.status, &reply.body[..]), (200, &b"closed"[..]));
        assert!(reply.headers.iter().all(|(name, _)| name != "retry-after"));
    }

    #[test]
    fn allowed_clients_pass() {
        let host = Host::new().config("allow", "10.0.0.1, 2001:DB8::0:1,");
        let plugin = host.start::<Maintenance>().unwrap();
        for client in ["10.0.0.1", "2001:db8::1"] {
            assert_eq!(plugin.route(get("/").client_ip(client)), Outcome::Passed);
        }
        for client in ["10.0.0.11", "127.0.0.1"] {
            let reply = plugin.route(get("/").client_ip(client)).replied();
            assert_eq!(reply.status, 503);
        }
    }

    #[test]
    fn a_config_that_cannot_work_is_refused() {
        for (name, value, expected) in [
            ("status", "199", "200 to 599"),
            ("status", "ok", "200 to 599"),
            ("retry-after", "soon", "seconds"),
            ("allow", "10.0.0.0/8", "an IP address"),
        ] {
            let host = Host::new().config(name, value);
            let error = host.start::<Maintenance>().err().unwrap();
            let expected = format!("expected {expected}");
            for part in [name, value, &expected] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
