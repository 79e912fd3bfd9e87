//! JSON as it was written: with fields that are there twice, which a map would hide, and words for what it is not.

use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};

use crate::store::value::shown;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the text.
    Object(Vec<(String, Node)>),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(&shown(text)),
            Self::List(_) => f.write_str("a list"),
            Self::Object(_) => f.write_str("an object"),
        }
    }
}

impl Node {
    /// That it is something else than was expected.
    pub(super) fn unlike(&self, path: &str, expected: &str) -> String {
        format!("{path} is {self}, expected {expected}")
    }

    pub(super) fn text(&self, path: &str) -> Result<&str, String> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(other.unlike(path, "a string")),
        }
    }

    pub(super) fn choice<T: Copy>(&self, path: &str, words: &[(&str, T)]) -> Result<T, String> {
        let Self::Text(text) = self else {
            return Err(self.unlike(path, &one_of(words.iter().map(|(word, _)| *word))));
        };
        let known = words.iter().find(|(word, _)| word == text);
        known
            .map(|(_, value)| *value)
            .ok_or_else(|| self.unlike(path, &one_of(words.iter().map(|(word, _)| *word))))
    }

    pub(super) fn whole(&self, path: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
        let number = match self {
            Self::Number(number) => number.as_u64().filter(|number| range.contains(number)),
            _ => None,
        };
        number.ok_or_else(|| {
            let expected = format!("a whole number from {} to {}", range.start(), range.end());
            self.unlike(path, &expected)
        })
    }

    pub(super) fn items(
        &self,
        path: &str,
        count: RangeInclusive<usize>,
    ) -> Result<&[Self], String> {
        let Self::List(items) = self else {
            return Err(self.unlike(path, "a list"));
        };
        if count.contains(&items.len()) {
            return Ok(items);
        }
        Err(format!(
            "{path} has {} items, expected {} to {}",
            items.len(),
            count.start(),
            count.end()
        ))
    }

    /// The fields of these names; there must be no others, and none twice.
    pub(super) fn fields<const N: usize>(
        &self,
        path: &str,
        names: &[&str; N],
    ) -> Result<[Option<&Self>; N], String> {
        let Self::Object(fields) = self else {
            return Err(self.unlike(path, "an object"));
        };
        let mut found = [None; N];
        for (name, value) in fields {
            let Some(at) = names.iter().position(|known| known == name) else {
                return Err(format!(
                    "{path} has the unknown field {}, expected {}",
                    shown(name),
                    one_of(names.iter().copied())
                ));
            };
            if found[at].replace(value).is_some() {
                return Err(format!("{path} has the field {} twice", shown(name)));
            }
        }
        Ok(found)
    }
}

fn one_of<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let words: Vec<String> = words.map(|word| format!("{word:?}")).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.join(""),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
        Ok(Node::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Node, E> {
        Ok(serde_json::Number::from_f64(number).map_or(Node::Null, Node::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Object(fields))
    }
}
