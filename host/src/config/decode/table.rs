//! Reads the spanned tree of a TOML text: each value once, each problem recorded, none final.

use super::misplaced::{TopLevel, at_top_level};
use super::text::{Sources, substitute};
use super::word::Text;
use super::{shorten, units};
use crate::config::diagnostic::{Finding, Problem, did_you_mean, join, one_of};
use crate::plugin::Fraction;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Most problems that are recorded.
pub(super) const PROBLEMS_MAX: usize = 200;

/// What a decode gathers on its way.
pub(super) struct Walk<'s> {
    pub(super) text: &'s str,
    pub(super) sources: &'s Sources<'s>,
    pub(super) problems: Vec<Problem>,
    /// Where each path of the text is.
    pub(super) places: BTreeMap<String, Range<usize>>,
    /// Strings that something was put into, and how they are written.
    pub(super) substituted: Vec<(String, String)>,
}

impl Walk<'_> {
    pub(super) fn report(&mut self, span: Range<usize>, finding: Finding) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem::at(self.text, span, finding));
        }
    }

    /// Shows strings as they are written: what was put in may be secret.
    pub(super) fn mask(&self, text: &mut String) {
        for (value, shown) in &self.substituted {
            let shown = format!("{:?}", shorten(shown));
            for value in [format!("{value:?}"), format!("{:?}", shorten(value))] {
                if text.contains(&value) {
                    *text = text.replace(&value, &shown);
                }
            }
        }
    }
}

/// A table, with the keys asked for so far.
pub(super) struct Table<'t> {
    pub(super) path: String,
    pub(super) span: Range<usize>,
    fields: Vec<Field<'t>>,
    asked: Vec<&'static str>,
}

/// A value with its key.
#[derive(Clone)]
pub(super) struct Field<'t> {
    pub(super) path: String,
    pub(super) key: &'t str,
    pub(super) key_span: Range<usize>,
    value: &'t DeValue<'t>,
    pub(super) span: Range<usize>,
}

impl<'t> Table<'t> {
    pub(super) fn new(
        path: String,
        span: Range<usize>,
        table: &'t DeTable<'t>,
        walk: &mut Walk<'_>,
    ) -> Self {
        let mut fields: Vec<Field<'t>> = table
            .iter()
            .map(|(key, value)| {
                Field::new(join(&path, key.get_ref()), key.get_ref(), key.span(), value)
            })
            .collect();
        // The tree is sorted by key; problems and JSON bodies are wanted in the order of the text.
        fields.sort_by_key(|field| field.key_span.start);
        for field in &fields {
            walk.places.insert(field.path.clone(), field.span.clone());
        }
        walk.places.insert(path.clone(), span.clone());
        Self {
            path,
            span,
            fields,
            asked: Vec::new(),
        }
    }

