//! Problems with their place in the file, shown the way rustc does.

use std::ops::Range;

/// One problem of a config.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Where it is, such as `listener[0].listen`.
    pub path: String,
    /// What is wrong: the value and what was expected.
    pub message: String,
    /// A short text put under the place.
    pub label: String,
    /// "did you mean" and the like.
    pub help: Option<String>,
    /// Byte range in the text.
    pub span: Range<usize>,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}
