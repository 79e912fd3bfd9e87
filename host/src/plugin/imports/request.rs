//! `request`: parts of the request, packed for `route` or asked for one by one.

use super::bindings::throwbar::plugin::request::Host;
use super::{HostState, wit};
use crate::plugin::RequestHead;
use crate::plugin::subscription::Field;
use http::HeaderName;
use std::borrow::Cow;
use std::fmt::Write;

/// Ends each packed field.
const END: char = '\0';
/// Stands for an absent field.
pub(in crate::plugin) const ABSENT: &str = "\u{1}";

/// A part of a request as text; none if absent, not UTF-8, or with a character that packing gives a meaning.
pub(in crate::plugin) fn text<'a>(head: &'a RequestHead, field: &Field) -> Option<Cow<'a, str>> {
    Some(Cow::Borrowed(match field {
        Field::Header(name) => {
            let value = head.headers.get(name)?;
            match value.to_str() {
                // Nearly always: visible ASCII.
                Ok(text) => text,
                Err(_) if memchr::memchr2(0, 1, value.as_bytes()).is_some() => return None,
                Err(_) => std::str::from_utf8(value.as_bytes()).ok()?,
            }
        }
        Field::Method => head.method.as_str(),
        Field::Scheme => head.scheme,
        Field::Authority => head.authority.as_str(),
        Field::Path => head.uri.path(),
        Field::Query => head.uri.query()?,
        Field::ClientIp => return Some(Cow::Owned(head.client.to_string())),
        Field::Upgrade => head.websocket.then_some("websocket")?,
    }))
}

/// Appends the fields to `packed`, each ended by U+0000, an absent one being U+0001 alone.
pub(in crate::plugin) fn pack(head: &RequestHead, fields: &[Field], packed: &mut String) {
    for field in fields {
        match field {
            Field::ClientIp => {
                write!(packed, "{}", head.client).expect("writing to a String does not fail");
            }
            field => packed.push_str(text(head, field).as_deref().unwrap_or(ABSENT)),
        }
        packed.push(END);
    }
}

impl Host for HostState {
    fn get(&mut self, field: wit::Field) -> wasmtime::Result<Option<String>> {
        // A name that cannot be a header is in no request.
        let Ok(field) = Field::try_from(field) else {
            return Ok(None);
        };
        self.note_asked(Some(&field));
        let found = self.head.as_ref().and_then(|head| text(head, &field));
        Ok(found.map(Cow::into_owned))
    }

    fn slot(&mut self, index: u32) -> wasmtime::Result<Option<String>> {
        Ok(HostState::slot(self, index)?.map(Cow::into_owned))
    }

    fn header_all(&mut self, name: String) -> wasmtime::Result<Vec<Vec<u8>>> {
        self.note_asked(None);
        let (Some(head), Ok(name)) = (&self.head, HeaderName::from_bytes(name.as_bytes())) else {
            return Ok(Vec::new());
        };
        let values = head.headers.get_all(name).iter();
        Ok(values.map(|value| value.as_bytes().to_vec()).collect())
    }

    fn header_names(&mut self) -> wasmtime::Result<Vec<String>> {
        self.note_asked(None);
        let Some(head) = &self.head else {
            return Ok(Vec::new());
        };
        Ok(head
            .headers
            .keys()
            .map(|name| name.as_str().to_owned())
            .collect())
    }
}

impl super::bindings::throwbar::plugin::types::Host for HostState {}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, Method};

    fn head() -> RequestHead {
        let mut headers = HeaderMap::new();
        headers.insert("x-id", HeaderValue::from_static("id1"));
        headers.append("x-id", HeaderValue::from_static("second"));
        headers.insert(
            "x-raw",
            HeaderValue::from_bytes(b"\xff\xfe").expect("a value"),
        );
        headers.insert(
            "x-text",
            HeaderValue::from_bytes("zürich".as_bytes()).expect("a value"),
        );
        RequestHead {
            method: Method::GET,
            uri: "/a%20b?q=1".parse().expect("a uri"),
            authority: "example.com:8080".parse().expect("an authority"),
            headers,
            client: "192.0.2.7".parse().expect("an address"),
            scheme: "http",
            websocket: false,
        }
    }

    fn header(name: &'static str) -> Field {
        Field::Header(HeaderName::from_static(name))
    }

    #[test]
    fn fields_are_packed_in_order_and_absent_ones_marked() {
        let mut packed = String::new();
        let fields = [
            header("x-id"),
            header("x-none"),
            header("x-raw"),
            header("x-text"),
            Field::Method,
            Field::Scheme,
            Field::Authority,
            Field::Path,
            Field::Query,
            Field::ClientIp,
            Field::Upgrade,
        ];
        pack(&head(), &fields, &mut packed);
        assert_eq!(
            packed,
            "id1\0\u{1}\0\u{1}\0zürich\0GET\0http\0example.com:8080\0/a%20b\0q=1\x00192.0.2.7\0\u{1}\0"
        );
    }

    #[test]
    fn an_empty_field_differs_from_an_absent_one() {
        let mut head = head();
        head.headers.insert("x-empty", HeaderValue::from_static(""));
        let mut packed = String::new();
        pack(&head, &[header("x-empty"), header("x-none")], &mut packed);
        assert_eq!(packed, "\0\u{1}\0");
    }
}
