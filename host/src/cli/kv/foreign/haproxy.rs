//! HAProxy's map files: on each line a key, white space and a value; `#` begins a comment line.

use super::{Bucket, Found, Match};
use crate::store::LookupKind;
use crate::store::ordered::compile;
use std::collections::BTreeMap;

/// Reads a map file.
///
/// # Errors
/// Every line that has no value, with its number.
pub(in crate::cli::kv) fn parse(
    text: &str,
    compared: Match,
    bucket: Bucket,
) -> Result<Found, Vec<String>> {
    let kind = match compared {
        Match::Str => LookupKind::Exact,
        Match::Beg => LookupKind::Prefix,
        Match::Dom => LookupKind::Suffix,
        Match::End | Match::Sub | Match::Dir | Match::Reg => LookupKind::Regex,
    };
    if !bucket.kinds.has(kind) {
        let declared: Vec<&str> = bucket.kinds.iter().map(LookupKind::word).collect();
        return Err(vec![format!(
            "expected {:?} in `lookup` of the bucket, which has {}",
            kind.word(),
            declared.join(", ")
        )]);
    }
    let mut found = Found::default();
    let mut problems = Vec::new();
    let mut seen = BTreeMap::new();
    let mut expressions = Vec::new();
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
        let value = value.trim_start().to_owned();
        let sought = match compared {
            Match::Dom => key.trim_matches(DOMAIN_ENDS).to_ascii_lowercase(),
            _ => key.to_owned(),
        };
        // The first one is what HAProxy finds.
        if let Some((over, first)) = earlier(&seen, &sought, compared) {
            found.notes.push(match over == sought {
                true => format!(
                    "line {number}: key {key:?} is on line {first} already, which counts"
                ),
                false => format!(
                    "line {number}: key {key:?} is never found: {over:?} on line {first} comes first"
                ),
            });
            continue;
        }
        seen.insert(sought.clone(), number);
        let carried = match kind {
            LookupKind::Regex => {
                let pattern = pattern(compared, key);
                compile(&pattern).map(|_| expressions.push((pattern, value)))
            }
            _ => {
                let key = match compared {
                    Match::Beg => format!("{sought}*"),
                    Match::Dom => format!(".{sought}"),
                    _ => sought,
                };
                let checked = bucket.kinds.check_as(&key, kind);
                checked.map(|()| found.entries.push((key, value)))
            }
        };
        if let Err(why) = carried {
            found
                .unsupported
                .push(format!("line {number}: {key}: {why}"));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    found.add_expressions(expressions);
    if !found.entries.is_empty() {
        found.notes.extend(note(compared).map(str::to_owned));
    }
    Ok(found)
}

/// What `map_dom` passes over at both ends of a key.
const DOMAIN_ENDS: [char; 4] = ['.', '/', '?', ':'];

/// The key on an earlier line that is found instead.
fn earlier<'s>(
    seen: &'s BTreeMap<String, u32>,
    sought: &'s str,
    compared: Match,
) -> Option<(&'s str, u32)> {
    let mut name = sought;
    loop {
        if let Some((key, line)) = seen.get_key_value(name) {
            return Some((key, *line));
        }
        if compared != Match::Dom {
            return None;
        }
        // Every name in a domain is in those above it.
        name = name.split_once('.')?.1;
    }
}

/// What fits what HAProxy finds by a key.
fn pattern(compared: Match, key: &str) -> String {
    match compared {
        Match::End => format!("{}$", regex::escape(key)),
        Match::Sub => regex::escape(key),
        Match::Dir => {
            let segments = regex::escape(key.trim_matches(['/', '?']));
            format!("(?:^|[/?]){segments}(?:$|[/?])")
        }
        Match::Str | Match::Beg | Match::Dom | Match::Reg => key.to_owned(),
    }
}

