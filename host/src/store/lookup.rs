//! Kinds of look-up, which a bucket of the config declares: keys that stand for others, and what such a key looks like.
//!
//! | kind | its key | finds |
//! |---|---|---|
//! | exact | any other | itself |
//! | prefix | `/api/*` | what begins with `/api/` |
//! | suffix | `*.example.com` | names with one or more labels before `.example.com` |
//! | suffix | `.example.com` | these, and `example.com` |
//! | regex | `re:^/v[0-9]+/` | what the pattern is found in |
//! | default | `*` | anything |
//!
//! They are tried in this order: of prefixes and of suffixes the longest, of patterns the first by the bytes of its key.
//! A key is one of these only where its kind is declared; a bucket of exact keys alone knows none.

use super::value::shown;

/// How a key finds an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LookupKind {
    /// By being its key.
    Exact,
    /// By beginning so.
    Prefix,
    /// By being a name in this domain.
    Suffix,
    /// By holding what a regular expression is for.
    Regex,
    /// By nothing else being found.
    Default,
}

impl LookupKind {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Self; 5] = [
        Self::Exact,
        Self::Prefix,
        Self::Suffix,
        Self::Regex,
        Self::Default,
    ];

    /// As the config has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Prefix => "prefix",
            Self::Suffix => "suffix",
            Self::Regex => "regex",
            Self::Default => "default",
        }
    }
}

/// The kinds of a bucket. Exact is always among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LookupKinds(u8);

impl LookupKinds {
    /// These, and exact.
    pub fn of(kinds: &[LookupKind]) -> Self {
        let bits = kinds.iter().map(|kind| 1 << *kind as u8);
        Self(bits.fold(0, |all, bit: u8| all | bit) & !(1 << LookupKind::Exact as u8))
    }

    /// Whether it is one of them.
    pub fn has(self, kind: LookupKind) -> bool {
        kind == LookupKind::Exact || self.0 & (1 << kind as u8) != 0
    }

    /// Whether there is none beside exact.
    pub fn is_exact(self) -> bool {
        self.0 == 0
    }

    /// In the order in which they are tried.
    pub fn iter(self) -> impl Iterator<Item = LookupKind> {
        LookupKind::ALL
            .into_iter()
            .filter(move |kind| self.has(*kind))
    }
}

/// What keys of patterns begin with.
pub(super) const REGEX_MARK: &str = "re:";
/// Bound of one compiled pattern, in bytes.
pub(super) const REGEX_BYTES_MAX: usize = 1 << 20;
/// Longest name of a domain (RFC 1123).
pub(super) const NAME_BYTES_MAX: usize = 253;

/// A key by its kind, with what it looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape<'k> {
    Exact,
    /// Without the star.
    Prefix(&'k str),
    /// Without the star, with the dot.
    Suffix(&'k str),
    /// Without the mark.
    Regex(&'k str),
    Default,
}

impl Shape<'_> {
    pub(super) fn kind(self) -> LookupKind {
        match self {
            Self::Exact => LookupKind::Exact,
            Self::Prefix(_) => LookupKind::Prefix,
            Self::Suffix(_) => LookupKind::Suffix,
            Self::Regex(_) => LookupKind::Regex,
            Self::Default => LookupKind::Default,
        }
    }

    /// What a key looks like, whichever kinds a bucket has.
    fn looks(key: &str) -> Shape<'_> {
        if key == "*" {
            Shape::Default
        } else if let Some(pattern) = key.strip_prefix(REGEX_MARK) {
            Shape::Regex(pattern)
        } else if key.starts_with("*.") {
            Shape::Suffix(&key[1..])
        } else if let Some(prefix) = key.strip_suffix('*') {
            Shape::Prefix(prefix)
        } else if key.starts_with('.') {
            Shape::Suffix(key)
        } else {
            Shape::Exact
        }
    }
}

impl LookupKinds {
    /// What a key is in a bucket of these kinds.
    pub(super) fn shape(self, key: &str) -> Shape<'_> {
        if self.is_exact() {
            return Shape::Exact;
        }
        let shape = Shape::looks(key);
        if self.has(shape.kind()) {
            shape
        } else {
            Shape::Exact
        }
    }

    /// Whether a key can be written: one that looks like a kind that is not declared is a mistake.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(self, key: &str) -> Result<(), String> {
        if self.is_exact() {
            return Ok(());
        }
        let looks = Shape::looks(key);
        if !self.has(looks.kind()) {
            // Many a name of a file begins so.
            if key.starts_with('.') {
                return Ok(());
            }
            let word = looks.kind().word();
            return Err(format!(
                "it looks like a key of kind {word}, which `lookup` of the bucket does not have: expected another key, or \
                 {word:?} in `lookup`"
            ));
        }
        match looks {
            Shape::Exact | Shape::Default => Ok(()),
            Shape::Prefix(prefix) if prefix.contains('*') => Err(
                "a prefix has a * before its end: expected one * at the end alone, such as /api/*"
                    .into(),
            ),
            Shape::Prefix(_) => Ok(()),
            Shape::Suffix(suffix) => check_suffix(suffix),
            Shape::Regex(pattern) => check_regex(pattern),
        }
    }
}

