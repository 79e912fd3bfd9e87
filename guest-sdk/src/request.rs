//! The request, as a plugin sees it.

use crate::bindings::throwbar::plugin::types::Subscription;
use crate::decision::{Decision, Target};
use crate::door;
use crate::setup::{Bucket, Field, Slot, Subscribed};
use std::cell::OnceCell;

/// One request, lent to [`Router::route`](crate::Router::route).
///
/// Reading what was subscribed costs next to nothing. Anything else is asked of the host, once.
#[derive(Debug)]
pub struct Request<'a> {
    packed: Option<String>,
    subscription: &'a Subscription,
    asked: Asked,
}

/// What the store holds for a request: the address stays with the host, and the plugin gets this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(pub(crate) u32);

impl Entry {
    /// What a tag of the entry is set to, an empty text for a name alone; none if it has no such tag, or is no typed record.
    pub fn tag(self, name: &str) -> Option<String> {
        door::entry_tag(self.0, name)
    }

    /// Every tag of the entry with what it is set to, in byte order of names.
    pub fn tags(self) -> Vec<(String, String)> {
        door::entry_tags(self.0)
    }
}

impl From<Entry> for Target {
    #[inline]
    fn from(entry: Entry) -> Self {
        Target::Entry(entry.0)
    }
}

impl From<Entry> for Decision {
    #[inline]
    fn from(entry: Entry) -> Self {
        Decision::To(entry.into())
    }
}

impl<'a> Request<'a> {
    #[inline]
    pub(crate) fn new(packed: Option<String>, subscription: &'a Subscription) -> Self {
        Self {
            packed,
            subscription,
            asked: Asked::default(),
        }
    }

    /// The first value of a header field; none if it is absent or not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.subscription.fields.iter().position(|f| is(f, name)) {
            Some(index) => self.packed(index),
            None => self.ask(
                |known| is(known, name),
                || Field::Header(name.to_ascii_lowercase()),
            ),
        }
    }

    /// Every value of a header field, in order, as bytes. Always asks the host.
    pub fn header_all(&self, name: &str) -> Vec<Vec<u8>> {
        door::header_all(name)
    }

    /// The names of all header fields, in lower case, each once. Always asks the host.
    pub fn header_names(&self) -> Vec<String> {
        door::header_names()
    }

    /// The method, such as `GET`.
    pub fn method(&self) -> &str {
        self.part(&Field::Method).unwrap_or_default()
    }

    /// `http` or `https`, as the client reached the proxy.
    pub fn scheme(&self) -> &str {
        self.part(&Field::Scheme).unwrap_or_default()
    }

    /// The host and port the request names.
    pub fn authority(&self) -> &str {
        self.part(&Field::Authority).unwrap_or_default()
    }

    /// The path without the query, as received.
    pub fn path(&self) -> &str {
        self.part(&Field::Path).unwrap_or_default()
    }

    /// What follows `?`, if there is one.
    pub fn query(&self) -> Option<&str> {
        self.part(&Field::Query)
    }

    /// The address of the client, without its port.
    pub fn client_ip(&self) -> &str {
        self.part(&Field::ClientIp).unwrap_or_default()
    }

    /// Whether the request asks to become a WebSocket.
    pub fn is_websocket(&self) -> bool {
        self.part(&Field::Upgrade) == Some("websocket")
    }

    /// The text of a field that [`Setup::field`](crate::Setup::field) or [`Setup::header`](crate::Setup::header)
    /// subscribed to; none if it is absent or not UTF-8.
    #[inline]
    pub fn get(&self, field: Subscribed) -> Option<&str> {
        self.packed(field.0 as usize)
    }

    /// The text of a slot; none if it is absent or not UTF-8. Always asks the host.
    pub fn slot(&self, slot: Slot) -> Option<String> {
        door::slot(slot.0)
    }

    /// The entry of a bucket whose key stands in a header field: the cheapest decision there is, since neither key nor
    /// address enter the plugin. None if there is no such field, or no such key, or the entry has no port.
    ///
    /// Bucket and field are named by literals under [`#[throwbar::router]`](macro@crate::router), or by the tokens of
    /// [`Setup`](crate::Setup).
    ///
    /// # Panics
    /// If the bucket was not subscribed.
    #[inline]
    pub fn lookup(&self, bucket: impl InBuckets, key: impl InSlots) -> Option<Entry> {
        let bucket = bucket.index(self);
        match key.place(self) {
            Place::Slot(key) => door::entry_at(bucket, key, None),
            Place::Header(name) => door::entry(bucket, self.header(name)?, None),
        }
        .map(Entry)
    }

    /// The same, with the port from a header field in place of the entry's own. None also if that field is absent, or
    /// is not 1 to 65535 in decimal digits, the first not 0.
    ///
    /// # Panics
    /// If the bucket was not subscribed.
    #[inline]
    pub fn lookup_port(
        &self,
        bucket: impl InBuckets,
        key: impl InSlots,
        port: impl InSlots,
    ) -> Option<Entry> {
        let bucket = bucket.index(self);
        match (key.place(self), port.place(self)) {
            (Place::Slot(key), Place::Slot(port)) => door::entry_at(bucket, key, Some(port)),
            (key, port) => {
                let key = self.text(key)?;
                let port = parse_port(&self.text(port)?)?;
                door::entry(bucket, &key, Some(port))
            }
        }
        .map(Entry)
    }

    /// The entry of a bucket under a key that the plugin made. None if there is no such key, or the entry has no port.
    ///
    /// # Panics
    /// If the bucket was not subscribed.
    pub fn find(&self, bucket: impl InBuckets, key: &str) -> Option<Entry> {
        door::entry(bucket.index(self), key, None).map(Entry)
    }

    /// The same, with `port` in place of the entry's own.
    ///
    /// # Panics
    /// If the bucket was not subscribed.
    pub fn find_port(&self, bucket: impl InBuckets, key: &str, port: u16) -> Option<Entry> {
        door::entry(bucket.index(self), key, Some(port)).map(Entry)
    }

    fn part(&self, field: &Field) -> Option<&str> {
        match self.subscription.fields.iter().position(|f| f == field) {
            Some(index) => self.packed(index),
            None => self.ask(|known| known == field, || field.clone()),
        }
    }

    /// The field at `index` of the packed ones: each is ended by U+0000, an absent one is U+0001 alone.
    fn packed(&self, index: usize) -> Option<&str> {
        let text = self.packed.as_deref()?.split('\0').nth(index)?;
        (text != "\u{1}").then_some(text)
    }

    fn text(&self, place: Place<'_>) -> Option<String> {
        match place {
            Place::Slot(slot) => door::slot(slot),
            Place::Header(name) => self.header(name).map(str::to_owned),
        }
    }

    #[cold]
    fn ask(&self, same: impl Fn(&Field) -> bool, field: impl FnOnce() -> Field) -> Option<&str> {
        let mut asked = &self.asked;
        while let Some(answer) = asked.0.get() {
            if same(&answer.field) {
                return answer.text.as_deref();
            }
            asked = &answer.next;
        }
        let answer = asked.0.get_or_init(|| {
            let field = field();
            Box::new(Answer {
                text: door::get(&field),
                field,
                next: Asked::default(),
            })
        });
        answer.text.as_deref()
    }
}

