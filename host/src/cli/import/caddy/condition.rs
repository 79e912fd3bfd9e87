//! Matchers of a route: `host`, `path`, `path_regexp`, `method`, `header`, `header_regexp`, and that a map has the key.

use super::json::Node;
use crate::cli::import::Findings;
use crate::cli::import::draft::Match;

/// What must hold together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Condition {
    pub(super) matcher: Match,
    /// The placeholder of a map that must have a value.
    pub(super) mapped: Option<String>,
}

impl Condition {
    /// Both.
    ///
    /// # Errors
    /// What both speak of: one list of alternatives stands for a part of the request.
    pub(super) fn and(&self, other: &Self) -> Result<Self, &'static str> {
        fn list(one: &[String], other: &[String]) -> Option<Vec<String>> {
            match (one, other) {
                (only, []) | ([], only) => Some(only.to_vec()),
                (one, other) => (one == other).then(|| one.to_vec()),
            }
        }
        let (one, two) = (&self.matcher, &other.matcher);
        let mut header = one.header.clone();
        for (name, pattern) in &two.header {
            merge_header(&mut header, name, pattern.clone()).map_err(|()| "same header field")?;
        }
        let mapped = match (&self.mapped, &other.mapped) {
            (Some(one), Some(other)) if one != other => return Err("values of two maps"),
            (one, other) => one.clone().or_else(|| other.clone()),
        };
        Ok(Self {
            matcher: Match {
                host: list(&one.host, &two.host).ok_or("host")?,
                path: list(&one.path, &two.path).ok_or("path")?,
                method: list(&one.method, &two.method).ok_or("method")?,
                header,
            },
            mapped,
        })
    }
}

type Headers = std::collections::BTreeMap<String, String>;

/// One pattern stands for a field; that it is there at all is part of every other one.
fn merge_header(headers: &mut Headers, name: &str, pattern: String) -> Result<(), ()> {
    match headers.get(name).map(String::as_str) {
        None | Some("*") if pattern != "!" => {
            headers.insert(name.to_owned(), pattern);
            Ok(())
        }
        None => {
            headers.insert(name.to_owned(), pattern);
            Ok(())
        }
        Some(_) if pattern == "*" => Ok(()),
        Some(same) if same == pattern => Ok(()),
        Some(_) => Err(()),
    }
}

/// The conditions of a `match`, of which one must hold.
pub(super) fn any_of(node: Option<Node<'_>>, findings: &mut Findings) -> Vec<Condition> {
    let sets = node.map(|node| node.items(findings)).unwrap_or_default();
    if sets.is_empty() {
        return vec![Condition::default()];
    }
    sets.into_iter()
        .map(|set| condition(set, findings))
        .collect()
}

fn condition(node: Node<'_>, findings: &mut Findings) -> Condition {
    let mut condition = Condition::default();
    let mut set = node.object(findings);
    if let Some(hosts) = set.take("host") {
        for host in hosts.texts(findings) {
            if host.starts_with("*.") {
                findings.note(format!(
                    "host {host}: `*` stands for one label in Caddy, for one or more here"
                ));
            }
            condition.matcher.host.push(host.to_owned());
        }
    }
    if let Some(paths) = set.take("path") {
        for path in paths.texts(findings) {
            findings.note("paths are compared with regard to case here, without in Caddy");
            condition.matcher.path.push(path_pattern(path));
        }
    }
    if let Some(node) = set.take("path_regexp")
        && let Some(pattern) = pattern_of(node, findings)
    {
        condition.matcher.path.push(format!("re:{pattern}"));
    }
    if let Some(methods) = set.take("method") {
        let methods = methods.texts(findings).into_iter().map(str::to_owned);
        condition.matcher.method.extend(methods);
    }
    let plain = set
        .take("header")
        .map(|node| node.object(findings).take_all());
    for (name, node) in plain.unwrap_or_default() {
        let pattern = match node.value.is_null() {
            true => "!".to_owned(),
            false => header_pattern(&node.clone().texts(findings)),
        };
        add_header(&mut condition, name, pattern, &node, findings);
    }
    let expressions = set
        .take("header_regexp")
        .map(|node| node.object(findings).take_all());
    for (name, node) in expressions.unwrap_or_default() {
        if let Some(pattern) = pattern_of(node.clone(), findings) {
            add_header(
                &mut condition,
                name,
                format!("re:{pattern}"),
                &node,
                findings,
            );
        }
    }
    if let Some(node) = set.take("expression") {
        condition.mapped = mapped(node, findings);
    }
    set.finish(findings);
    condition
}

fn add_header(
    condition: &mut Condition,
    name: &str,
    pattern: String,
    node: &Node<'_>,
    findings: &mut Findings,
) {
    let headers = &mut condition.matcher.header;
    if merge_header(headers, &name.to_ascii_lowercase(), pattern).is_err() {
        node.unsupported(
            "a second condition on this field has no counterpart",
            findings,
        );
    }
}

/// `*` at the end is anything; elsewhere it needs a regular expression.
fn path_pattern(path: &str) -> String {
    let inner = path.strip_suffix('*').unwrap_or(path);
    match inner.contains('*') || !inner.starts_with('/') {
        true => format!("re:{}", wildcard(path)),
        false => path.to_owned(),
    }
}

/// What one of the values must be, `*` at both ends standing for anything.
fn header_pattern(values: &[&str]) -> String {
    match values {
        ["*"] => "*".to_owned(),
        [exact] if !exact.contains('*') && !exact.starts_with("re:") && *exact != "!" => {
            (*exact).to_owned()
        }
        values => {
            let any: Vec<String> = values.iter().map(|value| wildcard(value)).collect();
            format!("re:{}", any.join("|"))
        }
    }
}

fn wildcard(text: &str) -> String {
    let parts: Vec<String> = text.split('*').map(regex::escape).collect();
    format!("^{}$", parts.join(".*"))
}

/// The pattern of `{"name": …, "pattern": …}`; names are for placeholders.
fn pattern_of<'v>(node: Node<'v>, findings: &mut Findings) -> Option<&'v str> {
    let mut object = node.object(findings);
    object.take("name");
    let pattern = object.take("pattern");
    object.finish(findings);
    pattern?.text(findings)
}

/// The placeholder of `{placeholder} != ""`, the one expression that has a counterpart.
fn mapped(node: Node<'_>, findings: &mut Findings) -> Option<String> {
    let expression = match node.value.get("expr") {
        Some(expr) => expr.as_str(),
        None => node.value.as_str(),
    };
    let name = expression.and_then(|text| {
        let (name, value) = text.split_once("!=")?;
        let name = name.trim().strip_prefix('{')?.strip_suffix('}')?;
        matches!(value.trim(), "\"\"" | "''").then(|| name.to_owned())
    });
    if name.is_none() {
        node.unsupported(
            "an expression other than `{map's placeholder} != \"\"` has no counterpart",
            findings,
        );
    }
    name
}