impl LookupKinds {
    /// Whether a key can be written, and is of this kind then: what other programs mean by a key is not what it looks
    /// like.
    ///
    /// # Errors
    /// What is wrong with it, or what it would be.
    pub(crate) fn check_as(self, key: &str, kind: LookupKind) -> Result<(), String> {
        self.check(key)?;
        let found = self.shape(key).kind();
        if found == kind {
            return Ok(());
        }
        Err(format!(
            "it would be a key of kind {} in a bucket with that in its `lookup`, and is meant as {}",
            found.word(),
            kind.word()
        ))
    }
}

fn check_suffix(suffix: &str) -> Result<(), String> {
    let name = &suffix[1..];
    let refuse = |reason: &str| {
        Err(format!(
            "a suffix {reason}: expected a domain in lower case, such as *.example.com, or .example.com for that and \
             example.com"
        ))
    };
    if name.len() > NAME_BYTES_MAX {
        return refuse("is longer than 253 bytes");
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return refuse("is in upper case");
    }
    for label in name.split('.') {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if label.is_empty() {
            return refuse("has an empty label");
        }
        if !label.bytes().all(is_name) {
            return refuse("has other characters than letters, digits, hyphens and dots");
        }
    }
    Ok(())
}

fn check_regex(pattern: &str) -> Result<(), String> {
    let compiled = regex::RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES_MAX)
        .build();
    match compiled {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "{} is no regular expression: {}",
            shown(pattern),
            regex_error(error)
        )),
    }
}

/// The pattern in a key of one.
pub(super) fn pattern_of(key: &str) -> &str {
    key.strip_prefix(REGEX_MARK).unwrap_or(key)
}

/// What is wrong with a pattern, on one line.
pub(crate) fn regex_error(error: regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("it needs more than {limit} bytes when compiled")
        }
        // The last line of a syntax error says what is wrong, those before it draw the place.
        other => other
            .to_string()
            .lines()
            .last()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> LookupKinds {
        LookupKinds::of(&LookupKind::ALL)
    }

    #[test]
    fn keys_are_of_the_kind_they_look_like_where_it_is_declared() {
        for (key, shape) in [
            ("/api/", Shape::Exact),
            ("a*b", Shape::Exact),
            ("/api/*", Shape::Prefix("/api/")),
            ("*.example.com", Shape::Suffix(".example.com")),
            (".example.com", Shape::Suffix(".example.com")),
            ("re:^/v[0-9]", Shape::Regex("^/v[0-9]")),
            ("*", Shape::Default),
        ] {
            assert_eq!(all().shape(key), shape, "{key}");
            assert_eq!(LookupKinds::default().shape(key), Shape::Exact, "{key}");
        }
        let prefixes = LookupKinds::of(&[LookupKind::Prefix]);
        assert_eq!(prefixes.shape("/api/*"), Shape::Prefix("/api/"));
        assert_eq!(prefixes.shape(".profile"), Shape::Exact);
    }

    #[test]
    fn keys_that_can_mean_nothing_are_refused_with_what_was_expected() {
        for (key, reason) in [
            ("/a*b*", "a prefix has a * before its end"),
            ("*.Example.com", "a suffix is in upper case"),
            ("*.a..b", "a suffix has an empty label"),
            (".", "a suffix has an empty label"),
            ("*.a/b", "other characters"),
            ("re:(", "\"(\" is no regular expression: unclosed group"),
            ("re:a{9999}{9999}", "it needs more than"),
        ] {
            let said = all().check(key).expect_err(key);
            assert!(said.contains(reason), "{key}: {said}");
            assert!(!said.contains('\n'), "{key}: {said}");
            assert_eq!(LookupKinds::default().check(key), Ok(()), "{key}");
        }
        for key in ["/api/*", "*.example.com", ".a_b.c", "re:^a", "*", "id1"] {
            assert_eq!(all().check(key), Ok(()), "{key}");
        }
        let prefixes = LookupKinds::of(&[LookupKind::Prefix]);
        for (key, word) in [("re:a", "regex"), ("*", "default"), ("*.a.b", "suffix")] {
            let said = prefixes.check(key).expect_err(key);
            assert!(said.contains(&format!("of kind {word}")), "{said}");
        }
        assert_eq!(prefixes.check(".profile"), Ok(()));
    }

    #[test]
    fn a_key_that_is_meant_in_another_way_than_it_looks_is_refused() {
        use LookupKind::{Default, Exact, Prefix, Suffix};
        for (key, meant) in [("*", Exact), ("/api/*", Exact), ("re:x*", Prefix)] {
            let said = all().check_as(key, meant).expect_err(key);
            assert!(said.contains("it would be"), "{key}: {said}");
        }
        assert_eq!(LookupKinds::default().check_as("/api/*", Exact), Ok(()));
        for (key, meant) in [("*", Default), (".a.b", Suffix), ("a", Exact)] {
            assert_eq!(all().check_as(key, meant), Ok(()), "{key}");
        }
    }
}
