//! Keys of regular expressions in an order that is given: that in which others try theirs.
//!
//! A bucket tries patterns by the bytes of their keys. Where that is another order, the keys get a number, in an empty
//! group that fits everywhere: `re:(?<n1>)^v[0-9]`, `re:(?<n2>)^a`.

use super::lookup::{REGEX_MARK, pattern_of, regex_error};
use std::collections::BTreeSet;

/// What is numbered begins so.
const NUMBER: &str = "(?<n";
const NUMBER_END: &str = ">)";

/// Whether keys were numbered to keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbered {
    No,
    Yes,
}

/// The keys of patterns, each once, so that the first of them that fits is found.
pub(crate) fn keys_in_order<'p>(
    patterns: impl IntoIterator<Item = &'p str>,
) -> (Vec<String>, Numbered) {
    let mut seen = BTreeSet::new();
    let patterns: Vec<&str> = patterns
        .into_iter()
        .filter(|pattern| seen.insert(*pattern))
        .collect();
    if patterns.is_sorted() {
        let keys = patterns.iter().map(|it| format!("{REGEX_MARK}{it}"));
        return (keys.collect(), Numbered::No);
    }
    let digits = patterns.len().to_string().len();
    let number = |(index, pattern): (usize, &&str)| {
        let number = index + 1;
        format!("{REGEX_MARK}{NUMBER}{number:0digits$}{NUMBER_END}{pattern}")
    };
    (
        patterns.iter().enumerate().map(number).collect(),
        Numbered::Yes,
    )
}

/// The pattern of such a key, without its number.
pub(crate) fn pattern_in_order(key: &str) -> &str {
    let pattern = pattern_of(key);
    let number = pattern
        .strip_prefix(NUMBER)
        .and_then(|rest| rest.split_once(NUMBER_END));
    match number {
        Some((digits, rest)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => rest,
        _ => pattern,
    }
}

/// The pattern of another program, compiled as a bucket would.
///
/// # Errors
/// What is wrong with it, on one line.
pub(crate) fn compile(pattern: &str) -> Result<regex::Regex, String> {
    regex::Regex::new(pattern).map_err(regex_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_numbered_only_where_their_bytes_have_another_order() {
        let keys = |patterns: &[&str]| keys_in_order(patterns.iter().copied());
        assert_eq!(keys(&[]), (Vec::new(), Numbered::No));
        assert_eq!(
            keys(&["^a", "^b", "^a"]),
            (vec!["re:^a".to_owned(), "re:^b".to_owned()], Numbered::No)
        );
        let many: Vec<String> = (0..12).rev().map(|n| format!("^{n:02}")).collect();
        let (numbered, is) = keys_in_order(many.iter().map(String::as_str));
        assert_eq!(is, Numbered::Yes);
        assert_eq!(numbered[0], "re:(?<n01>)^11");
        assert!(numbered.is_sorted(), "{numbered:?}");
        for (key, pattern) in numbered.iter().zip(&many) {
            assert_eq!(pattern_in_order(key), pattern);
            compile(pattern_of(key)).expect(key);
        }
        assert_eq!(pattern_in_order("re:(?<name>)x"), "(?<name>)x");
    }
}
