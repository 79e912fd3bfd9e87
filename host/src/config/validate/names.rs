//! Names: their form, their uniqueness, and whether what is named exists.

use crate::config::Config;
use crate::config::diagnostic::{Finding, did_you_mean, join, one_of, shorten};
use crate::plugin;
use std::collections::BTreeMap;

/// Longest name in bytes.
const NAME_BYTES_MAX: usize = 64;
/// What other names than those of plugins are made of.
const NAME_EXPECTED: &str =
    "at most 64 letters, digits, `-`, `_` and `.`, the first a letter or digit";

/// Each name is a name, and named once among its kind.
pub(super) fn names(config: &Config, found: &mut Vec<Finding>) {
    fn indexed<'n>(kind: &str, names: impl Iterator<Item = &'n str>) -> Vec<(String, &'n str)> {
        names
            .enumerate()
            .map(|(index, name)| (format!("{kind}[{index}].name"), name))
            .collect()
    }
    fn keyed<'n>(kind: &str, names: impl Iterator<Item = &'n str>) -> Vec<(String, &'n str)> {
        names.map(|name| (join(kind, name), name)).collect()
    }
    let kinds = [
        (
            "listener",
            indexed(
                "listener",
                config
                    .listeners
                    .iter()
                    .map(|listener| listener.name.as_str()),
            ),
        ),
        (
            "route",
            indexed(
                "route",
                config.routes.iter().map(|route| route.name.as_str()),
            ),
        ),
        (
            "bucket",
            keyed(
                "buckets",
                config.buckets.iter().map(|bucket| bucket.name.as_str()),
            ),
        ),
        (
            "upstream",
            keyed(
                "upstreams",
                config
                    .upstreams
                    .iter()
                    .map(|upstream| upstream.name.as_str()),
            ),
        ),
        (
            "token",
            keyed(
                "admin.tokens",
                config.admin.tokens.iter().map(|token| token.name.as_str()),
            ),
        ),
        (
            "plugin",
            keyed(
                "plugins",
                config.plugins.iter().map(|plugin| plugin.name.as_str()),
            ),
        ),
    ];
    for (kind, names) in kinds {
        let mut seen = BTreeMap::new();
        for (path, name) in names {
            // A plugin's is stricter.
            let refused = match kind {
                "plugin" => (!plugin::is_name(name)).then_some(plugin::NAME_EXPECTED),
                _ => (!is_name(name)).then_some(NAME_EXPECTED),
            };
            if let Some(expected) = refused {
                let message = format!(
                    "{:?} cannot be the name of a {kind}: expected {expected}",
                    shorten(name)
                );
                found.push(Finding::new(path, message, "not a name"));
            } else if let Some(first) = seen.get(name) {
                let message = format!("two {kind}s are named {name:?}");
                found.push(Finding::new(path, message, "named again").other(String::clone(first)));
            } else {
                seen.insert(name, path);
            }
        }
    }
}

/// Names are parts of URLs, file names, metrics and logs.
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Reports a name that nothing has.
pub(super) fn known<'n>(
    path: String,
    kind: &str,
    name: &str,
    names: impl Iterator<Item = &'n str> + Clone,
    found: &mut Vec<Finding>,
) {
    if names.clone().any(|known| known == name) {
        return;
    }
    let help = did_you_mean(name, names.clone()).or_else(|| match names.clone().count() {
        0 => Some(format!("the config has no {kind}s")),
        count if count <= 10 => Some(format!("expected {}", one_of(names))),
        _ => None,
    });
    let message = format!("no {kind} is named {:?}", shorten(name));
    found.push(Finding::new(path, message, format!("no such {kind}")).help(help));
}
