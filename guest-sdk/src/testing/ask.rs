//! The request of a test.

use crate::setup::Field;

/// A request to a plugin under test.
#[derive(Debug, Clone)]
pub struct Ask {
    method: String,
    scheme: String,
    authority: String,
    pub(super) path: String,
    client_ip: String,
    websocket: bool,
    pub(super) headers: Vec<(String, String)>,
}

/// A GET request for a path, with or without a query.
pub fn get(path: &str) -> Ask {
    request("GET", path)
}

/// A request for a path, with or without a query, from `127.0.0.1` to `example.test` over `http`.
pub fn request(method: &str, path: &str) -> Ask {
    Ask {
        method: method.to_owned(),
        scheme: "http".to_owned(),
        authority: "example.test".to_owned(),
        path: path.to_owned(),
        client_ip: "127.0.0.1".to_owned(),
        websocket: false,
        headers: Vec::new(),
    }
}

impl Ask {
    /// Adds a header field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = name.to_ascii_lowercase();
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Comes over this scheme.
    pub fn scheme(mut self, scheme: &str) -> Self {
        self.scheme = scheme.to_owned();
        self
    }

    /// Names this host and port.
    pub fn authority(mut self, authority: &str) -> Self {
        self.authority = authority.to_owned();
        self
    }

    /// Comes from this address.
    pub fn client_ip(mut self, address: &str) -> Self {
        self.client_ip = address.to_owned();
        self
    }

    /// Asks to become a WebSocket.
    pub fn websocket(mut self) -> Self {
        self.websocket = true;
        self
    }

    pub(crate) fn field(&self, field: &Field) -> Option<String> {
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.path.as_str(), None),
        };
        match field {
            Field::Method => Some(self.method.as_str()),
            Field::Scheme => Some(self.scheme.as_str()),
            Field::Authority => Some(self.authority.as_str()),
            Field::Path => Some(path),
            Field::Query => query,
            Field::ClientIp => Some(self.client_ip.as_str()),
            Field::Upgrade => self.websocket.then_some("websocket"),
            Field::Header(name) => {
                let mut headers = self.headers.iter();
                headers
                    .find(|(known, _)| known == name)
                    .map(|(_, value)| value.as_str())
            }
        }
        .map(str::to_owned)
    }

    pub(crate) fn header_all(&self, name: &str) -> Vec<Vec<u8>> {
        let name = name.to_ascii_lowercase();
        let all = self.headers.iter().filter(|(known, _)| *known == name);
        all.map(|(_, value)| value.clone().into_bytes()).collect()
    }

    pub(crate) fn header_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in &self.headers {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// The fields as the real host passes them.
    pub(super) fn packed(&self, fields: &[Field]) -> Option<String> {
        if fields.is_empty() {
            return None;
        }
        let texts = fields.iter().map(|field| self.field(field));
        Some(
            texts
                .map(|text| text.unwrap_or("\u{1}".into()) + "\0")
                .collect(),
        )
    }
}
