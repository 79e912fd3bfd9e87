//! A string of the config, and what is made of it.

use super::shorten;
use super::table::Walk;
use crate::config::diagnostic::{Finding, did_you_mean, one_of};
use std::ops::Range;

/// A string of the config.
pub(super) struct Text {
    /// With substitutions put in.
    pub(super) value: String,
    /// As written: what messages may show.
    pub(super) shown: String,
    pub(super) path: String,
    pub(super) span: Range<usize>,
}

impl Text {
    /// Reports that it is not what was expected.
    pub(super) fn refuse(&self, walk: &mut Walk<'_>, what: &str, expected: impl Into<String>) {
        let expected = expected.into();
        let shown = shorten(&self.shown);
        // What was expected may quote the value: keep a substituted one out of it.
        let expected = if self.shown == self.value {
            expected
        } else {
            "the substituted value is not one".to_owned()
        };
        walk.report(
            self.span.clone(),
            Finding::new(
                &self.path,
                format!("{shown:?} is not {what}: {expected}"),
                format!("not {what}"),
            ),
        );
    }

    /// What `parse` makes of it, or a problem.
    pub(super) fn read<T>(
        &self,
        walk: &mut Walk<'_>,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(&self.value) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.refuse(walk, what, expected);
                None
            }
        }
    }

    /// One of some words, or a problem that calls it `what`.
    pub(super) fn choice<T: Copy>(
        &self,
        what: &str,
        words: &[(&str, T)],
        walk: &mut Walk<'_>,
    ) -> Option<T> {
        let found = words.iter().find(|(word, _)| *word == self.value);
        if found.is_none() {
            let names = || words.iter().map(|(word, _)| *word);
            walk.report(
                self.span.clone(),
                Finding::new(
                    &self.path,
                    format!(
                        "unknown {what} {:?}: expected {}",
                        shorten(&self.shown),
                        one_of(names())
                    ),
                    format!("expected {}", one_of(names())),
                )
                .help(did_you_mean(&self.shown, names())),
            );
        }
        found.map(|(_, value)| *value)
    }
}