/// What the host was asked, in order: a list that only grows, so that texts can be lent from it.
#[derive(Debug, Default)]
struct Asked(OnceCell<Box<Answer>>);

#[derive(Debug)]
struct Answer {
    field: Field,
    text: Option<String>,
    next: Asked,
}

fn is(field: &Field, header: &str) -> bool {
    matches!(field, Field::Header(name) if name.eq_ignore_ascii_case(header))
}

/// The port in `text`: decimal digits that make 1 to 65535, the first not 0, as the host reads them.
pub fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    digits.then(|| text.parse().ok()).flatten()
}

/// What names a bucket of the subscription: a [`Bucket`], or its name.
pub trait InBuckets: sealed::Sealed {
    #[doc(hidden)]
    fn index(self, request: &Request<'_>) -> u32;
}

/// What names a slot of the subscription: a [`Slot`], or the name of a header field.
pub trait InSlots: sealed::Sealed {
    #[doc(hidden)]
    fn place<'n>(self, request: &Request<'_>) -> Place<'n>
    where
        Self: 'n;
}

#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub enum Place<'n> {
    Slot(u32),
    Header(&'n str),
}

impl InBuckets for Bucket {
    #[inline]
    fn index(self, _: &Request<'_>) -> u32 {
        self.0
    }
}

impl InBuckets for &str {
    fn index(self, request: &Request<'_>) -> u32 {
        match request.subscription.buckets.iter().position(|b| b == self) {
            Some(index) => index as u32,
            None => panic!(
                "bucket {self:?} is not subscribed: name it as a literal in the function under #[throwbar::router], \
                 or in Setup::bucket"
            ),
        }
    }
}

impl InSlots for Slot {
    #[inline]
    fn place<'n>(self, _: &Request<'_>) -> Place<'n> {
        Place::Slot(self.0)
    }
}

impl InSlots for &str {
    fn place<'n>(self, request: &Request<'_>) -> Place<'n>
    where
        Self: 'n,
    {
        match request.subscription.slots.iter().position(|f| is(f, self)) {
            Some(index) => Place::Slot(index as u32),
            None => Place::Header(self),
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Bucket {}
    impl Sealed for super::Slot {}
    impl Sealed for &str {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_the_host_reads_them() {
        for (text, port) in include!("../tests/tables/ports.rs") {
            assert_eq!(parse_port(text), port, "{text:?}");
        }
    }

    #[test]
    fn packed_fields_are_told_apart_from_absent_and_empty_ones() {
        let subscription = Subscription::default();
        let request = Request::new(Some("a\0\u{1}\0\0".into()), &subscription);
        assert_eq!(request.packed(0), Some("a"));
        assert_eq!(request.packed(1), None);
        assert_eq!(request.packed(2), Some(""));
    }
}
