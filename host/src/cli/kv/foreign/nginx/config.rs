//! The text of an nginx config: words and marks, and the `map` blocks in it.

use super::super::include::Includes;
use std::fmt;
use std::rc::Rc;

/// Included files may include others, so deep.
const DEPTH_MAX: usize = 10;

/// Where something stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    /// None for the file itself.
    file: Option<Rc<str>>,
    line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        write!(f, "line {}", self.line)
    }
}

/// A word or a mark.
#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// Without its quotes: what is in quotes is as special as what is not.
    Word(String),
    Open,
    Close,
    End,
}

/// A `map` block.
pub(super) struct Map {
    /// Such as `$upstream`.
    pub(super) result: String,
    pub(super) place: Place,
    pub(super) entries: Vec<Entry>,
}

/// The words up to a `;`.
pub(super) struct Entry {
    pub(super) place: Place,
    pub(super) words: Vec<String>,
}

impl Map {
    /// Puts what included files have in the place of each `include`.
    ///
    /// # Errors
    /// What is wrong with a file, with its place; or that it cannot be read.
    pub(super) fn expand(&mut self, includes: &mut Includes) -> Result<(), String> {
        let entries = std::mem::take(&mut self.entries);
        self.entries = expanded(entries, includes, 0)?;
        Ok(())
    }
}

fn expanded(
    entries: Vec<Entry>,
    includes: &mut Includes,
    depth: usize,
) -> Result<Vec<Entry>, String> {
    let mut all = Vec::with_capacity(entries.len());
    for entry in entries {
        let [include, named] = entry.words.as_slice() else {
            all.push(entry);
            continue;
        };
        if include != "include" {
            all.push(entry);
            continue;
        }
        let told = |problem: String| format!("{}: include {named}: {problem}", entry.place);
        if depth == DEPTH_MAX {
            return Err(told(format!("is more than {DEPTH_MAX} files deep")));
        }
        for (name, text) in includes.read(named).map_err(told)? {
            let tokens = tokens(&text, Some(name.into()))?;
            let mut rest = tokens.iter();
            let inner = statements(&mut rest)?;
            if let Some((place, _)) = rest.next() {
                return Err(format!("{place}: unexpected `}}`"));
            }
            all.extend(expanded(inner, includes, depth + 1)?);
        }
    }
    Ok(all)
}

/// Every `map` block, wherever it stands.
///
/// # Errors
/// What is wrong with the file, with its line.
pub(super) fn maps(text: &str) -> Result<Vec<Map>, String> {
    let tokens = tokens(text, None)?;
    let mut maps = Vec::new();
    let mut rest = tokens.iter();
    let mut begins = true;
    while let Some((place, token)) = rest.next() {
        let is_map = begins && *token == Token::Word("map".to_owned());
        begins = !matches!(token, Token::Word(_));
        if !is_map {
            continue;
        }
        let [
            (_, Token::Word(_)),
            (_, Token::Word(result)),
            (_, Token::Open),
            ..,
        ] = rest.as_slice()
        else {
            return Err(format!("{place}: expected `map $source $result {{`"));
        };
        rest.nth(2);
        let entries = statements(&mut rest)?;
        if rest.next().is_none() {
            return Err(format!("{place}: the map has no closing `}}`"));
        }
        begins = true;
        maps.push(Map {
            result: result.clone(),
            place: place.clone(),
            entries,
        });
    }
    Ok(maps)
}

/// What there is up to a `}` or the end.
fn statements(tokens: &mut std::slice::Iter<'_, (Place, Token)>) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    let mut words: Vec<String> = Vec::new();
    loop {
        let next = tokens.as_slice().first();
        match next {
            None | Some((_, Token::Close)) if words.is_empty() => return Ok(entries),
            None => return Err("the file ends without a `;` after its last word".to_owned()),
            Some((place, Token::Close)) => {
                return Err(format!("{place}: expected `;` before `}}`"));
            }
            Some((place, Token::Open)) => {
                return Err(format!("{place}: unexpected `{{` in a map"));
            }
            Some((place, Token::End)) => entries.push(Entry {
                place: place.clone(),
                words: std::mem::take(&mut words),
            }),
            Some((_, Token::Word(text))) => words.push(text.clone()),
        }
        tokens.next();
    }
}

/// Words and marks, each with its place; comments are left out.
fn tokens(text: &str, file: Option<Rc<str>>) -> Result<Vec<(Place, Token)>, String> {
    let mut tokens = Vec::new();
    let mut place = Place { file, line: 1 };
    let mut chars = text.chars().peekable();
    while let Some(&next) = chars.peek() {
        let begin = place.clone();
        match next {
            '\n' => {
                place.line += 1;
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
                tokens.push((begin, mark));
            }
            quote @ ('"' | '\'') => {
                chars.next();
                let mut word = String::new();
                loop {
                    match chars.next() {
                        None => return Err(format!("{begin}: a quote is never closed")),
                        Some(c) if c == quote => break,
                        Some(c) => {
                            place.line += u32::from(c == '\n');
                            word.push(c);
                            if c == '\\' {
                                word.extend(chars.next());
                            }
                        }
                    }
                }
                tokens.push((begin, Token::Word(unescaped(&word))));
            }
            _ => {
                let mut word = String::new();
                // `\` takes what follows into the word, and `${name}` is part of one.
                while let Some(c) = chars.next_if(|c| {
                    !c.is_ascii_whitespace() && *c != ';' && (*c != '{' || word.ends_with('$'))
                }) {
                    word.push(c);
                    if c == '\\' {
                        word.extend(chars.next());
                    }
                }
                tokens.push((begin, Token::Word(unescaped(&word))));
            }
        }
    }
    Ok(tokens)
}

/// What `\` stands for before some characters; before all others it is itself.
fn unescaped(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut chars = word.chars().peekable();
    while let Some(c) = chars.next() {
        let stands_for = match (c, chars.peek()) {
            ('\\', Some(&c @ ('"' | '\'' | '\\'))) => Some(c),
            ('\\', Some('t')) => Some('\t'),
            ('\\', Some('r')) => Some('\r'),
            ('\\', Some('n')) => Some('\n'),
            _ => None,
        };
        if stands_for.is_some() {
            chars.next();
        }
        out.push(stands_for.unwrap_or(c));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_breaks_off_is_told_with_its_line() {
        for (text, expected) in [
            ("map $a $b {\n c d;\n", "line 1: the map has no closing"),
            ("map $a $b {\n c d\n}", "line 3: expected `;`"),
            ("map $a {\n}", "line 1: expected `map"),
            ("\nmap $a $b { \"c d; }", "line 2: a quote"),
            ("map $a $b { c { } }", "line 1: unexpected `{`"),
            ("map $a $b { c d", "the file ends without a `;`"),
        ] {
            let problem = maps(text).err().expect(text);
            assert!(problem.starts_with(expected), "{text:?}: {problem}");
        }
    }

    #[test]
    fn words_end_and_are_escaped_as_nginx_has_it() {
        let text = r#"map $a $b { "x\"y\d" '\\z' ~a\;b c}; ${v}w\ x "q;{}"; }"#;
        let maps = maps(text).expect("a map");
        let words: Vec<&[String]> = maps[0].entries.iter().map(|it| &*it.words).collect();
        assert_eq!(
            words,
            [
                ["x\"y\\d", "\\z", "~a\\;b", "c}"]
                    .map(str::to_owned)
                    .to_vec(),
                ["${v}w\\ x", "q;{}"].map(str::to_owned).to_vec()
            ]
        );
    }
}
