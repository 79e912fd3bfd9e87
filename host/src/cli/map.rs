//! The map as `serve` is given it: `ID=HOST` arguments and files with a line `ID HOST` for each entry.

use crate::store::Target;
use ahash::AHashMap;

/// Reads an argument `ID=HOST`.
///
/// # Errors
/// What was expected.
pub(super) fn parse_entry(text: &str) -> Result<(String, String), String> {
    let (id, host) = text
        .split_once('=')
        .ok_or("expected ID=HOST such as id1=127.0.0.2")?;
    check_entry(id, host)?;
    Ok((id.to_owned(), host.to_owned()))
}

/// Checks an entry of the map as the store will.
fn check_entry(id: &str, host: &str) -> Result<(), String> {
    if id.is_empty() {
        return Err("the ID is empty".to_owned());
    }
    host.parse::<Target>()
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// Reads lines `ID HOST`.
///
/// # Errors
/// Every bad line, with its number and what was expected.
pub(super) fn parse_file(text: &str, name: &str) -> Result<Vec<(String, String)>, Vec<String>> {
    let mut entries = Vec::new();
    let mut problems = Vec::new();
    let mut seen = AHashMap::new();
    // A mark of the byte order is no part of the first ID.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, line) in text
        .lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim()))
    {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        let checked = match (words.next(), words.next(), words.next()) {
            (Some(id), Some(host), None) => {
                check_entry(id, host).and_then(|()| match seen.insert(id, number) {
                    Some(first) => Err(format!("ID {id:?} is on line {first} already")),
                    None => Ok((id.to_owned(), host.to_owned())),
                })
            }
            _ => Err(format!("{line:?}: expected `ID HOST`, two words")),
        };
        match checked {
            Ok(entry) => entries.push(entry),
            Err(problem) => problems.push(format!("{name}:{number}: {problem}")),
        }
    }
    if problems.is_empty() {
        Ok(entries)
    } else {
        Err(problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_entry_is_an_id_and_a_host() {
        assert_eq!(
            parse_entry("id1=127.0.0.2"),
            Ok(("id1".into(), "127.0.0.2".into()))
        );
        assert!(parse_entry("id1").is_err_and(|e| e.contains("ID=HOST")));
        assert!(parse_entry("=127.0.0.2").is_err());
        assert!(parse_entry("id1=not a host").is_err());
    }

    #[test]
    fn a_map_file_gives_its_entries_without_comments_and_empty_lines() {
        let text = "\u{feff}# the map\nid1 127.0.0.2\n\n  id2\t127.0.0.3:81  \r\n";
        assert_eq!(
            parse_file(text, "map.txt"),
            Ok(vec![
                ("id1".into(), "127.0.0.2".into()),
                ("id2".into(), "127.0.0.3:81".into()),
            ])
        );
    }

    #[test]
    fn every_bad_line_of_a_map_file_is_named_with_its_place() {
        let text = "id1 127.0.0.2\nid2\nid3 a b\nid1 127.0.0.9\nid4 bad host!\n";
        let problems = parse_file(text, "map.txt").expect_err("four bad lines");
        let places: Vec<&str> = problems.iter().map(|p| &p[..9]).collect();
        assert_eq!(places, ["map.txt:2", "map.txt:3", "map.txt:4", "map.txt:5"]);
        assert!(problems[0].contains("expected `ID HOST`"), "{problems:?}");
        assert!(problems[2].contains("line 1"), "{problems:?}");
    }
}
