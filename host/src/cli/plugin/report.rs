//! What a deploy did, told to people.

use crate::cli::output::{self, Out};
use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

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
    migrated: Option<Migrated>,
    not_migrated: Option<String>,
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
            return vec![format!("{name}@{digest}   unchanged: it is active already")];
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
