//! What `throwbar plugin` prints: what a deploy did, and the table of versions.

use crate::cli::kv::listed;
use crate::cli::output::{self, Align, Out, Table};
use anyhow::Context;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use std::time::SystemTime;

/// What a deploy did.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Deployed {
    pub(crate) plugin: String,
    pub(crate) digest: String,
    pub(crate) previous: Option<String>,
    pub(crate) outcome: String,
    pub(crate) bytes: u64,
    pub(crate) imports: Vec<String>,
    pub(crate) cached: bool,
    pub(crate) compile_ms: f64,
    pub(crate) init_ms: f64,
    pub(crate) publish_us: f64,
    pub(crate) streams_kept: u64,
    revision: Option<u64>,
    migrated: Option<Migrated>,
    not_migrated: Option<String>,
}

/// A version, as far as it is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Version {
    pub(super) digest: String,
    pub(super) bytes: Option<u64>,
    pub(super) state: String,
    pub(super) since: Option<String>,
    pub(super) streams: u64,
    pub(super) calls: u64,
    pub(super) errors: u64,
    pub(super) decision_ns: u64,
    #[serde(default)]
    pub(super) decision_p50_ns: u64,
    #[serde(default)]
    pub(super) decision_p99_ns: u64,
    #[serde(default)]
    pub(super) memory_bytes: u64,
    pub(super) canary: Option<CanaryShare>,
}

/// A canary's share, as far as it is shown.
#[derive(Debug, Deserialize)]
pub(super) struct CanaryShare {
    pub(super) percent: f64,
}

impl Version {
    /// What it is, a canary with its share.
    pub(super) fn state(&self) -> String {
        match &self.canary {
            Some(canary) => format!("{} {} %", self.state, canary.percent),
            None => self.state.clone(),
        }
    }
}

/// What became of the plugin's data.
#[derive(Debug, Deserialize)]
struct Migrated {
    from: Option<String>,
    written: u64,
    deleted: u64,
    ms: f64,
}

impl Migrated {
    fn line(&self, dry_run: bool) -> String {
        let (written, deleted) = (output::count(self.written), output::count(self.deleted));
        let from = self.from.as_deref().map(output::short);
        format!(
            "  {}: {written} written, {deleted} deleted, from {} in {}",
            if dry_run { "would migrate" } else { "migrated" },
            from.unwrap_or("nothing"),
            milliseconds(self.ms),
        )
    }
}

/// Says what a deploy did.
pub(super) fn report(answer: &Value, dry_run: bool, json: bool) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    if json {
        out.json(answer)?;
        return out.flush();
    }
    let done =
        Deployed::deserialize(answer).context("the admin API's answer is not what was expected")?;
    for line in lines_of(&done, dry_run) {
        out.line(line)?;
    }
    out.flush()
}

fn lines_of(done: &Deployed, dry_run: bool) -> Vec<String> {
    let digest = output::short(&done.digest);
    let (name, size) = (&done.plugin, output::size(done.bytes));
    let times = format!(
        "{} {}, init {}",
        if done.cached {
            "compiled before, loaded in"
        } else {
            "compiled in"
        },
        milliseconds(done.compile_ms),
        milliseconds(done.init_ms),
    );
    let mut lines = match (done.outcome.as_str(), &done.previous) {
        ("unchanged", _) => {
            let unchanged = format!("{name}@{digest}   unchanged: it is active already");
            let written = done
                .revision
                .map(|revision| format!("  written at revision {revision}"));
            return std::iter::once(unchanged).chain(written).collect();
        }
        ("checked", _) => vec![format!("{name}@{digest}   {size}   it would be accepted")],
        // The version that came with the config: pushed, it stays when the config names another.
        (_, Some(previous)) if *previous == done.digest => vec![format!(
            "{name}@{digest}   {size}   the same version, kept from now on whatever the config names"
        )],
        (_, Some(previous)) => vec![format!(
            "{name}  {} -> {digest}   {size}",
            output::short(previous)
        )],
        (_, None) => vec![format!("{name}  first version {digest}   {size}")],
    };
    if dry_run {
        lines.push(format!("  {times}; nothing changed"));
    } else {
        lines.push(format!(
            "  {times}, switched in {}",
            output::span((done.publish_us.max(0.0) * 1e3) as u64)
        ));
        lines.push(match done.streams_kept {
            0 => "  no stream was open".to_owned(),
            1 => "  1 open stream stays with the version that accepted it".to_owned(),
            n => format!(
                "  {} open streams stay with the versions that accepted them",
                output::count(n)
            ),
        });
    }
    lines
        .extend(done.revision.map(|revision| {
            format!("  data and version changed together, at revision {revision}")
        }));
    let migrated = done.migrated.as_ref();
    lines.extend(migrated.map(|migrated| migrated.line(dry_run)));
    if let Some(why) = &done.not_migrated {
        lines.push(format!("  the data are as they were: {why}"));
    }
    if !done.imports.is_empty() {
        lines.push(format!("  asks for {}", done.imports.join(", ")));
    }
    lines
}