/// What is to be known of all entries.
fn note(compared: Match) -> Option<&'static str> {
    match compared {
        Match::Str => Some(
            "keys are compared whole, as map_str does; --match carries those of the other maps but map_ip, map_int and \
             map_len, which need a router that does so",
        ),
        Match::Dom => Some(
            "a name is found by its end alone and without regard to case, where map_dom finds a domain anywhere in it",
        ),
        Match::Beg | Match::End | Match::Sub | Match::Dir | Match::Reg => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::bucket_of;
    use super::*;

    fn read(text: &str, compared: Match) -> Found {
        parse(text, compared, bucket_of(&LookupKind::ALL)).expect("a map")
    }

    fn entry(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn a_line_is_a_key_and_the_rest_its_value_and_the_first_of_two_counts() {
        let text = "# hosts\n\nid1   10.0.0.1\r\n  id2\tsome value \nid1 10.0.0.9\n";
        let found = read(text, Match::Str);
        assert_eq!(
            found.entries,
            [entry("id1", "10.0.0.1"), entry("id2", "some value")]
        );
        assert!(found.notes[0].starts_with("line 5: key \"id1\" is on line 3 already"));
    }

    #[test]
    fn keys_become_what_stands_for_others_where_the_bucket_declares_it() {
        for (compared, key) in [
            (Match::Beg, "A.b*"),
            (Match::End, "re:A\\.b$"),
            (Match::Sub, "re:A\\.b"),
            (Match::Dir, "re:(?:^|[/?])A\\.b(?:$|[/?])"),
            (Match::Dom, ".a.b"),
            (Match::Reg, "re:A.b"),
        ] {
            assert_eq!(read("A.b x\n", compared).entries, [entry(key, "x")]);
            let exact = bucket_of(&[LookupKind::Exact]);
            let refused = parse("A.b x\n", compared, exact).expect_err("not declared");
            assert!(refused[0].contains("which has exact"), "{refused:?}");
        }
    }

    #[test]
    fn the_first_of_the_file_is_found_as_haproxy_finds_it() {
        let keys = |text: &str, compared| {
            let found = read(text, compared);
            let keys: Vec<String> = found.entries.into_iter().map(|(key, _)| key).collect();
            (keys, found.notes.join("\n"))
        };
        let (numbered, notes) = keys("^b 1\n^a 2\n", Match::Reg);
        assert_eq!(numbered, ["re:(?<n1>)^b", "re:(?<n2>)^a"]);
        assert!(notes.contains("numbered"), "{notes}");
        let text = "b.example.com 1\n.example.com. 2\na.example.com 3\norg 4\n";
        let (domains, notes) = keys(text, Match::Dom);
        assert_eq!(domains, [".b.example.com", ".example.com", ".org"]);
        let never = "line 3: key \"a.example.com\" is never found: \"example.com\" on line 2";
        assert!(notes.contains(never), "{notes}");
    }

    #[test]
    fn keys_that_would_be_of_another_kind_are_refused_with_their_line() {
        for (text, compared) in [
            ("* 1\n", Match::Str),
            ("/a* 1\n", Match::Str),
            ("a*b 1\n", Match::Beg),
            ("re:a 1\n", Match::Beg),
            ("a_b/c 1\n", Match::Dom),
            ("a(?=b) 1\n", Match::Reg),
        ] {
            let found = read(text, compared);
            assert_eq!(found.entries, [], "{text}");
            assert!(found.unsupported[0].starts_with("line 1: "), "{text}");
        }
        let literal = parse("/a* 1\n", Match::Str, Bucket::default()).expect("exact keys");
        assert_eq!(literal.entries, [entry("/a*", "1")]);
    }

    #[test]
    fn a_line_without_a_value_is_told_with_its_number() {
        let text = "a b\nlonely\n\nc d\nalone";
        let problems = parse(text, Match::Str, Bucket::default()).expect_err("two bad lines");
        assert_eq!(problems.len(), 2);
        assert!(problems[1].starts_with("line 5: \"alone\""), "{problems:?}");
    }
}
