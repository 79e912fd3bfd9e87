//! `[plugins.NAME.migration]`.

use super::super::diagnostic::{Finding, join};
use super::{between, timeout};
use crate::plugin::MigrationLimits;
use std::time::Duration;

/// Longest time that a migration may take.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
/// Most keys that a migration may write.
const WRITES_MAX: usize = 1_000_000;

/// Longest time for which other writes wait.
const HOLD_MAX: Duration = Duration::from_secs(60);

/// Checks the bounds of a plugin's migrations.
pub(super) fn check(plugin: &str, limits: &MigrationLimits, found: &mut Vec<Finding>) {
    let path = join(plugin, "migration");
    timeout(
        join(&path, "deadline"),
        limits.deadline,
        DEADLINE_MAX,
        found,
    );
    between(
        join(&path, "writes"),
        &limits.writes_max,
        0..=WRITES_MAX,
        found,
    );
    if limits.hold > HOLD_MAX {
        let message = format!("hold is {:?}, expected at most {HOLD_MAX:?}", limits.hold);
        found.push(Finding::new(join(&path, "hold"), message, "too long"));
    }
}
