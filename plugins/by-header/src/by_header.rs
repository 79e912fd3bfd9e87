//! Routing by a header field that names an entry of a bucket. The `self-register` plugin is built from this file, too.

use throwbar::prelude::*;

/// Routes to the entry that the `header` field names, at the port of the `port-header` field, and removes both.
///
/// | setting | default | |
/// |---|---|---|
/// | `header` | `x-id` | the field that holds the key |
/// | `port-header` | `x-port` | the field that holds the port; empty: the port comes from the entry |
/// | `port` | | this port for every request; instead of `port-header` |
/// | `strip` | `true` | `false`: both fields are sent on |
/// | `absent` | `unknown` | a request without the `header` field has no entry; `empty`: it has that of an empty key, which a default stands for |
/// | `unknown` | `reply` | no such entry, or no port: a 404 that names the key; `pass`: the next route decides |
/// | `bucket` | `upstreams` | the bucket, of a kind that holds addresses |
#[derive(Debug)]
pub struct ByHeader {
    id: Slot,
    port: Port,
    bucket: Bucket,
    absent_is_empty: bool,
    pass: bool,
}

#[derive(Debug)]
enum Port {
    /// In this field.
    Field(Slot),
    /// This one.
    Fixed(u16),
    /// That of the entry.
    OfEntry,
}

impl Router for ByHeader {
    fn init(setup: &mut Setup) -> Result<Self, String> {
        let header = config::get_or("header", "x-id");
        if header.is_empty() {
            return Err("setting \"header\" is empty, expected the name of a header field".into());
        }
        let strip = choice("strip", ["true", "false"])? == "true";
        let id = setup.slot_header(&header);
        if strip {
            setup.remove_request_header(&header);
        }
        let port = match config::get("port") {
            Some(text) => Port::Fixed(fixed_port(&text)?),
            None => match config::get_or("port-header", "x-port") {
                name if name.is_empty() => Port::OfEntry,
                name => {
                    if strip {
                        setup.remove_request_header(&name);
                    }
                    Port::Field(setup.slot_header(&name))
                }
            },
        };
        Ok(Self {
            id,
            port,
            bucket: setup.bucket(&bucket()),
            absent_is_empty: choice("absent", ["unknown", "empty"])? == "empty",
            pass: choice("unknown", ["reply", "pass"])? == "pass",
        })
    }

    #[inline]
    fn route(&self, req: &Request) -> Decision {
        let entry = match self.port {
            Port::Field(port) => req.lookup_port(self.bucket, self.id, port),
            Port::OfEntry => req.lookup(self.bucket, self.id),
            Port::Fixed(port) => req
                .slot(self.id)
                .and_then(|id| req.find_port(self.bucket, &id, port)),
        };
        let entry = match entry {
            None if self.absent_is_empty => self.empty(req),
            entry => entry,
        };
        match entry {
            Some(entry) => entry.into(),
            None if self.pass => Decision::Pass,
            None => self.unknown(req),
        }
    }
}

/// The name of the bucket.
pub fn bucket() -> String {
    config::get_or("bucket", "upstreams")
}

/// A setting that is one of two words, the first by default.
fn choice(name: &str, words: [&'static str; 2]) -> Result<&'static str, String> {
    let given = config::get_or(name, words[0]);
    words
        .into_iter()
        .find(|word| *word == given)
        .ok_or_else(|| {
            let [one, other] = words;
            format!("setting {name:?} is {given:?}, expected {one:?} or {other:?}")
        })
}

fn fixed_port(text: &str) -> Result<u16, String> {
    if config::get("port-header").is_some_and(|name| !name.is_empty()) {
        return Err("settings \"port\" and \"port-header\" exclude each other".into());
    }
    port_of(text).ok_or_else(|| format!("setting \"port\" is {text:?}, expected 1 to 65535"))
}

/// Decimal digits that make 1 to 65535, the first not 0.
fn port_of(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    is_number.then(|| text.parse().ok()).flatten()
}

impl ByHeader {
    /// The entry of an empty key, if the request has no field for a key.
    #[cold]
    fn empty(&self, req: &Request) -> Option<Entry> {
        if req.slot(self.id).is_some() {
            return None;
        }
        let port = match self.port {
            Port::OfEntry => return req.find(self.bucket, ""),
            Port::Field(port) => port_of(&req.slot(port)?)?,
            Port::Fixed(port) => port,
        };
        req.find_port(self.bucket, "", port)
    }

    #[cold]
    fn unknown(&self, req: &Request) -> Decision {
        let id = json::quote(&req.slot(self.id).unwrap_or_default());
        let body = [r#"{"error": "Invalid request", "id": "#, &id, "}"].concat();
        Reply::json(404, body).into()
    }
}
