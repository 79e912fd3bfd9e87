//! What the parser says of a text that is no TOML, and what helps.

use super::shorten;
use super::table::PROBLEMS_MAX;
use crate::config::diagnostic::{Finding, Problem};
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// Keys that are there twice whose first place is looked for: for each the text is parsed once more.
const LOOKED_FOR_MAX: usize = 20;

/// The problems that errors of the parser stand for, in the order of the text.
pub(super) fn problems(text: &str, errors: &[toml::de::Error]) -> Vec<Problem> {
    let mut twice = 0;
    let mut problems: Vec<Problem> = errors
        .iter()
        .take(PROBLEMS_MAX)
        .map(|error| {
            let span = error.span().unwrap_or_default();
            let finding = match error.message() {
                "duplicate key" => {
                    twice += 1;
                    duplicate(text, &span, twice <= LOOKED_FOR_MAX)
                }
                message => {
                    let message = message.lines().collect::<Vec<_>>().join(", ");
                    Finding::new("", message, "here")
                }
            };
            Problem::at(text, span, finding)
        })
        .collect();
    problems.sort_by_key(|problem| problem.span.start);
    problems
}

fn duplicate(text: &str, span: &Range<usize>, look: bool) -> Finding {
    let key = text.get(span.clone()).unwrap_or_default();
    let first = look.then(|| First::of(text, span)).flatten();
    let shown = first.as_ref().map_or(key, |first| &first.name);
    let message = format!("`{}` is there twice", shorten(shown));
    Finding::new("", message, "the second").help(first.map(|first| first.help()))
}

/// Where what is there twice was first.
struct First {
    /// As it is written the second time: the whole path in a header.
    name: String,
    line: usize,
    in_header: bool,
    is_array: bool,
}

impl First {
    fn of(text: &str, second: &Range<usize>) -> Option<Self> {
        let before = text.get(..second.start)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[line_start..].lines().next()?;
        let (above, _) = DeTable::parse_recoverable(&text[..line_start]);
        let header = line.trim_start().starts_with('[');
        let (written, table) = match header {
            true => (line.to_owned(), above.get_ref()),
            // A dotted key, perhaps.
            false => (
                format!("{} = 0", text.get(line_start..second.end)?),
                last_table(text, above.get_ref()),
            ),
        };
        let path = path_of(&written)?;
        let (start, value) = find(table, &path)?;
        Some(Self {
            name: path.join("."),
            line: memchr::memchr_iter(b'\n', &text.as_bytes()[..start]).count() + 1,
            in_header: header,
            is_array: matches!(value, DeValue::Array(_)),
        })
    }

    fn help(&self) -> String {
        let Self { line, name, .. } = self;
        match (self.in_header, self.is_array) {
            (true, true) => format!(
                "line {line} has `[[{0}]]`: write `[[{0}]]` for one more",
                shorten(name)
            ),
            (true, false) => format!("the first is on line {line}: put all of its keys there"),
            (false, _) => format!("the first is on line {line}"),
        }
    }
}

/// The keys that a header, or a key with its value, goes through.
fn path_of(written: &str) -> Option<Vec<String>> {
    let parsed = DeTable::parse(written).ok()?;
    let mut path = Vec::new();
    let mut next = Some(parsed.get_ref());
    while let Some((key, value)) = next.and_then(|table| table.iter().next()) {
        path.push(key.get_ref().to_string());
        next = inner(value.get_ref());
    }
    Some(path)
}

/// Where a key is, and its value.
fn find<'t, 'i>(mut table: &'t DeTable<'i>, path: &[String]) -> Option<(usize, &'t DeValue<'i>)> {
    let (last, parents) = path.split_last()?;
    let get = |table: &'t DeTable<'i>, name: &String| {
        table.iter().find(|(key, _)| *key.get_ref() == **name)
    };
    for parent in parents {
        table = inner(get(table, parent)?.1.get_ref())?;
    }
    let (key, value) = get(table, last)?;
    Some((key.span().start, value.get_ref()))
}

/// The table that keys go on in: of an array, the last.
fn inner<'t, 'i>(value: &'t DeValue<'i>) -> Option<&'t DeTable<'i>> {
    match value {
        DeValue::Table(table) => Some(table),
        DeValue::Array(items) => match items.iter().last()?.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => None,
        },
        _ => None,
    }
}

/// The table whose header is the last; without any, the top level.
fn last_table<'t, 'i>(text: &str, root: &'t DeTable<'i>) -> &'t DeTable<'i> {
    let (mut last, mut at) = (root, None);
    let mut rest: Vec<_> = root.values().collect();
    while let Some(value) = rest.pop() {
        match value.get_ref() {
            DeValue::Array(items) => rest.extend(items.iter()),
            DeValue::Table(table) => {
                let start = value.span().start;
                let is_header = text.get(start..).is_some_and(|text| text.starts_with('['));
                if is_header && at < Some(start) {
                    (last, at) = (table, Some(start));
                }
                rest.extend(table.values());
            }
            _ => {}
        }
    }
    last
}
