//! Problems with their place in the file, shown the way rustc does.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use std::ops::Range;

/// One problem of a config.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Where it is, such as `listener[0].listen`.
    pub path: String,
    /// What is wrong: the value and what was expected.
    pub message: String,
    /// A short text put under the place.
    pub label: String,
    /// "did you mean" and the like.
    pub help: Option<String>,
    /// Byte range in the text.
    pub span: Range<usize>,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

/// What is wrong with a config, before its place in a text is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it is, such as `listener[0].listen`.
    pub path: String,
    /// The other place that takes part, if there is one.
    pub other: Option<String>,
    /// What is wrong: the value and what was expected.
    pub message: String,
    /// A short text put under the place.
    pub label: String,
    /// "did you mean" and the like.
    pub help: Option<String>,
}

impl Finding {
    /// A finding at a path.
    pub fn new(
        path: impl Into<String>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        Self {
            path: path.into(),
            other: None,
            message: message.into(),
            label: label.into(),
            help: None,
        }
    }

    /// The same with help, if there is some.
    #[must_use]
    pub fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// The same with the other place that takes part.
    #[must_use]
    pub fn other(mut self, path: impl Into<String>) -> Self {
        self.other = Some(path.into());
        self
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl Problem {
    /// Puts a finding at its place in the text.
    pub fn at(text: &str, span: Range<usize>, finding: Finding) -> Self {
        let start = floor(text, span.start);
        let end = floor(text, span.end.max(start));
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            path: finding.path,
            message: finding.message,
            label: finding.label,
            help: finding.help,
            span: start..end,
            line: memchr::memchr_iter(b'\n', before.as_bytes()).count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// The largest character boundary of the text that is not beyond `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Shows problems with their lines of the text, each ended by an empty line, and their number at the end.
pub fn render(problems: &[Problem], text: &str, file_name: &str, color: bool) -> String {
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut out = String::new();
    for problem in problems {
        let (lines, span) = lines_around(text, &problem.span);
        let mut snippet = Snippet::source(lines)
            .line_start(problem.line)
            .path(file_name);
        // An empty span at an empty text has no place to point at.
        if !lines.is_empty() {
            snippet = snippet.annotation(
                AnnotationKind::Primary
                    .span(span)
                    .label(problem.label.as_str()),
            );
        }
        let mut group = Level::ERROR
            .primary_title(problem.message.as_str())
            .id("config")
            .element(snippet);
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        out.push_str(&renderer.render(&[group]));
        out.push_str("\n\n");
    }
    let count = problems.len();
    let plural = if count == 1 { "" } else { "s" };
    out.push_str(&format!("{count} problem{plural} in {file_name}\n"));
    out
}

/// The whole lines that a span lies on, and the span within them. A long text is cut so, for each problem is drawn
/// from its own lines only.
fn lines_around<'t>(text: &'t str, span: &Range<usize>) -> (&'t str, Range<usize>) {
    let start = floor(text, span.start);
    let end = floor(text, span.end.max(start));
    let first = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let last = text[end..]
        .find('\n')
        .map_or(text.len(), |newline| end + newline);
    (&text[first..last], start - first..end - first)
}

/// A path with one more key: `a.b`, quoted if the key is not a bare one.
pub fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let key = if bare {
        key.to_owned()
    } else {
        format!("{:?}", shorten(key))
    };
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

/// At most 80 characters of a text that goes into a message.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// Longest name that is compared with others: the comparison is quadratic.
const COMPARED_BYTES_MAX: usize = 64;
/// Most names that one is compared with.
const COMPARED_NAMES_MAX: usize = 200;

/// "did you mean `x`?", if one of the names is near.
pub fn did_you_mean<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<String> {
    if name.len() > COMPARED_BYTES_MAX {
        return None;
    }
    let lower = name.to_lowercase();
    known
        .into_iter()
        .take(COMPARED_NAMES_MAX)
        .filter(|known| known.len() <= COMPARED_BYTES_MAX)
        .map(|known| {
            let distance = strsim::damerau_levenshtein(&lower, &known.to_lowercase());
            (distance, known)
        })
        .filter(|(distance, known)| *distance <= (known.len().max(name.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| format!("did you mean `{known}`?"))
}

/// `a`, `b` or `c`.
pub fn one_of<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let mut names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.pop() {
        None => "nothing".to_owned(),
        Some(last) if names.is_empty() => last,
        Some(last) => format!("{} or {last}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str, span: Range<usize>) -> Problem {
        let finding = Finding::new("listener[0].lisen", "unknown key `lisen`", "unknown key")
            .help("did you mean `listen`?".to_owned());
        Problem::at(text, span, finding)
    }

    #[test]
    fn render_looks_like_rustc() {
        let text = "# top\n[[listener]]\nlisen = \":1\"\n";
        let shown = render(&[problem(text, 19..24)], text, "throwbar.toml", false);
        assert_eq!(
            shown,
            "error[config]: unknown key `lisen`\n \
             --> throwbar.toml:3:1\n  \
             |\n\
             3 | lisen = \":1\"\n  \
             | ^^^^^ unknown key\n  \
             |\n  \
             = help: did you mean `listen`?\n\
             \n1 problem in throwbar.toml\n"
        );
    }

    #[test]
    fn column_counts_characters_and_agrees_with_what_is_shown() {
        let text = "a = \"é\"\nb = { c = \"éé\", d = 1 }\n";
        let at = text.find("d =").expect("there");
        let problem = problem(text, at..at + 1);
        assert_eq!((problem.line, problem.column), (2, 17));
        let shown = render(&[problem], text, "f", false);
        assert!(shown.contains("f:2:17"), "{shown}");
    }

    #[test]
    fn render_survives_any_span() {
        for text in ["", "é", "a\n", "a\r\nb"] {
            for start in 0..6 {
                for end in 0..6 {
                    let shown = render(&[problem(text, start..end)], text, "f", true);
                    assert!(shown.contains("unknown key"));
                }
            }
        }
    }

    #[test]
    fn escapes_of_a_hostile_file_do_not_reach_the_terminal() {
        let text = "\u{1b}]0;owned\u{7} = 1";
        let shown = render(&[problem(text, 0..1)], text, "f", false);
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        let known = ["listen", "name", "protocols"];
        assert_eq!(
            did_you_mean("lisen", known).as_deref(),
            Some("did you mean `listen`?")
        );
        assert_eq!(
            did_you_mean("Name", known).as_deref(),
            Some("did you mean `name`?")
        );
        assert_eq!(did_you_mean("port", known), None);
        assert_eq!(did_you_mean(&"x".repeat(1 << 20), known), None);
    }
}
