//! Routing by a header field that names an entry of a bucket. The `self-register` plugin is built from this file, too.

use throwbar::prelude::*;

/// Routes to the entry that the `header` field names, at the port of the `port-header` field, and removes both.
///
/// | setting | default | |
/// |---|---|---|
/// | `header` | `x-id` | the field that holds the key |
/// | `port-header` | `x-port` | the field that holds the port; empty: the port comes from the entry |
/// | `bucket` | `upstreams` | the bucket, of a kind that holds addresses |
#[derive(Debug)]
pub struct ByHeader {
    id: Slot,
    port: Option<Slot>,
    bucket: Bucket,
}

impl Router for ByHeader {
    fn init(setup: &mut Setup) -> Result<Self, String> {
        let header = config::get_or("header", "x-id");
        if header.is_empty() {
            return Err("setting \"header\" is empty, expected the name of a header field".into());
        }
        setup.remove_request_header(&header);
        let port = Some(config::get_or("port-header", "x-port")).filter(|name| !name.is_empty());
        Ok(Self {
            id: setup.slot_header(&header),
            port: port.map(|name| {
                setup.remove_request_header(&name);
                setup.slot_header(&name)
            }),
            bucket: setup.bucket(&bucket()),
        })
    }

    #[inline]
    fn route(&self, req: &Request) -> Decision {
        let entry = match self.port {
            Some(port) => req.lookup_port(self.bucket, self.id, port),
            None => req.lookup(self.bucket, self.id),
        };
        match entry {
            Some(entry) => entry.into(),
            None => self.unknown(req),
        }
    }
}

/// The name of the bucket.
pub fn bucket() -> String {
    config::get_or("bucket", "upstreams")
}

impl ByHeader {
    #[cold]
    fn unknown(&self, req: &Request) -> Decision {
        let id = json::quote(&req.slot(self.id).unwrap_or_default());
        let body = [r#"{"error": "Invalid request", "id": "#, &id, "}"].concat();
        Reply::json(404, body).into()
    }
}
