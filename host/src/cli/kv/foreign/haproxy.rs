//! HAProxy's map files: on each line a key, white space and a value; `#` begins a comment line.

use super::Found;
use std::collections::BTreeMap;

/// Reads a map file.
///
/// # Errors
/// Every line that has no value, with its number.
pub(in crate::cli::kv) fn parse(text: &str) -> Result<Found, Vec<String>> {
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
            .push((key.to_owned(), value.trim_start().to_owned()));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if !found.entries.is_empty() {
        found.notes.push(
            "keys are compared whole, as map_str does; those of map_beg, map_end, map_dom, map_reg or map_ip \
             need a router that does so"
                .to_owned(),
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_key_and_the_rest_its_value_and_the_first_of_two_counts() {
        let text = "# hosts\n\nid1   10.0.0.1\r\n  id2\tsome value \nid1 10.0.0.9\n";
        let found = parse(text).expect("a map");
        let entry = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            found.entries,
            [entry("id1", "10.0.0.1"), entry("id2", "some value")]
        );
        assert!(found.notes[0].starts_with("line 5: key \"id1\" is on line 3 already"));
    }

    #[test]
    fn a_line_without_a_value_is_told_with_its_number() {
        let problems = parse("a b\nlonely\n\nc d\nalone").expect_err("two bad lines");
        assert_eq!(problems.len(), 2);
        assert!(problems[1].starts_with("line 5: \"alone\""), "{problems:?}");
    }
}
