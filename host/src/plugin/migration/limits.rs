//! Bounds of a migration, as the config sets them.

use std::time::Duration;

/// Bounds of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationLimits {
    /// For the one call.
    pub deadline: Duration,
    /// Keys that it writes.
    pub writes_max: usize,
    /// How long other writes to the store are held back for it, when they came between again and again; zero: never.
    pub hold: Duration,
}

impl Default for MigrationLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            writes_max: 100_000,
            hold: Duration::from_secs(1),
        }
    }
}
