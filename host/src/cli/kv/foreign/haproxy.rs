//! HAProxy's map files: on each line a key, white space and a value; `#` begins a comment line.

use super::{Found, Match};
use std::collections::BTreeMap;

/// Reads a map file.
///
/// # Errors
/// Every line that has no value, with its number.
pub(in crate::cli::kv) fn parse(
    text: &str,
    compared: Match,
    kinds: &[String],
) -> Result<Found, Vec<String>> {
    let (kind, sign): (_, fn(&str) -> String) = match compared {
        Match::Str => ("exact", str::to_owned),
        Match::Beg => ("prefix", |key| format!("{key}*")),
        Match::Dom => ("suffix", |key| {
            format!(".{}", key.trim_start_matches('.').to_ascii_lowercase())
        }),
        Match::Reg => ("regex", |key| format!("re:{key}")),
    };
    if compared != Match::Str && !kinds.iter().any(|declared| declared == kind) {
        return Err(vec![format!(
            "expected {kind:?} in `lookup` of the bucket, which has {}",
            kinds.join(", ")
        )]);
    }
    let mut found = Found::default();
    let mut problems = Vec::new();
    let mut seen = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once(|c: char| c.is_ascii_whitespace()) else {
            problems.push(format!(
                "line {number}: {line:?}: expected a key, white space and a value"
            ));
            continue;
        };
        // The first one is what HAProxy finds.
        if let Some(first) = seen.insert(key, number) {
            found.notes.push(format!(
                "line {number}: key {key:?} is on line {first} already, which counts"
            ));
            seen.insert(key, first);
            continue;
        }
        found
            .entries
            .push((sign(key), value.trim_start().to_owned()));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if !found.entries.is_empty() {
        let note = match compared {
            Match::Str => {
                "keys are compared whole, as map_str does; --match carries those of map_beg, map_dom and map_reg; \
                 map_end and map_ip need a router that does so"
            }
            Match::Beg => "the longest that fits counts, as with map_beg",
            Match::Dom => {
                "a name is found by its end alone, where map_dom finds a domain anywhere in it"
            }
            Match::Reg => {
                "the first that fits by the bytes of the keys counts, where map_reg takes the first of the file"
            }
        };
        found.notes.push(note.to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_key_and_the_rest_its_value_and_the_first_of_two_counts() {
        let text = "# hosts\n\nid1   10.0.0.1\r\n  id2\tsome value \nid1 10.0.0.9\n";
        let found = parse(text, Match::Str, &[]).expect("a map");
        let entry = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            found.entries,
            [entry("id1", "10.0.0.1"), entry("id2", "some value")]
        );
        assert!(found.notes[0].starts_with("line 5: key \"id1\" is on line 3 already"));
    }

    #[test]
    fn keys_become_what_stands_for_others_where_the_bucket_declares_it() {
        let kinds = ["exact", "prefix", "suffix", "regex"].map(str::to_owned);
        for (compared, key) in [
            (Match::Beg, "A.b*"),
            (Match::Dom, ".a.b"),
            (Match::Reg, "re:A.b"),
        ] {
            let found = parse("A.b 10.0.0.1\n", compared, &kinds).expect("a map");
            assert_eq!(found.entries, [(key.to_owned(), "10.0.0.1".to_owned())]);
            let refused = parse("A.b 10.0.0.1\n", compared, &kinds[..1]).expect_err("not declared");
            assert!(refused[0].contains("which has exact"), "{refused:?}");
        }
    }

    #[test]
    fn a_line_without_a_value_is_told_with_its_number() {
        let text = "a b\nlonely\n\nc d\nalone";
        let problems = parse(text, Match::Str, &[]).expect_err("two bad lines");
        assert_eq!(problems.len(), 2);
        assert!(problems[1].starts_with("line 5: \"alone\""), "{problems:?}");
    }
}
