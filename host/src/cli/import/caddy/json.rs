//! JSON with its place, of which every key is either taken or told.

use crate::cli::import::Findings;
use serde_json::{Map, Value};

/// A value and where it is.
#[derive(Debug, Clone)]
pub(super) struct Node<'v> {
    /// Such as `apps.http.servers.srv0.routes[1]`; empty at the root.
    pub(super) path: String,
    pub(super) value: &'v Value,
}

/// An object whose keys are taken one after the other.
pub(super) struct Object<'v> {
    path: String,
    rest: Vec<(&'v str, &'v Value)>,
}

impl<'v> Node<'v> {
    /// The root of a document.
    pub(super) fn root(value: &'v Value) -> Self {
        let path = String::new();
        Self { path, value }
    }

    fn wrong(&self, expected: &str, findings: &mut Findings) {
        let found = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        let path = if self.path.is_empty() {
            "the document"
        } else {
            &self.path
        };
        findings
            .wrong
            .push(format!("{path}: {found}, expected {expected}"));
    }

    /// Says that it has no counterpart.
    pub(super) fn unsupported(&self, why: impl std::fmt::Display, findings: &mut Findings) {
        findings.unsupported.push(format!("{}: {why}", self.path));
    }

    /// An object, or an empty one if it is none.
    pub(super) fn object(self, findings: &mut Findings) -> Object<'v> {
        let rest = match self.value.as_object() {
            Some(map) => fields(map).collect(),
            None => {
                self.wrong("an object", findings);
                Vec::new()
            }
        };
        Object {
            path: self.path,
            rest,
        }
    }

    /// The items of an array.
    pub(super) fn items(self, findings: &mut Findings) -> Vec<Node<'v>> {
        let Some(items) = self.value.as_array() else {
            self.wrong("an array", findings);
            return Vec::new();
        };
        let item = |(index, value)| Node {
            path: format!("{}[{index}]", self.path),
            value,
        };
        items.iter().enumerate().map(item).collect()
    }

    /// A text.
    pub(super) fn text(&self, findings: &mut Findings) -> Option<&'v str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.wrong("a text", findings);
        }
        text
    }

    /// Texts of an array.
    pub(super) fn texts(self, findings: &mut Findings) -> Vec<&'v str> {
        let items = self.items(findings);
        items
            .iter()
            .filter_map(|item| item.text(findings))
            .collect()
    }
}

/// The keys of an object without Caddy's own labels of objects, which mean nothing to traffic.
fn fields(map: &Map<String, Value>) -> impl Iterator<Item = (&str, &Value)> {
    map.iter().map(|(key, value)| (key.as_str(), value))
}

impl<'v> Object<'v> {
    /// Takes a key.
    pub(super) fn take(&mut self, key: &str) -> Option<Node<'v>> {
        let at = self.rest.iter().position(|(name, _)| *name == key)?;
        let (key, value) = self.rest.swap_remove(at);
        let path = self.path_of(key);
        Some(Node { path, value })
    }

    /// Takes every key that is left.
    pub(super) fn take_all(&mut self) -> Vec<(&'v str, Node<'v>)> {
        let rest = std::mem::take(&mut self.rest);
        let node = |(key, value)| {
            let path = self.path_of(key);
            (key, Node { path, value })
        };
        rest.into_iter().map(node).collect()
    }

    /// Takes a key that means nothing here, and says so.
    pub(super) fn pass_over(&mut self, key: &str, note: &str, findings: &mut Findings) {
        if self.take(key).is_some() {
            findings.note(note);
        }
    }

    /// Says of every key that is left that it has no counterpart. `@id` is a label and means nothing to traffic.
    pub(super) fn finish(mut self, findings: &mut Findings) {
        for (key, node) in self.take_all() {
            if key != "@id" && !is_default(node.value) {
                node.unsupported("has no counterpart", findings);
            }
        }
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }
}

/// Whether a value says nothing: what Caddy itself leaves out.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) | Value::String(_) => false,
    }
}
