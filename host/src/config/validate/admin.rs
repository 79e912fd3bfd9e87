//! What must hold of the admin API's table.

use super::tokens::tokens;
use super::{Finding, between, span};
use crate::admin::{Address, Auth};
use crate::config::Config;
use crate::plugin::COMPILE_TIMEOUT;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Less is over before a plugin of any use is compiled; more is never reached, since no request waits so long.
const COMPILE_CPU: RangeInclusive<Duration> = Duration::from_secs(1)..=COMPILE_TIMEOUT;
/// From what the smallest plugins take to what no plugin should.
const COMPILE_MEMORY: RangeInclusive<u64> = 64 << 20..=64 << 30;

pub(super) fn admin(config: &Config, found: &mut Vec<Finding>) {
    tokens(config, found);
    let admin = &config.admin;
    if let (Auth::None, Address::Tcp(address)) = (admin.auth, &admin.listen)
        && !address.ip().to_canonical().is_loopback()
    {
        let message = format!(
            "`auth` is \"none\" and the admin API listens on {address}, which others can reach"
        );
        let finding = Finding::new("admin.auth", message, "only on loopback or a Unix socket");
        found.push(
            finding
                .other("admin.listen")
                .help("write `auth = \"token\"`, or listen on 127.0.0.1".to_owned()),
        );
    }
    between(
        "admin.component_bytes_max",
        &admin.component_bytes_max,
        1..=1 << 30,
        found,
    );
    span(
        "admin.compile_cpu".to_owned(),
        admin.compile.cpu,
        COMPILE_CPU,
        found,
    );
    between(
        "admin.compile_memory",
        &admin.compile.memory_bytes,
        COMPILE_MEMORY,
        found,
    );
    between(
        "admin.body_bytes_max",
        &admin.body_bytes_max,
        1..=16 << 30,
        found,
    );
}
