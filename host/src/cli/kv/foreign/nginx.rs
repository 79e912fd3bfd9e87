//! `map` blocks of an nginx config: `map $source $result { key value; … }`.

use super::Found;
use std::collections::BTreeMap;

/// A word or a mark of the config.
#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word {
        text: String,
        /// In quotes nothing is special but a leading `~`.
        quoted: bool,
    },
    Open,
    Close,
    End,
}

/// A `map` block.
struct Map {
    /// Such as `$upstream`.
    result: String,
    line: u32,
    /// The words of each entry, with its line.
    entries: Vec<(u32, Vec<Token>)>,
}

/// Reads the map that sets a variable, or the only one.
///
/// # Errors
/// What is wrong with the file, with its line; or that the map is not there.
pub(in crate::cli::kv) fn parse(
    text: &str,
    result: Option<&str>,
    kinds: &[String],
) -> Result<Found, Vec<String>> {
    let tokens = tokens(text).map_err(|problem| vec![problem])?;
    let maps = maps(&tokens).map_err(|problem| vec![problem])?;
    let names = || {
        let names: Vec<&str> = maps.iter().map(|map| map.result.as_str()).collect();
        names.join(", ")
    };
    let chosen = match (result, maps.as_slice()) {
        (_, []) => {
            return Err(vec![
                "has no map block, expected `map $source $result { … }`".to_owned(),
            ]);
        }
        (None, [only]) => only,
        (None, _) => {
            return Err(vec![format!(
                "has several maps, expected --map with one of {}",
                names()
            )]);
        }
        (Some(wanted), _) => {
            let wanted = wanted.trim_start_matches('$');
            let found = maps
                .iter()
                .find(|map| map.result.trim_start_matches('$') == wanted);
            found.ok_or_else(|| {
                vec![format!(
                    "has no map that sets ${wanted}, expected one of {}",
                    names()
                )]
            })?
        }
    };
    Ok(entries(chosen, kinds))
}

fn entries(map: &Map, kinds: &[String]) -> Found {
    let declared = |kind: &str| kinds.iter().any(|declared| declared == kind);
    let mut regexes = 0;
    let mut found = Found::default();
    let mut seen = BTreeMap::new();
    for (line, words) in &map.entries {
        let texts: Vec<&str> = words.iter().map(text_of).collect();
        let quoted = matches!(words.first(), Some(Token::Word { quoted: true, .. }));
        let mut refuse = |why: &str| {
            found
                .unsupported
                .push(format!("line {line}: {}: {why}", texts.join(" ")))
        };
        match texts.as_slice() {
            ["hostnames"] | ["volatile"] if !quoted => {}
            ["include", _] if !quoted => {
                refuse("include has no counterpart: import that file, too")
            }
            ["default", ""] if !quoted => {}
            [_, value] if value.contains('$') => {
                refuse("a value with variables has no counterpart")
            }
            ["default", value] if !quoted && declared("default") => {
                found.entries.push(("*".to_owned(), (*value).to_owned()));
            }
            ["default", _] if !quoted => {
                refuse("a default has no counterpart without \"default\" in `lookup` of the bucket")
            }
            [key, value] if key.starts_with('~') && declared("regex") => {
                let pattern = match key.strip_prefix("~*") {
                    Some(pattern) => format!("re:(?i){pattern}"),
                    None => format!("re:{}", &key[1..]),
                };
                regexes += 1;
                found.entries.push((pattern, (*value).to_owned()));
            }
            [key, _] if key.starts_with('~') => refuse(
                "a regular expression has no counterpart without \"regex\" in `lookup` of the bucket",
            ),
            [key, value]
                if !quoted
                    && (key.starts_with("*.") || key.starts_with('.'))
                    && declared("suffix") =>
            {
                let key = key.to_ascii_lowercase();
                found.entries.push((key, (*value).to_owned()));
            }
            [key, _]
                if !quoted
                    && (key.starts_with("*.") || key.starts_with('.') || key.ends_with(".*")) =>
            {
                refuse(
                    "a mask of hosts has no counterpart but \"suffix\" in `lookup` of the bucket, for masks at the beginning",
                );
            }
            [key, value] => {
                // `\` makes a key of a word that is special.
                let key = key.strip_prefix('\\').unwrap_or(key);
                match seen.insert(key, *line) {
                    None => found.entries.push((key.to_owned(), (*value).to_owned())),
                    Some(first) => refuse(&format!(
                        "the key is on line {first} already, which nginx refuses"
                    )),
                }
            }
            _ => refuse("expected a key and a value"),
        }
    }
    if regexes > 1 {
        found.notes.push(
            "the first expression that fits by the bytes of the keys counts, where nginx takes the first of the map"
                .to_owned(),
        );
    }
    if found
        .entries
        .iter()
        .any(|(key, _)| key.contains(|c: char| c.is_ascii_alphabetic()))
    {
        let place = format!("the map on line {}", map.line);
        found.notes.push(format!(
            "{place}: nginx compares keys without regard to case, a bucket with regard to it"
        ));
    }
    found
}

