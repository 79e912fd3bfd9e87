//! Mappings of Caddy's `map` handler as keys of a bucket.
//!
//! Caddy takes the first mapping that fits, whole inputs and expressions mixed, and then the default. A bucket looks for
//! the whole key, then for the first expression, then for the default: where the two differ, the mapping is left out if
//! nothing ever finds it, or refused.

use crate::store::ordered::{compile, keys_in_order};
use crate::store::{LookupKind, LookupKinds};
use regex::RegexSet;
use std::collections::HashMap;

/// The most expressions that a bucket can be set to hold.
const EXPRESSIONS_MAX: usize = 1000;

/// What a mapping is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// A whole source.
    Whole(String),
    /// What an expression is found in.
    Expression(String),
}

/// One mapping with the output for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) input: Input,
    /// None is as if the mapping were not there. An empty one is found, and is nothing.
    pub(crate) output: Option<String>,
}

/// What mappings come to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Keys {
    /// Key and output, each key once.
    pub(crate) entries: Vec<(String, String)>,
    /// What a bucket cannot hold, by the mapping's place.
    pub(crate) refused: Vec<(usize, String)>,
    /// What is left out because Caddy never finds it, by the mapping's place.
    pub(crate) notes: Vec<(usize, String)>,
}

/// The keys of a bucket with these kinds.
pub(crate) fn keys(mappings: &[Mapping], kinds: LookupKinds, has_default: bool) -> Keys {
    let mut keys = Keys::default();
    let expressions = Expressions::of(mappings, kinds, &mut keys.refused);
    let mut seen = HashMap::with_capacity(mappings.len());
    for (index, mapping) in mappings.iter().enumerate() {
        let Some(output) = &mapping.output else {
            continue;
        };
        let Input::Whole(key) = &mapping.input else {
            continue;
        };
        let mut refuse = |why: String| keys.refused.push((index, why));
        if key.is_empty() && !output.is_empty() {
            refuse("input is empty: expected a key".to_owned());
        } else if let Some(first) = seen.insert(key.as_str(), index) {
            refuse(format!(
                "input {key:?} is that of mappings[{first}] already"
            ));
        } else if let Some(first) = expressions.first(key).filter(|first| *first < index) {
            let why = format!(
                "input {key:?} is never found: the input_regexp of mappings[{first}] fits it and comes first"
            );
            keys.notes.push((index, why));
        } else if output.is_empty() {
            let then = expressions.first(key);
            if let Some(why) = found_after(has_default, then) {
                refuse(why);
            }
        } else {
            match meant(kinds, key) {
                Ok(()) => keys.entries.push((key.clone(), output.clone())),
                Err(why) => refuse(format!("input {key:?}: {why}")),
            }
        }
    }
    for (place, index) in expressions.places.iter().enumerate() {
        if !expressions.outputs[place].is_empty() {
            continue;
        }
        let later = expressions.places.iter().zip(&expressions.outputs);
        let mut later = later.skip(place + 1);
        let then = later.find(|(_, output)| !output.is_empty());
        if let Some(why) = found_after(has_default, then.map(|(index, _)| *index)) {
            keys.refused.push((*index, why));
        }
    }
    let filled = expressions.patterns.iter().zip(&expressions.outputs);
    let filled: Vec<_> = filled.filter(|(_, output)| !output.is_empty()).collect();
    let (ordered, _) = keys_in_order(filled.iter().map(|(pattern, _)| **pattern));
    let outputs = filled.iter().map(|(_, output)| (**output).to_owned());
    keys.entries.extend(ordered.into_iter().zip(outputs));
    keys.refused.sort_by_key(|(index, _)| *index);
    keys
}

/// Whether a whole input is a key as it is. What a config declares beside expressions and a default is not Caddy's, and
/// means what it looks like.
fn meant(kinds: LookupKinds, key: &str) -> Result<(), String> {
    let own = [LookupKind::Prefix, LookupKind::Suffix];
    if own.iter().any(|kind| kinds.check_as(key, *kind).is_ok()) {
        return Ok(());
    }
    kinds.check_as(key, LookupKind::Exact)
}

/// Why an empty output would be another one here: what is found after it. A bucket holds no key for it.
fn found_after(has_default: bool, then: Option<usize>) -> Option<String> {
    match then {
        Some(then) => Some(format!(
            "an empty output has no counterpart before the input_regexp of mappings[{then}]"
        )),
        None if has_default => {
            Some("an empty output has no counterpart beside a default".to_owned())
        }
        None => None,
    }
}

/// The expressions that can be carried over, in their order.
struct Expressions<'m> {
    /// Their mappings.
    places: Vec<usize>,
    patterns: Vec<&'m str>,
    outputs: Vec<&'m str>,
    set: RegexSet,
}