fn milliseconds(ms: f64) -> String {
    output::span((ms.max(0.0) * 1e6) as u64)
}

/// A row for each version of each plugin.
pub(super) fn table_of(plugins: &[Value]) -> anyhow::Result<Table> {
    let mut table = Table::new(&[
        ("PLUGIN", Align::Left),
        ("VERSION", Align::Left),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("SIZE", Align::Right),
        ("STREAMS", Align::Right),
        ("DECISIONS", Align::Right),
        ("ERRORS", Align::Right),
        ("MEAN", Align::Right),
    ]);
    for plugin in plugins {
        let name = plugin["name"].as_str().unwrap_or_default();
        let versions: Vec<Version> = listed(&plugin["versions"], "")
            .iter()
            .map(Version::deserialize)
            .collect::<Result<_, _>>()
            .context("the admin API's answer is not what was expected")?;
        if versions.is_empty() {
            let mut row = vec![
                name.to_owned(),
                "-".into(),
                "waits for its first push".into(),
            ];
            row.resize(9, String::new());
            table.row(row);
        }
        for version in versions {
            let since = version
                .since
                .as_deref()
                .and_then(|at| at.parse::<Timestamp>().ok());
            let age = since.and_then(|at| SystemTime::from(at).elapsed().ok());
            let used = version.calls > 0;
            table.row([
                name.to_owned(),
                output::short(&version.digest).to_owned(),
                version.state(),
                age.map_or("-".into(), |age| output::age(age.as_secs())),
                version.bytes.map_or("-".into(), output::size),
                output::count(version.streams),
                output::count(version.calls),
                output::count(version.errors),
                if used {
                    output::span(version.decision_ns)
                } else {
                    "-".into()
                },
            ]);
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_swap_shows_both_versions_and_what_stays() {
        let done = Deployed {
            plugin: "edge".to_owned(),
            digest: "4be7a0".repeat(10),
            previous: Some("9f2c11".repeat(10)),
            outcome: "swapped".to_owned(),
            bytes: 61_565,
            compile_ms: 38.0,
            init_ms: 0.4,
            publish_us: 0.9,
            streams_kept: 1,
            ..Deployed::default()
        };
        assert_eq!(
            lines_of(&done, false),
            [
                "edge  9f2c119f2c11 -> 4be7a04be7a0   61.6 KB",
                "  compiled in 38 ms, init 400 µs, switched in 900 ns",
                "  1 open stream stays with the version that accepted it",
            ]
        );
    }

    #[test]
    fn what_became_of_the_data_is_told() {
        let answer = serde_json::json!({
            "plugin": "edge", "digest": "ab".repeat(32), "outcome": "swapped",
            "migrated": { "from": "cd".repeat(32), "written": 1_200, "deleted": 3, "ms": 12.4 },
        });
        let done = Deployed::deserialize(&answer).expect("an answer");
        let line = "migrated: 1,200 written, 3 deleted, from cdcdcdcdcdcd in 12 ms";
        assert!(
            lines_of(&done, false).contains(&format!("  {line}")),
            "{:?}",
            lines_of(&done, false)
        );
        let would = lines_of(&done, true);
        assert!(
            would
                .iter()
                .any(|line| line.starts_with("  would migrate: ")),
            "{would:?}"
        );
    }

    #[test]
    fn the_same_version_again_is_a_visible_no_op() {
        let done = Deployed {
            outcome: "unchanged".to_owned(),
            digest: "ab".repeat(32),
            ..Deployed::default()
        };
        let lines = lines_of(&done, false);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("unchanged"), "{lines:?}");
    }

    #[test]
    fn a_plugin_without_a_version_has_a_row_of_its_own() {
        let plugins = [json!({ "name": "edge", "versions": [] })];
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut out = Out::to(file.reopen().expect("open"));
        let table = table_of(&plugins).expect("a table");
        table.print(&mut out).expect("print");
        out.flush().expect("flush");
        let text = std::fs::read_to_string(file.path()).expect("read");
        assert!(text.contains("waits for its first push"), "{text}");
    }
}