fn text_of(token: &Token) -> &str {
    match token {
        Token::Word { text, .. } => text,
        Token::Open | Token::Close | Token::End => "",
    }
}

/// Every `map` block, wherever it stands.
fn maps(tokens: &[(u32, Token)]) -> Result<Vec<Map>, String> {
    let mut maps = Vec::new();
    let mut at = 0;
    let mut begins = true;
    while let Some((line, token)) = tokens.get(at) {
        let is_map = begins && *token == word("map");
        begins = !matches!(token, Token::Word { .. });
        at += 1;
        if !is_map {
            continue;
        }
        let [
            (_, Token::Word { .. }),
            (_, Token::Word { text: result, .. }),
            (_, Token::Open),
        ] = &tokens[at..tokens.len().min(at + 3)]
        else {
            return Err(format!("line {line}: expected `map $source $result {{`"));
        };
        at += 3;
        let mut map = Map {
            result: result.clone(),
            line: *line,
            entries: Vec::new(),
        };
        let mut words: Vec<Token> = Vec::new();
        loop {
            match tokens.get(at) {
                Some((line, Token::End)) => map.entries.push((*line, std::mem::take(&mut words))),
                Some((_, token @ Token::Word { .. })) => words.push(token.clone()),
                Some((_, Token::Close)) if words.is_empty() => break,
                Some((line, Token::Close)) => {
                    return Err(format!("line {line}: expected `;` before `}}`"));
                }
                Some((line, Token::Open)) => {
                    return Err(format!("line {line}: unexpected `{{` in a map"));
                }
                None => return Err(format!("line {}: the map has no closing `}}`", map.line)),
            }
            at += 1;
        }
        maps.push(map);
    }
    Ok(maps)
}

fn word(text: &str) -> Token {
    Token::Word {
        text: text.to_owned(),
        quoted: false,
    }
}

/// Words, quoted or not, and marks, each with its line; comments are left out.
fn tokens(text: &str) -> Result<Vec<(u32, Token)>, String> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut chars = text.chars().peekable();
    while let Some(&next) = chars.peek() {
        match next {
            '\n' => {
                line += 1;
                chars.next();
            }
            c if c.is_ascii_whitespace() => drop(chars.next()),
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            '{' | '}' | ';' => {
                chars.next();
                let mark = match next {
                    '{' => Token::Open,
                    '}' => Token::Close,
                    _ => Token::End,
                };
                tokens.push((line, mark));
            }
            quote @ ('"' | '\'') => {
                chars.next();
                let begin = line;
                let mut text = String::new();
                loop {
                    match chars.next() {
                        None => return Err(format!("line {begin}: a quote is never closed")),
                        Some(c) if c == quote => break,
                        Some('\\') => text.extend(escaped(&mut chars, quote)),
                        Some(c) => {
                            line += u32::from(c == '\n');
                            text.push(c);
                        }
                    }
                }
                tokens.push((begin, Token::Word { text, quoted: true }));
            }
            _ => {
                let mut text = String::new();
                // `${name}` is part of a word.
                while let Some(c) = chars.next_if(|c| {
                    !c.is_ascii_whitespace()
                        && (!matches!(c, ';' | '{' | '}') || in_variable(&text, *c))
                }) {
                    text.push(c);
                }
                if text.is_empty() {
                    return Err(format!("line {line}: unexpected {next:?}"));
                }
                tokens.push((
                    line,
                    Token::Word {
                        text,
                        quoted: false,
                    },
                ));
            }
        }
    }
    Ok(tokens)
}