    /// The value of a key this table may have.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Field<'t>> {
        self.asked.push(key);
        self.fields.iter().find(|field| field.key == key).cloned()
    }

    /// Whether a key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.fields.iter().any(|field| field.key == key)
    }

    /// Every value, for tables whose keys are names.
    pub(super) fn fields(self) -> Vec<Field<'t>> {
        self.fields
    }

    /// Reports keys that were never asked for.
    pub(super) fn finish(self, walk: &mut Walk<'_>) {
        for field in &self.fields {
            if self.asked.contains(&field.key) {
                continue;
            }
            let place = if self.path.is_empty() {
                String::new()
            } else {
                format!(" in {}", self.path)
            };
            let misplaced = field.misplaced().filter(|_| !self.path.is_empty());
            let help = misplaced
                .or_else(|| did_you_mean(field.key, self.asked.iter().copied()))
                .unwrap_or_else(|| format!("expected {}", one_of(self.asked.iter().copied())));
            walk.report(
                field.key_span.clone(),
                Finding::new(
                    &field.path,
                    format!("unknown key `{}`{place}", shorten(field.key)),
                    "unknown key",
                )
                .help(help),
            );
        }
    }

    /// Reports that a key is missing.
    pub(super) fn missing(&self, key: &str, example: &str, walk: &mut Walk<'_>) {
        walk.report(
            self.span.clone(),
            Finding::new(
                &self.path,
                format!("key `{key}` is missing in {}", self.path),
                format!("`{key}` is missing"),
            )
            .help(format!("write `{example}`")),
        );
    }

    pub(super) fn table(&mut self, key: &'static str, walk: &mut Walk<'_>) -> Option<Table<'t>> {
        self.take(key)?.table(walk)
    }

    pub(super) fn text(&mut self, key: &'static str, walk: &mut Walk<'_>) -> Option<Text> {
        self.take(key)?.text(walk)
    }

    /// A path, relative to the directory of the config.
    pub(super) fn path_buf(&mut self, key: &'static str, slot: &mut PathBuf, walk: &mut Walk<'_>) {
        if let Some(text) = self.text(key, walk)
            && let Some(path) = text.read(walk, "a path", |text| path_buf(text, walk.sources))
        {
            *slot = path;
        }
    }

    pub(super) fn integer<T: TryFrom<i128>>(
        &mut self,
        key: &'static str,
        slot: &mut T,
        walk: &mut Walk<'_>,
    ) {
        if let Some(number) = self.take(key).and_then(|field| field.integer(walk)) {
            *slot = number;
        }
    }

    /// A share of something, such as 0.1; its bounds are checked elsewhere.
    pub(super) fn share(&mut self, key: &'static str, slot: &mut f64, walk: &mut Walk<'_>) {
        let Some(field) = self.take(key) else { return };
        let number = match field.value {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) => *slot = number,
            None => field.wrong_type("a number such as 0.1", walk),
        }
    }

    pub(super) fn boolean(&mut self, key: &'static str, slot: &mut bool, walk: &mut Walk<'_>) {
        let Some(field) = self.take(key) else { return };
        match field.value {
            DeValue::Boolean(value) => *slot = *value,
            _ => field.wrong_type("true or false", walk),
        }
    }

    pub(super) fn duration(&mut self, key: &'static str, slot: &mut Duration, walk: &mut Walk<'_>) {
        if let Some(duration) = self.optional_duration(key, walk) {
            *slot = duration;
        }
    }

    pub(super) fn optional_duration(
        &mut self,
        key: &'static str,
        walk: &mut Walk<'_>,
    ) -> Option<Duration> {
        let field = self.take(key)?;
        if let DeValue::Integer(number) = field.value {
            walk.report(
                field.span.clone(),
                Finding::new(
                    &field.path,
                    format!("`{key}` has no unit"),
                    "expected a duration",
                )
                .help(format!("write \"{number}s\" or \"{number}ms\"")),
            );
            return None;
        }
        let text = field.text(walk)?;
        text.read(walk, "a duration", units::duration)
    }

    /// A number from 0 to 1.
    pub(super) fn fraction(&mut self, key: &'static str, slot: &mut Fraction, walk: &mut Walk<'_>) {
        let Some(field) = self.take(key) else { return };
        let number = match field.value {
            DeValue::Float(number) => number.as_str().replace('_', "").parse().ok(),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => None,
        };
        match number.and_then(Fraction::new) {
            Some(fraction) => *slot = fraction,
            None => field.wrong_type("a number from 0 to 1", walk),
        }
    }

    /// A size in bytes: text with a unit, or a plain integer.
    pub(super) fn size<T: TryFrom<i128>>(
        &mut self,
        key: &'static str,
        slot: &mut T,
        walk: &mut Walk<'_>,
    ) {
        let Some(field) = self.take(key) else { return };
        let size = match field.value {
            DeValue::Integer(_) => field.integer(walk),
            _ => field.text(walk).and_then(|text| {
                text.read(walk, "a size", |text| {
                    T::try_from(i128::from(units::size(text)?))
                        .map_err(|_| "it is too large".to_owned())
                })
            }),
        };
        if let Some(size) = size {
            *slot = size;
        }
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        walk: &mut Walk<'_>,
    ) -> Option<T> {
        self.text(key, walk)?.choice(key, words, walk)
    }
}

/// A path of the config, relative to its directory.
pub(super) fn path_buf(text: &str, sources: &Sources<'_>) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("expected the path of a file or directory".to_owned());
    }
    Ok(sources.directory.join(text))
}

impl<'t> Field<'t> {
    fn new(
        path: String,
        key: &'t str,
        key_span: Range<usize>,
        value: &'t Spanned<DeValue<'t>>,
    ) -> Self {
        Self {
            path,
            key,
            key_span,
            span: value.span(),
            value: value.get_ref(),
        }
    }

