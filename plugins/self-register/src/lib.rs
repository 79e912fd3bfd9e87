//! The `self-register` plugin: agents announce and withdraw their own ID, and everybody else is routed as by-header does.

use std::time::Duration;
use throwbar::prelude::*;

/// The very file of the by-header plugin: two components cannot be linked into one, a module can.
#[path = "../../by-header/src/by_header.rs"]
#[allow(unreachable_pub, reason = "it is public in its own crate")]
mod by_header;

use by_header::ByHeader;

/// Keeps the bucket by what agents announce, and routes by it.
///
/// `PUT /_throwbar/agents/{id}` with `Authorization: Bearer <secret>` and `X-Address: <host or host:port>` announces an
/// agent: 201 if it is new, else 200. `DELETE` of the same path withdraws it: 204. 401 without the secret, 422 for an id
/// or address that is none. The reply is sent once the store has the change.
///
/// | setting | default | |
/// |---|---|---|
/// | `secret` | | what agents prove themselves with; 16 bytes at least |
/// | `ttl-seconds` | | an agent that has not announced itself again for so long is withdrawn; without it, never |
/// | `header`, `port-header`, `bucket` | | as those of `by-header`; the bucket has to be granted for writing |
#[derive(Debug)]
pub struct SelfRegister {
    routing: ByHeader,
    path: Subscribed,
    bucket: String,
    secret: String,
    ttl: Option<Duration>,
}

const AGENTS: &str = "/_throwbar/agents/";
const SECRET_BYTES_MIN: usize = 16;
const ID_BYTES_MAX: usize = 256;
/// A year.
const TTL_SECONDS_MAX: u64 = 365 * 24 * 3600;

#[throwbar::router]
impl Router for SelfRegister {
    fn init(setup: &mut Setup) -> Result<Self, String> {
        let secret = config::require("secret")?;
        if secret.len() < SECRET_BYTES_MIN {
            let bytes = secret.len();
            return Err(format!(
                "setting \"secret\" has {bytes} bytes, expected {SECRET_BYTES_MIN} or more"
            ));
        }
        let ttl = config::get("ttl-seconds")
            .map(|text| seconds(&text))
            .transpose()?;
        Ok(Self {
            routing: ByHeader::init(setup)?,
            path: setup.field(Field::Path),
            bucket: by_header::bucket(),
            secret,
            ttl,
        })
    }

    fn route(&self, req: &Request) -> Decision {
        let path = req.get(self.path).unwrap_or_default();
        match path.strip_prefix(AGENTS) {
            Some(id) => self.agent(req, id).into(),
            None => self.routing.route(req),
        }
    }
}

impl SelfRegister {
    fn agent(&self, req: &Request, id: &str) -> Reply {
        if !self.is_authentic(req) {
            return problem(401, "expected the secret as a bearer token")
                .header("www-authenticate", "Bearer");
        }
        let part = |b: u8| b.is_ascii_graphic() && !b"/%?#\"<>\\^`{|}".contains(&b);
        if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(part) {
            return problem(422, "expected an id of 1 to 256 plain characters");
        }
        match req.method() {
            "PUT" => self.announce(id, req.header("x-address").unwrap_or_default().trim()),
            "DELETE" => match kv::delete(&self.bucket, id) {
                Ok(()) => Reply::new(204),
                Err(error) => refusal(error),
            },
            _ => problem(405, "expected PUT or DELETE").header("allow", "PUT, DELETE"),
        }
    }

    fn announce(&self, id: &str, address: &str) -> Reply {
        if address.is_empty() {
            return problem(
                422,
                "expected the header x-address with a host or host:port",
            );
        }
        let written = kv::get(&self.bucket, id).and_then(|known| {
            match self.ttl {
                Some(ttl) => kv::put_for(&self.bucket, id, address, ttl)?,
                None => kv::put(&self.bucket, id, address)?,
            }
            Ok(known.is_none())
        });
        match written {
            Ok(new) => {
                let (id, address) = (json::quote(id), json::quote(address));
                let body = format!(r#"{{"id": {id}, "address": {address}}}"#);
                Reply::json(if new { 201 } else { 200 }, body)
            }
            Err(error) => refusal(error),
        }
    }

    fn is_authentic(&self, req: &Request) -> bool {
        let given = req.header("authorization").unwrap_or_default();
        match given.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                same(token.trim().as_bytes(), self.secret.as_bytes())
            }
            _ => false,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=TTL_SECONDS_MAX) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!(
            "setting \"ttl-seconds\" is {text:?}, expected a number from 1 to {TTL_SECONDS_MAX}"
        )),
    }
}

/// Compares in a time that depends on the lengths only.
fn same(given: &[u8], secret: &[u8]) -> bool {
    let differences = given.iter().zip(secret).map(|(a, b)| a ^ b);
    let difference = differences.fold(0, |sum, d| std::hint::black_box(sum | d));
    difference == 0 && given.len() == secret.len()
}

/// The agent's fault if it is the address, else the operator's: then the log says so, too.
fn refusal(error: kv::Error) -> Reply {
    match error {
        kv::Error::InvalidValue(_) => problem(422, &format!("x-address: {error}")),
        _ => {
            log::error(format!("agent not kept: {error}"));
            problem(503, &error.to_string())
        }
    }
}

fn problem(status: u16, what: &str) -> Reply {
    Reply::json(status, format!(r#"{{"error": {}}}"#, json::quote(what)))
}

#[cfg(test)]
mod tests;