fn in_variable(text: &str, c: char) -> bool {
    match c {
        '{' => text.ends_with('$'),
        '}' => text.rfind("${").is_some_and(|at| !text[at..].contains('}')),
        _ => false,
    }
}

/// What `\` and the next character stand for in quotes: nginx keeps the `\` before all others.
fn escaped(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, quote: char) -> Vec<char> {
    match chars.peek() {
        Some(&c) if c == quote || c == '\\' => {
            chars.next();
            vec![c]
        }
        _ => vec!['\\'],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
http {
    # map $commented $out { a b; }
    map $http_x_id $upstream {
        hostnames;
        default "";
        id1 10.0.0.1;
        "id 2" 10.0.0.2:81;   # two words
        \default 10.0.0.3;
    }
    server { listen 80; location / { proxy_pass http://$upstream; } }
    map $host $name {
        a.example.com 10.0.0.9;
        *.example.com 10.0.0.1;
        ~^re 10.0.0.1;
        default 10.0.0.1;
        b ${other}x;
        include more.conf;
        a.example.com 10.0.0.2;
    }
}
"#;

    fn entry(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn a_block_becomes_entries() {
        let found = parse(CONFIG, Some("$upstream"), &[]).expect("a map");
        assert_eq!(
            found.entries,
            [
                entry("id1", "10.0.0.1"),
                entry("id 2", "10.0.0.2:81"),
                entry("default", "10.0.0.3")
            ]
        );
        assert!(found.unsupported.is_empty());
        assert!(
            found.notes[0].contains("without regard to case"),
            "{:?}",
            found.notes
        );
    }

    #[test]
    fn what_a_bucket_cannot_do_is_told_with_its_line() {
        let found = parse(CONFIG, Some("name"), &[]).expect("a map");
        assert_eq!(found.entries, [entry("a.example.com", "10.0.0.9")]);
        let lines: Vec<&str> = found.unsupported.iter().map(|text| &text[..8]).collect();
        assert_eq!(
            lines,
            [
                "line 14:", "line 15:", "line 16:", "line 17:", "line 18:", "line 19:"
            ]
        );
    }

    #[test]
    fn what_the_bucket_declares_is_carried_over() {
        let kinds = ["exact", "suffix", "regex", "default"].map(str::to_owned);
        let found = parse(CONFIG, Some("name"), &kinds).expect("a map");
        assert_eq!(
            found.entries,
            [
                entry("a.example.com", "10.0.0.9"),
                entry("*.example.com", "10.0.0.1"),
                entry("re:^re", "10.0.0.1"),
                entry("*", "10.0.0.1"),
            ]
        );
        let lines: Vec<&str> = found.unsupported.iter().map(|text| &text[..8]).collect();
        assert_eq!(lines, ["line 17:", "line 18:", "line 19:"]);
        let caseless = parse("map $a $b { ~*X 10.0.0.1; }", None, &kinds).expect("a map");
        assert_eq!(caseless.entries, [entry("re:(?i)X", "10.0.0.1")]);
    }

    #[test]
    fn one_of_several_maps_has_to_be_named() {
        let problem = |text: &str, name| parse(text, name, &[]).expect_err("refused").join("\n");
        assert!(problem(CONFIG, None).contains("$upstream, $name"));
        assert!(problem(CONFIG, Some("x")).contains("no map that sets $x"));
        assert!(problem("server { }", None).contains("no map block"));
        assert!(parse("map $a $b { c d; }", None, &[]).is_ok());
    }

    #[test]
    fn a_file_that_breaks_off_is_told_with_its_line() {
        for (text, expected) in [
            ("map $a $b {\n c d;\n", "line 1: the map has no closing"),
            ("map $a $b {\n c d\n}", "line 3: expected `;`"),
            ("map $a {\n}", "line 1: expected `map"),
            ("\nmap $a $b { \"c d; }", "line 2: a quote"),
            ("map $a $b { c { } }", "line 1: unexpected `{`"),
        ] {
            let problem = parse(text, None, &[]).expect_err(text).join("\n");
            assert!(problem.starts_with(expected), "{text:?}: {problem}");
        }
    }
}