impl<'m> Expressions<'m> {
    fn of(mappings: &'m [Mapping], kinds: LookupKinds, refused: &mut Vec<(usize, String)>) -> Self {
        let mut all = Self {
            places: Vec::new(),
            patterns: Vec::new(),
            outputs: Vec::new(),
            set: RegexSet::empty(),
        };
        let mut seen = HashMap::new();
        for (index, mapping) in mappings.iter().enumerate() {
            let (Input::Expression(pattern), Some(output)) = (&mapping.input, &mapping.output)
            else {
                continue;
            };
            let checked = if let Some(first) = seen.insert(pattern, index) {
                Err(format!("input_regexp is that of mappings[{first}] already"))
            } else if !kinds.has(LookupKind::Regex) {
                Err(
                    "input_regexp has no counterpart without \"regex\" in `lookup` of the bucket"
                        .into(),
                )
            } else if all.places.len() == EXPRESSIONS_MAX {
                Err(format!("input_regexp: more than {EXPRESSIONS_MAX} of them"))
            } else if output.contains('$') {
                Err("an output with parts of what input_regexp fits has no counterpart".into())
            } else {
                compile(pattern).map_err(|why| format!("input_regexp {pattern:?}: {why}"))
            };
            match checked {
                Ok(_) => {
                    all.places.push(index);
                    all.patterns.push(pattern);
                    all.outputs.push(output);
                }
                Err(why) => refused.push((index, why)),
            }
        }
        match RegexSet::new(&all.patterns) {
            Ok(set) => all.set = set,
            Err(error) => {
                let why = crate::store::lookup::regex_error(error);
                let why = format!("the input_regexp of all mappings together: {why}");
                refused.extend(all.places.last().map(|last| (*last, why)));
            }
        }
        all
    }

    /// The mapping of the first that fits.
    fn first(&self, input: &str) -> Option<usize> {
        let place = self.set.matches(input).iter().next()?;
        self.places.get(place).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(input: &str, output: &str) -> Mapping {
        let input = match input.strip_prefix('~') {
            Some(pattern) => Input::Expression(pattern.to_owned()),
            None => Input::Whole(input.to_owned()),
        };
        let output = Some(output.to_owned());
        Mapping { input, output }
    }

    fn keys_of(mappings: &[(&str, &str)], has_default: bool) -> Keys {
        let mappings: Vec<_> = mappings.iter().map(|(i, o)| mapping(i, o)).collect();
        let mut kinds = vec![LookupKind::Regex];
        kinds.extend(has_default.then_some(LookupKind::Default));
        keys(&mappings, LookupKinds::of(&kinds), has_default)
    }

    #[test]
    fn what_caddy_never_finds_is_left_out_and_expressions_keep_their_order() {
        let found = keys_of(
            &[
                ("a1", "w"),
                ("~^b", "x"),
                ("b1", "never"),
                ("~^a", "y"),
                ("c", "z"),
            ],
            true,
        );
        let keys: Vec<&str> = found.entries.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["a1", "c", "re:(?<n1>)^b", "re:(?<n2>)^a"]);
        assert_eq!(found.refused, []);
        let (place, why) = &found.notes[0];
        assert!(*place == 2 && why.contains("mappings[1] fits it"), "{why}");
    }

    #[test]
    fn an_empty_output_is_nothing_unless_something_else_would_be_found() {
        let blank = [("__placeholder__", ""), ("a", "x")];
        assert_eq!(keys_of(&blank, false).entries, [("a".into(), "x".into())]);
        assert_eq!(keys_of(&blank, false).refused, []);
        for (mappings, has_default, place) in [
            (&blank[..], true, 0),
            (&[("b", ""), ("~^b", "x")], false, 0),
            (&[("a", "x"), ("~^b", ""), ("~^a", "x")], false, 1),
            (&[("~^b", "")], true, 0),
        ] {
            let refused = keys_of(mappings, has_default).refused;
            assert!(
                refused.len() == 1 && refused[0].0 == place,
                "{mappings:?}: {refused:?}"
            );
        }
        for mappings in [&[("~^b", "x"), ("b", "")][..], &[("~^a", "x"), ("~^b", "")]] {
            assert_eq!(keys_of(mappings, false).refused, [], "{mappings:?}");
        }
    }

    #[test]
    fn what_a_bucket_cannot_hold_is_refused_by_its_place() {
        for (mappings, why) in [
            (&[("", "x")][..], "input is empty"),
            (&[("a", "x"), ("a", "y")], "is that of mappings[0] already"),
            (
                &[("~a", "x"), ("~a", "y")],
                "is that of mappings[0] already",
            ),
            (&[("~(", "x")], "unclosed group"),
            (&[("~^(.*)$", "$1:80")], "parts of what input_regexp fits"),
            (&[("*", "x")], "of kind default"),
            (&[("/a*", "x")], "of kind prefix"),
        ] {
            let refused = keys_of(mappings, true).refused;
            assert!(
                refused.len() == 1 && refused[0].1.contains(why),
                "{refused:?}"
            );
        }
        let exact = keys(&[mapping("~a", "x")], LookupKinds::default(), false);
        assert!(exact.refused[0].1.contains("without \"regex\""));
        let literal = keys(&[mapping("*", "x")], LookupKinds::default(), false);
        assert_eq!(literal.entries, [("*".to_owned(), "x".to_owned())]);
    }
}
