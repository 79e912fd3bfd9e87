//! What a plugin wants of every request, said once in `init`.

pub use crate::bindings::throwbar::plugin::types::Field;
use crate::bindings::throwbar::plugin::types::{Edits, Subscription};

/// Most fields, and most slots, that the contract lets a plugin subscribe to.
pub const FIELDS_MAX: usize = 16;

/// Collects what a plugin wants of every request, so that a request pays for nothing else.
///
/// Asking for the same thing twice gives the same token.
#[derive(Debug, Default)]
pub struct Setup {
    subscription: Subscription,
}

/// A field passed into the plugin with every request: for [`Request::get`](crate::Request::get).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribed(pub(crate) u32);

/// A field that the host keeps at hand: for [`Request::lookup`](crate::Request::lookup), where its text need never
/// enter the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub(crate) u32);

/// A bucket to look requests up in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket(pub(crate) u32);

impl Setup {
    /// Has a header field passed into the plugin with every request.
    pub fn header(&mut self, name: &str) -> Subscribed {
        self.field(Field::Header(name.to_owned()))
    }

    /// Has a part of the request passed into the plugin with every request.
    pub fn field(&mut self, field: Field) -> Subscribed {
        Subscribed(place(&mut self.subscription.fields, lower(field)))
    }

    /// Has the host keep a header field at hand.
    pub fn slot_header(&mut self, name: &str) -> Slot {
        self.slot(Field::Header(name.to_owned()))
    }

    /// Has the host keep a part of the request at hand.
    pub fn slot(&mut self, field: Field) -> Slot {
        Slot(place(&mut self.subscription.slots, lower(field)))
    }

    /// Opens a bucket for lookups; the config must grant it.
    pub fn bucket(&mut self, name: &str) -> Bucket {
        Bucket(place(&mut self.subscription.buckets, name.to_owned()))
    }

    /// Takes a header field away from every request before it is forwarded.
    pub fn remove_request_header(&mut self, name: &str) {
        place(
            &mut self.subscription.edits.request_remove,
            name.to_ascii_lowercase(),
        );
    }

    /// Sets a header field of every request before it is forwarded.
    pub fn set_request_header(&mut self, name: &str, value: impl Into<String>) {
        set(&mut self.subscription.edits.request_set, name, value.into());
    }

    /// Takes a header field away from every response.
    pub fn remove_response_header(&mut self, name: &str) {
        place(
            &mut self.subscription.edits.response_remove,
            name.to_ascii_lowercase(),
        );
    }

    /// Sets a header field of every response.
    pub fn set_response_header(&mut self, name: &str, value: impl Into<String>) {
        set(
            &mut self.subscription.edits.response_set,
            name,
            value.into(),
        );
    }

    pub(crate) fn finish(self) -> Result<Subscription, String> {
        let sizes = [
            ("fields", self.subscription.fields.len()),
            ("slots", self.subscription.slots.len()),
        ];
        for (what, count) in sizes {
            if count > FIELDS_MAX {
                return Err(format!(
                    "{count} {what} subscribed, expected at most {FIELDS_MAX}"
                ));
            }
        }
        Ok(self.subscription)
    }
}

fn lower(field: Field) -> Field {
    match field {
        Field::Header(name) => Field::Header(name.to_ascii_lowercase()),
        other => other,
    }
}

/// The index of `item`, which is added unless it is there.
fn place<T: PartialEq>(list: &mut Vec<T>, item: T) -> u32 {
    let index = list.iter().position(|known| *known == item);
    let index = index.unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    });
    u32::try_from(index).expect("a list in memory has fewer than 2^32 items")
}

fn set(list: &mut Vec<(String, String)>, name: &str, value: String) {
    let name = name.to_ascii_lowercase();
    list.retain(|(known, _)| *known != name);
    list.push((name, value));
}

#[allow(clippy::derivable_impls, reason = "the type is generated")]
impl Default for Edits {
    fn default() -> Self {
        Self {
            request_remove: Vec::new(),
            request_set: Vec::new(),
            response_remove: Vec::new(),
            response_set: Vec::new(),
        }
    }
}

#[allow(clippy::derivable_impls, reason = "the type is generated")]
impl Default for Subscription {
    fn default() -> Self {
        Self {
            fields: Vec::new(),
            slots: Vec::new(),
            buckets: Vec::new(),
            edits: Edits::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_twice_gives_the_same_token() {
        let mut setup = Setup::default();
        let id = setup.slot_header("X-ID");
        let port = setup.slot_header("x-port");
        assert_ne!(id, port);
        assert_eq!(setup.slot_header("x-id"), id);
        assert_eq!(setup.finish().unwrap().slots.len(), 2);
    }

    #[test]
    fn setting_a_header_twice_keeps_the_last_value() {
        let mut setup = Setup::default();
        setup.set_response_header("X-Version", "a");
        setup.set_response_header("x-version", "b");
        let edits = setup.finish().unwrap().edits;
        assert_eq!(edits.response_set, [("x-version".into(), "b".into())]);
    }

    #[test]
    fn a_seventeenth_field_is_an_error_that_says_so() {
        let mut setup = Setup::default();
        for number in 0..=FIELDS_MAX {
            setup.header(&format!("x-{number}"));
        }
        let error = setup.finish().unwrap_err();
        assert_eq!(error, "17 fields subscribed, expected at most 16");
    }
}
