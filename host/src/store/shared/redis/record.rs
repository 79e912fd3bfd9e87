//! What entries and transactions look like in Redis, and how they are read back.

use crate::store::shared::{Author, Revision, SharedChange, SharedEntry};
use redis::Value;

/// What tells one transaction from any other: written with it, and named by the one after it.
pub(super) type Token = Box<[u8]>;

/// A transaction of the log.
#[derive(Debug, PartialEq)]
pub(super) struct Logged {
    pub(super) revision: Revision,
    pub(super) token: Token,
    /// That of the transaction before it: empty for the first.
    pub(super) before: Token,
    /// All of it, in any bucket.
    pub(super) changes: Vec<SharedChange>,
    pub(super) author: Option<Author>,
}

/// An entry of a hash: `revision:end:value`. None if it is not of that form.
pub(super) fn entry(bucket: &str, key: &[u8], record: &[u8]) -> Option<SharedEntry> {
    let (revision, rest) = number(record)?;
    let (end, value) = number(rest)?;
    Some(SharedEntry {
        bucket: bucket.into(),
        key: std::str::from_utf8(key).ok()?.into(),
        value: value.into(),
        revision: Revision(revision),
        expires_at_ms: (end != 0).then_some(end),
    })
}

/// A number up to a colon, and what is behind that.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    let (digits, rest) = text.split_at(colon);
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, &rest[1..]))
}

/// The transactions of an answer to XRANGE, or of the one stream of an answer to XREAD. None if they are not of the form
/// they are written in.
pub(super) fn transactions(entries: &Value) -> Option<Vec<Logged>> {
    array(entries)?.iter().map(transaction).collect()
}

/// The entries of the one stream that XREAD was asked for; none if there are none.
pub(super) fn only_stream(answer: &Value) -> Option<&Value> {
    match answer {
        // RESP3.
        Value::Map(streams) => streams.first().map(|(_, entries)| entries),
        Value::Array(streams) => array(streams.first()?)?.get(1),
        _ => None,
    }
}

fn transaction(entry: &Value) -> Option<Logged> {
    let [id, fields] = array(entry)? else {
        return None;
    };
    let id = std::str::from_utf8(bytes(id)?).ok()?;
    let revision = Revision(id.strip_suffix("-0")?.parse().ok()?);
    let (mut token, mut before, mut writes, mut author) = (None, None, None, None);
    for pair in array(fields)?.chunks(2) {
        let [field, value] = pair else { return None };
        let value = bytes(value)?;
        match bytes(field)? {
            b"token" => token = Some(value),
            b"before" => before = Some(value),
            b"writes" => writes = Some(value),
            b"author" => author = Author::parse(value),
            _ => {}
        }
    }
    Some(Logged {
        revision,
        token: token?.into(),
        before: before?.into(),
        changes: changes(revision, writes?)?,
        author,
    })
}

/// The writes as the scripts pack them: a letter, then texts with their lengths.
fn changes(revision: Revision, mut packed: &[u8]) -> Option<Vec<SharedChange>> {
    let mut changes = Vec::new();
    while let Some((kind, rest)) = packed.split_first() {
        packed = rest;
        let bucket = string(&mut packed)?;
        let key = string(&mut packed)?;
        let after = match kind {
            b's' => {
                let end: u64 = std::str::from_utf8(text(&mut packed)?).ok()?.parse().ok()?;
                Some(SharedEntry {
                    bucket: bucket.clone(),
                    key: key.clone(),
                    value: text(&mut packed)?.into(),
                    revision,
                    expires_at_ms: (end != 0).then_some(end),
                })
            }
            b'd' => None,
            _ => return None,
        };
        changes.push(SharedChange { bucket, key, after });
    }
    Some(changes)
}

fn string(packed: &mut &[u8]) -> Option<Box<str>> {
    std::str::from_utf8(text(packed)?).ok().map(Into::into)
}

fn text<'p>(packed: &mut &'p [u8]) -> Option<&'p [u8]> {
    let (length, rest) = packed.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (text, rest) = rest.split_at_checked(length)?;
    *packed = rest;
    Some(text)
}

pub(super) fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

pub(super) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(parts: &[&str]) -> Vec<u8> {
        let mut packed = Vec::new();
        for part in parts {
            let length = u32::try_from(part.len()).expect("it is short");
            packed.extend(length.to_be_bytes());
            packed.extend(part.as_bytes());
        }
        packed
    }

    #[test]
    fn an_entry_is_read_as_the_script_writes_it() {
        let read = |record: &str| entry("b", b"k", record.as_bytes());
        let entry = read("7:0:a:b").expect("it is a record");
        assert_eq!((&*entry.value, entry.revision.0), (&b"a:b"[..], 7));
        assert_eq!(entry.expires_at_ms, None);
        assert_eq!(read("7:5:").and_then(|entry| entry.expires_at_ms), Some(5));
        for wrong in ["", "7", "7:0", "a:0:b", "-7:0:b"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn writes_are_read_whole_or_not_at_all() {
        let revision = Revision(3);
        let set = [b"s".to_vec(), packed(&["b", "k", "0", "v"])].concat();
        let delete = [b"d".to_vec(), packed(&["b", "l"])].concat();
        let both = [set, delete].concat();
        let read = changes(revision, &both).expect("they are whole");
        assert_eq!(read.len(), 2);
        assert_eq!(
            read[0].after.as_ref().map(|entry| &*entry.value),
            Some(&b"v"[..])
        );
        assert_eq!((&*read[1].key, &read[1].after), ("l", &None));
        for end in 1..both.len() {
            // Between the two it is a whole one.
            let cut = changes(revision, &both[..end]);
            assert!(cut.is_none_or(|read| read.len() == 1), "{end}");
        }
        assert_eq!(changes(revision, b"x"), None);
    }
}
