//! Placeholders in texts: `{http.request.header.X-ID}` and those that maps fill.

/// The prefixes of placeholders that Caddy fills.
const PREFIXES: [&str; 6] = ["http.", "env.", "system.", "time.", "file.", "vars."];
const HEADER: &str = "http.request.header.";

/// The name of the header field that a whole text stands for, in lower case.
pub(super) fn header(text: &str) -> Option<String> {
    let name = text
        .strip_prefix('{')?
        .strip_suffix('}')?
        .strip_prefix(HEADER)?;
    let ends = |c| matches!(c, '{' | '}');
    (!name.is_empty() && !name.contains(ends)).then(|| name.to_ascii_lowercase())
}

/// The name in braces at the beginning of a text, and what follows.
pub(super) fn leading(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('{')?.split_once('}')
}

/// Whether anything in a text is to be filled in; `is_map` says whether a map has the placeholder.
pub(super) fn is_plain(text: &str, is_map: impl Fn(&str) -> bool) -> bool {
    names(text).all(|(_, name)| !is_known(name, &is_map))
}

/// The text of a reply in our words.
///
/// # Errors
/// The placeholder that has no counterpart.
pub(super) fn reply_body(text: &str, is_map: impl Fn(&str) -> bool) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (at, name) in names(text) {
        if at < from || !is_known(name, &is_map) {
            continue;
        }
        let Some(header) = name.strip_prefix(HEADER) else {
            return Err(format!("{{{name}}}"));
        };
        let before = &text[from..at];
        if before.ends_with('$') {
            return Err(format!("${{{name}}}"));
        }
        out.push_str(&plain(before));
        out.push_str("${header.");
        out.push_str(&header.to_ascii_lowercase());
        out.push('}');
        from = at + name.len() + 2;
    }
    out.push_str(&plain(&text[from..]));
    Ok(out)
}

/// A text that means itself: our own substitutions begin with `${`, and Caddy escapes braces.
fn plain(text: &str) -> String {
    text.replace("\\{", "{")
        .replace("\\}", "}")
        .replace("${", "$${")
}

/// Whatever is in braces, with its place.
fn names(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.match_indices('{').filter_map(|(at, _)| {
        if text[..at].ends_with('\\') {
            return None;
        }
        let (name, _) = text[at + 1..].split_once('}')?;
        Some((at, name))
    })
}

fn is_known(name: &str, is_map: &impl Fn(&str) -> bool) -> bool {
    is_map(name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
