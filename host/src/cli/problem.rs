//! Errors of the admin API as they are told to people.

use super::output;
use http::StatusCode;
use std::time::Duration;

/// An answer of `application/problem+json`.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    /// The status.
    pub(crate) status: u16,
    /// The kind of problem.
    pub(crate) title: String,
    /// What is wrong here.
    pub(crate) detail: Option<String>,
    /// The kind, for programs.
    pub(crate) code: Option<String>,
    /// The bucket and the key that it is about, if it is about one.
    pub(crate) bucket: Option<String>,
    /// See above.
    pub(crate) key: Option<String>,
    /// Of more writes than are taken at once: how many are.
    pub(crate) writes_max: Option<u64>,
    /// How old what was read may be, if proxies share it: a field of the answer.
    #[serde(skip)]
    pub(crate) staleness: Option<Duration>,
    /// Each problem, if there are several.
    pub(crate) errors: Vec<serde_json::Value>,
}

impl Problem {
    /// The problem an answer with an error status describes, whatever its body is.
    pub(crate) fn of(status: StatusCode, body: &[u8]) -> Self {
        let mut problem: Problem = serde_json::from_slice(body).unwrap_or_else(|_| Problem {
            detail: std::str::from_utf8(body)
                .ok()
                .map(|text| text.trim().chars().take(500).collect::<String>())
                .filter(|text| !text.is_empty()),
            ..Problem::default()
        });
        problem.status = status.as_u16();
        if problem.title.is_empty() {
            problem.title = status.canonical_reason().unwrap_or("error").to_lowercase();
        }
        problem
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = in_options(self.detail.as_ref().unwrap_or(&self.title));
        write!(f, "{} ({})", output::printable(&text), self.status)?;
        for error in &self.errors {
            write!(f, "\n  {}", output::printable(&entry(error)))?;
        }
        Ok(())
    }
}

/// What the API says of its queries, in words of the options that make them.
fn in_options(detail: &str) -> String {
    const OF_LISTS: (&str, &str) = (" only: expected them as prefix in the query", "begin with ");
    const OF_DEADLINES: &str = "expected ndjson or csv, or deadlines=false to leave that out";
    const OF_FORMATS: &str = "does not fit this format: expected ";
    if let Some((before, after)) = detail.split_once(OF_LISTS.0)
        && let Some((_, prefix)) = before.rsplit_once(OF_LISTS.1)
    {
        return format!(
            "{before} only: give --prefix {}{after}",
            prefix.trim_matches('"')
        );
    }
    let given = "give --format ndjson or csv, or --without-deadlines";
    let detail = detail.replace(OF_DEADLINES, given);
    detail.replace(OF_FORMATS, "does not fit this format: give --format ")
}

/// One entry of `errors`: its place, then what is wrong.
fn entry(error: &serde_json::Value) -> String {
    let text = |name: &str| match error.get(name) {
        Some(serde_json::Value::String(text)) => Some(text.clone()),
        Some(serde_json::Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    if let Some(text) = error.as_str() {
        return text.to_owned();
    }
    let what = ["message", "detail", "reason"].iter().find_map(|n| text(n));
    let place = match (text("line"), text("column")) {
        (Some(line), Some(column)) => Some(format!("line {line}, column {column}")),
        (Some(line), None) => Some(format!("line {line}")),
        _ => text("path").or_else(|| text("key").map(|key| format!("key {key:?}"))),
    };
    match (place, what) {
        (Some(place), Some(what)) => format!("{place}: {what}"),
        (None, Some(what)) => what,
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_says_of_queries_is_told_in_options() {
        let told = |detail: &str| in_options(detail);
        assert_eq!(
            told(
                "token \"t\" lists keys that begin with \"eu-\" only: expected them as prefix in the query"
            ),
            "token \"t\" lists keys that begin with \"eu-\" only: give --prefix eu-"
        );
        assert_eq!(
            told(
                "key \"a\": it ends, which lines cannot say: expected ndjson or csv, or deadlines=false to leave that out"
            ),
            "key \"a\": it ends, which lines cannot say: give --format ndjson or csv, or --without-deadlines"
        );
        assert_eq!(
            told("key \"a\": it or its value does not fit this format: expected ndjson or csv"),
            "key \"a\": it or its value does not fit this format: give --format ndjson or csv"
        );
        assert_eq!(told("no bucket \"x\""), "no bucket \"x\"");
    }
}
