//! The `map` handler: a bucket for each of its placeholders that an upstream is dialled by.

use super::condition::Condition;
use super::json::{Node, Object};
use super::{Scope, Translation, placeholder};
use crate::admin::caddy::mappings::{self, Input, Mapping};
use crate::cli::import::Findings;
use crate::cli::import::draft::Bucket;
use crate::store::bucket::REGEXES_MAX_DEFAULT;
use crate::store::ordered::compile;
use crate::store::{LookupKind, LookupKinds, Target};

/// Where the values of a placeholder come from.
pub(super) struct Map {
    dialled: Dialled,
    /// Its content, and what there is to say of it, until an upstream is dialled by it.
    waiting: Option<(Bucket, Findings)>,
    /// Caddy's `@id`.
    id: Option<String>,
    path: String,
}

/// What an upstream that is dialled by a map needs to know of it.
#[derive(Clone)]
pub(super) struct Dialled {
    /// The header field that holds the key, in lower case.
    pub(super) header: String,
    pub(super) bucket: String,
    pub(super) has_default: bool,
    /// Whether an empty key finds an entry, and so a request without the field.
    pub(super) finds_empty: bool,
}

/// A mapping with the outputs for all destinations.
struct Row {
    path: String,
    input: Input,
    outputs: Vec<Option<String>>,
}

impl Translation<'_> {
    /// Notes the maps of a handler.
    pub(super) fn map(&mut self, node: &Node<'_>, mut map: Object<'_>, scope: &Scope) {
        let is_conditional = |condition: &Condition| *condition != Condition::default();
        if scope.conditions.iter().any(is_conditional) {
            node.unsupported("a map under a condition has no counterpart", self.findings);
        }
        let source = map.take("source");
        let source = source.as_ref().and_then(|it| it.text(self.findings));
        let mut texts = |key| map.take(key).map(|node| node.texts(self.findings));
        let destinations = texts("destinations").unwrap_or_default();
        let defaults = texts("defaults").unwrap_or_default();
        let mappings = map.take("mappings").map(|node| node.items(self.findings));
        let id = map.take("@id").and_then(|id| id.text(self.findings));
        map.finish(self.findings);
        let Some(header) = source.and_then(placeholder::header) else {
            let why = "a map by anything else than one header field has no counterpart";
            node.unsupported(why, self.findings);
            return;
        };
        let whole = |text: &&str| {
            let named = placeholder::leading(text).filter(|(_, rest)| rest.is_empty());
            named.map(|(name, _)| name.to_owned())
        };
        let Some(names) = destinations.iter().map(whole).collect::<Option<Vec<_>>>() else {
            let wrong = "destinations: expected placeholders alone, such as {upstream}";
            self.findings.wrong.push(format!("{}.{wrong}", node.path));
            return;
        };
        let count = names.len();
        if !defaults.is_empty() && defaults.len() != count {
            let has = defaults.len();
            let wrong = format!("defaults: {has}, expected one for each of {count} destinations");
            self.findings.wrong.push(format!("{}.{wrong}", node.path));
            return;
        }
        let mappings = mappings.unwrap_or_default().into_iter();
        let rows: Vec<Row> = mappings.filter_map(|node| self.row(node, count)).collect();
        // A PATCH of the mappings has an output for each destination, and changes one bucket.
        let id = id.filter(|_| match count {
            1 => true,
            _ => {
                let why = "an @id of a map with several destinations has no counterpart";
                node.unsupported(why, self.findings);
                false
            }
        });
        for (place, name) in names.into_iter().enumerate() {
            let default = defaults.get(place).copied().filter(|text| !text.is_empty());
            let bucket = self.unused(&label(&name));
            let (dialled, waiting) = content(&node.path, &rows, place, default, (&header, bucket));
            let map = Map {
                dialled,
                waiting: Some(waiting),
                id: id.map(str::to_owned),
                path: node.path.clone(),
            };
            self.maps.insert(name, map);
        }
    }

    fn row(&mut self, node: Node<'_>, destinations: usize) -> Option<Row> {
        let mut mapping = node.clone().object(self.findings);
        let mut text = |key| {
            let node = mapping.take(key)?;
            node.text(self.findings).map(str::to_owned)
        };
        let (input, pattern) = (text("input"), text("input_regexp"));
        let outputs = mapping
            .take("outputs")
            .map(|node| node.items(self.findings));
        mapping.finish(self.findings);
        let input = match (input.unwrap_or_default(), pattern.unwrap_or_default()) {
            (input, pattern) if pattern.is_empty() => Input::Whole(input),
            (input, pattern) if input.is_empty() => Input::Expression(pattern),
            _ => {
                let why = format!("{}: input and input_regexp exclude each other", node.path);
                self.findings.wrong.push(why);
                return None;
            }
        };
        let outputs: Vec<Option<String>> = outputs
            .unwrap_or_default()
            .iter()
            .map(|output| match output.value {
                serde_json::Value::Null => None,
                serde_json::Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            })
            .collect();
        if outputs.len() != destinations {
            let has = outputs.len();
            let wrong =
                format!("outputs: {has}, expected one for each of {destinations} destinations");
            self.findings.wrong.push(format!("{}.{wrong}", node.path));
            return None;
        }
        Some(Row {
            path: node.path,
            input,
            outputs,
        })
    }

    /// The map of a placeholder that an upstream is dialled by: now its bucket is needed.
    pub(super) fn dialled(&mut self, name: &str) -> Option<Dialled> {
        let map = self.maps.get_mut(name)?;
        if let Some((bucket, found)) = map.waiting.take() {
            if let Some(id) = map.id.take() {
                let buckets = &mut self.draft.compat.caddy;
                buckets.insert(id, bucket.name.clone());
            }
            self.draft.buckets.push(bucket);
            self.findings.unsupported.extend(found.unsupported);
            self.findings.notes.extend(found.notes);
        }
        Some(map.dialled.clone())
    }

    /// Says which maps nothing needed.
    pub(super) fn tell_unused_maps(&mut self) {
        for (name, map) in &self.maps {
            if map.waiting.is_some() {
                let path = &map.path;
                self.findings.note(format!(
                    "{path}: {{{name}}} is left out: no upstream is dialled by it"
                ));
            }
        }
    }
}

