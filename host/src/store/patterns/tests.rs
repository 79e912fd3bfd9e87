//! Look-ups against a search through everything.

use super::*;
use crate::store::{Entry, Revision, Value};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn record(key: &str) -> Record {
    let entry = Entry {
        value: Value::Bytes(key.as_bytes().into()),
        revision: Revision(1),
        deadline: None,
    };
    Record::new(key, entry)
}

fn with(kinds: &[LookupKind], keys: &[&str]) -> Patterns {
    let mut patterns = Patterns::new(LookupKinds::of(kinds)).expect("more than exact");
    keys.iter().for_each(|key| patterns.insert(&record(key)));
    patterns.settle("b");
    patterns
}

fn found<'p>(patterns: &'p Patterns, asked: &str) -> Option<&'p str> {
    patterns.find(asked).map(|(record, _)| record.key())
}

#[test]
fn the_longest_prefix_then_the_longest_suffix_then_the_first_regex_then_the_default_is_found() {
    let patterns = with(
        &LookupKind::ALL,
        &[
            "/*",
            "/api/*",
            "/api/v2/*",
            "*.example.com",
            ".example.com",
            "*.eu.example.com",
            "re:b",
            "re:a",
            "*",
        ],
    );
    for (asked, key) in [
        ("/", "/*"),
        ("/apx", "/*"),
        ("/api/", "/api/*"),
        ("/api/v2/x.example.com", "/api/v2/*"),
        ("example.com", ".example.com"),
        ("EXAMPLE.com.", ".example.com"),
        ("a.Example.com:8080", "*.example.com"),
        ("eu.example.com", "*.example.com"),
        ("a.b.eu.example.com", "*.eu.example.com"),
        (".example.com", "re:a"),
        ("xexample.com", "re:a"),
        ("bob", "re:b"),
        ("", "*"),
        ("*", "*"),
        ("x", "*"),
    ] {
        assert_eq!(found(&patterns, asked), Some(key), "{asked}");
    }
}

#[test]
fn a_prefix_is_of_characters_and_a_key_asked_for_may_be_of_any_length() {
    let longest = format!("{}*", "x".repeat(KEY_BYTES_MAX - 1));
    let patterns = with(&LookupKind::ALL, &["é*", "ab*", &longest]);
    assert_eq!(found(&patterns, "éa"), Some("é*"));
    assert_eq!(found(&patterns, "aé"), None);
    assert_eq!(found(&patterns, &"x".repeat(10_000)), Some(&*longest));
    assert_eq!(found(&patterns, &"x".repeat(KEY_BYTES_MAX - 2)), None);
    assert_eq!(found(&patterns, &"é".repeat(10_000)), Some("é*"));
    assert_eq!(found(&patterns, &".".repeat(10_000)), None);
}

#[test]
fn patterns_that_others_wrote_and_that_are_too_large_together_are_left_out_from_the_end() {
    let large: Vec<String> = (10..50).map(|n| format!("re:{n}[a-z]{{12000}}")).collect();
    let large: Vec<&str> = large.iter().map(|key| &**key).collect();
    let patterns = with(&[LookupKind::Regex], &large);
    let few = patterns.regexes.places.len();
    assert!((1..40).contains(&few), "{few}");
    assert!(!patterns.is_unsettled());
    assert!(found(&patterns, &format!("10{}", "z".repeat(12_000))).is_some());
    let more = patterns.compiled_after([("re:a", true)].into_iter(), 100);
    assert!(more.is_err_and(|reason| reason.contains("together")));
}

#[test]
fn one_regular_expression_more_than_there_may_be_is_refused() {
    let patterns = with(&[LookupKind::Regex], &["re:a", "re:b"]);
    let after = |key, comes, at_most| {
        let after = patterns.compiled_after([(key, comes)].into_iter(), at_most);
        after.map(|regexes| regexes.map(|regexes| regexes.places.len()))
    };
    assert_eq!(after("re:c", true, 3), Ok(Some(3)));
    assert_eq!(
        after("re:c", true, 2),
        Err("would hold 3 regular expressions, regexes_max is 2".into())
    );
    assert_eq!(after("re:b", true, 2), Ok(None));
    // After the limit was lowered, they may become fewer.
    assert_eq!(after("re:b", false, 0), Ok(Some(1)));
}

/// What a key finds, by the words of the documentation.
fn naive(kinds: LookupKinds, keys: &BTreeMap<String, ()>, asked: &str) -> Option<String> {
    let of = |wanted: LookupKind| {
        let shaped = keys.keys().map(|key| (key, kinds.shape(key)));
        shaped.filter(move |(_, shape)| shape.kind() == wanted)
    };
    let name = asked.to_ascii_lowercase();
    let prefix = of(LookupKind::Prefix)
        .filter(|(_, shape)| matches!(shape, Shape::Prefix(prefix) if asked.starts_with(prefix)));
    let suffix = of(LookupKind::Suffix).filter(|(key, shape)| {
        let Shape::Suffix(suffix) = shape else {
            return false;
        };
        let itself = !key.starts_with('*') && name == suffix[1..];
        itself
            || name
                .strip_suffix(suffix)
                .is_some_and(|rest| !rest.is_empty())
    });
    let regex = of(LookupKind::Regex).filter(|(_, shape)| {
        matches!(shape, Shape::Regex(pattern) if regex::Regex::new(pattern).unwrap().is_match(asked))
    });
    let key = |(key, _): (&String, Shape<'_>)| key.clone();
    let longest = |(key, _): &(&String, Shape<'_>)| key.len();
    prefix
        .max_by_key(longest)
        .map(key)
        .or_else(|| suffix.max_by_key(longest).map(key))
        .or_else(|| { regex }.next().map(key))
        .or_else(|| of(LookupKind::Default).next().map(key))
}

proptest! {
    #[test]
    fn what_is_found_is_what_a_search_through_everything_finds(
        kinds in proptest::collection::vec(proptest::sample::select(&LookupKind::ALL[..]), 1..5),
        steps in proptest::collection::vec(
            ("(\\*?\\.)?[ab.]{0,3}\\*?|re:[ab^$]{1,3}|\\*", any::<bool>()), 0..40),
        asked in proptest::collection::vec("[abAB.]{0,6}", 1..20),
    ) {
        let kinds = LookupKinds::of(&kinds);
        prop_assume!(!kinds.is_exact());
        let mut patterns = Patterns::new(kinds).unwrap();
        let mut keys = BTreeMap::new();
        for (key, comes) in steps {
            if key.is_empty() || kinds.check(&key).is_err() {
                continue;
            }
            if comes {
                patterns.insert(&record(&key));
                keys.insert(key, ());
            } else {
                patterns.remove(&key);
                keys.remove(&key);
            }
        }
        patterns.settle("b");
        let records = keys.keys().map(|key| record(key));
        let mut loaded = Patterns::load(kinds, records).unwrap();
        loaded.settle("b");
        for asked in asked {
            // A dot at the end is of the name it ends: the search does not know that.
            if asked.ends_with('.') {
                continue;
            }
            let expected = naive(kinds, &keys, &asked);
            prop_assert_eq!(found(&patterns, &asked), expected.as_deref(), "{}", asked);
            prop_assert_eq!(found(&loaded, &asked), expected.as_deref(), "{}", asked);
        }
    }
}