    /// Its TOML value.
    pub(super) fn value(&self) -> &'t DeValue<'t> {
        self.value
    }

    /// What to do about it if it is written as a key of the top level is, which is told of a key that is unknown here.
    fn misplaced(&self) -> Option<String> {
        let is_table = matches!(self.value, DeValue::Table(_) | DeValue::Array(_));
        let is_written = |it: &TopLevel| (*it != TopLevel::Value) == is_table;
        let known = at_top_level(self.key).filter(is_written)?;
        Some(known.help(self.key))
    }

    /// Whether it is a value of the top level among tables that have names, which is reported.
    pub(super) fn is_misplaced(&self, walk: &mut Walk<'_>) -> bool {
        let is_table = matches!(self.value, DeValue::Table(_));
        let Some(help) = self.misplaced().filter(|_| !is_table) else {
            return false;
        };
        let (key, path) = (shorten(self.key), self.path.strip_suffix(self.key));
        let place = path.unwrap_or_default().trim_end_matches('.');
        let message = format!("unknown key `{key}` in {place}");
        let finding = Finding::new(&self.path, message, "unknown key").help(help);
        walk.report(self.key_span.clone(), finding);
        true
    }

    pub(super) fn wrong_type(&self, expected: &str, walk: &mut Walk<'_>) {
        let found = kind(self.value);
        walk.report(
            self.span.clone(),
            Finding::new(
                &self.path,
                format!("`{}` is {found}, expected {expected}", shorten(self.key)),
                format!("expected {expected}"),
            ),
        );
    }

    pub(super) fn text(&self, walk: &mut Walk<'_>) -> Option<Text> {
        let DeValue::String(shown) = self.value else {
            self.wrong_type("a string", walk);
            return None;
        };
        match substitute(shown, walk.sources) {
            Ok(value) => {
                let shown = shown.to_string();
                if shown != value {
                    walk.substituted.push((value.clone(), shown.clone()));
                }
                Some(Text {
                    value,
                    shown,
                    path: self.path.clone(),
                    span: self.span.clone(),
                })
            }
            Err(message) => {
                walk.report(
                    self.span.clone(),
                    Finding::new(&self.path, message, "in this value"),
                );
                None
            }
        }
    }

    pub(super) fn integer<T: TryFrom<i128>>(&self, walk: &mut Walk<'_>) -> Option<T> {
        let DeValue::Integer(number) = self.value else {
            self.wrong_type("an integer", walk);
            return None;
        };
        let converted = i128::from_str_radix(number.as_str(), number.radix())
            .ok()
            .and_then(|number| T::try_from(number).ok());
        if converted.is_none() {
            walk.report(
                self.span.clone(),
                Finding::new(
                    &self.path,
                    format!(
                        "`{}` is {}, which is out of range",
                        shorten(self.key),
                        shorten(&number.to_string())
                    ),
                    "out of range",
                ),
            );
        }
        converted
    }

    pub(super) fn table(&self, walk: &mut Walk<'_>) -> Option<Table<'t>> {
        match self.value {
            DeValue::Table(table) => Some(Table::new(
                self.path.clone(),
                self.span.clone(),
                table,
                walk,
            )),
            _ => {
                self.wrong_type("a table", walk);
                None
            }
        }
    }

    /// The items of an array.
    pub(super) fn items(&self, walk: &mut Walk<'_>) -> Option<Vec<Field<'t>>> {
        match self.value {
            DeValue::Array(items) => {
                let items: Vec<Field<'t>> = items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| {
                        Field::new(
                            format!("{}[{index}]", self.path),
                            self.key,
                            item.span(),
                            item,
                        )
                    })
                    .collect();
                for item in &items {
                    walk.places.insert(item.path.clone(), item.span.clone());
                }
                Some(items)
            }
            _ => {
                self.wrong_type("an array", walk);
                None
            }
        }
    }

    /// The items of an array, or the value itself as the only one.
    pub(super) fn one_or_many(&self, walk: &mut Walk<'_>) -> Vec<Field<'t>> {
        match self.value {
            DeValue::Array(_) => self.items(walk).unwrap_or_default(),
            _ => vec![self.clone()],
        }
    }
}

fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a string".to_owned(),
        DeValue::Integer(number) => format!("the integer {}", shorten(&number.to_string())),
        DeValue::Float(number) => format!("the number {}", shorten(&number.to_string())),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