/// The bucket for one destination.
fn content(
    path: &str,
    rows: &[Row],
    place: usize,
    default: Option<&str>,
    (header, name): (&str, String),
) -> (Dialled, (Bucket, Findings)) {
    let mut found = Findings::default();
    let mut mappings = Vec::with_capacity(rows.len());
    for row in rows {
        let mut output = row.outputs[place].clone();
        // What has `$` is told as what it is.
        let is_address = |text: &String| !text.is_empty() && !text.contains('$');
        if let Some(Err(why)) = output
            .as_ref()
            .filter(|it| is_address(it))
            .map(|it| address(it))
        {
            found.unsupported.push(format!("{}: {why}", row.path));
            output = None;
        }
        let input = row.input.clone();
        mappings.push(Mapping { input, output });
    }
    let default = default.filter(|text| match address(text) {
        Ok(()) => true,
        Err(why) => {
            let why = format!("{path}.defaults[{place}]: {why}");
            found.unsupported.push(why);
            false
        }
    });
    let is_expression = |mapping: &Mapping| {
        matches!(mapping.input, Input::Expression(_)) && mapping.output.is_some()
    };
    let expressions = mappings
        .iter()
        .filter(|mapping| is_expression(mapping))
        .count();
    let mut lookup = vec![LookupKind::Exact];
    lookup.extend((expressions > 0).then_some(LookupKind::Regex));
    lookup.extend(default.map(|_| LookupKind::Default));
    let keys = mappings::keys(&mappings, LookupKinds::of(&lookup), default.is_some());
    let told = |(index, why): (usize, String)| format!("{}: {why}", rows[index].path);
    found.unsupported.extend(keys.refused.into_iter().map(told));
    found.notes.extend(keys.notes.into_iter().map(told));
    let mut entries = keys.entries;
    let fits_nothing = |mapping: &Mapping| match &mapping.input {
        Input::Expression(pattern) => compile(pattern).is_ok_and(|it| it.is_match("")),
        Input::Whole(_) => false,
    };
    entries.extend(default.map(|default| ("*".to_owned(), default.to_owned())));
    let dialled = Dialled {
        header: header.to_owned(),
        bucket: name.clone(),
        has_default: default.is_some(),
        finds_empty: default.is_some() || mappings.iter().any(fits_nothing),
    };
    let bucket = Bucket {
        name,
        entries,
        lookup: match lookup.len() {
            1 => Vec::new(),
            _ => lookup,
        },
        regexes_max: (expressions > REGEXES_MAX_DEFAULT).then_some(expressions),
    };
    (dialled, (bucket, found))
}

/// # Errors
/// Why an output is no address.
fn address(text: &str) -> Result<(), String> {
    if text.contains('{') {
        return Err(format!(
            "{text:?}: an output with placeholders has no counterpart"
        ));
    }
    let parsed = text.parse::<Target>();
    parsed.map(drop).map_err(|error| error.to_string())
}

/// A name of ours for one of Caddy's.
fn label(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let label: String = text
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .take(64)
        .collect();
    match label.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        true => label,
        false => format!("map{label}").chars().take(64).collect(),
    }
}
