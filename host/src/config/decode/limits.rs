//! `[limits]`, `[streams]` and the limits of a plugin.

use super::table::{Table, Walk};
use crate::plugin::PluginLimits;
use crate::proxy::Limits;
use crate::stream::{self, RouteTimes};

pub(super) fn limits(mut table: Table<'_>, limits: &mut Limits, walk: &mut Walk<'_>) {
    table.duration("first_byte_timeout", &mut limits.first_byte_timeout, walk);
    table.duration("head_timeout", &mut limits.head_timeout, walk);
    table.duration("idle_timeout", &mut limits.idle_timeout, walk);
    table.duration("body_timeout", &mut limits.body_timeout, walk);
    table.duration("write_timeout", &mut limits.write_timeout, walk);
    table.size("head_bytes_max", &mut limits.head_bytes_max, walk);
    table.integer("headers_max", &mut limits.headers_max, walk);
    table.size("uri_bytes_max", &mut limits.uri_bytes_max, walk);
    table.size("body_bytes_max", &mut limits.body_bytes_max, walk);
    table.integer("connections_max", &mut limits.connections_max, walk);
    table.integer(
        "connections_per_client_max",
        &mut limits.connections_per_client_max,
        walk,
    );
    table.integer("h2_streams_max", &mut limits.h2_streams_max, walk);
    table.duration("connect_timeout", &mut limits.connect_timeout, walk);
    table.duration("response_timeout", &mut limits.response_timeout, walk);
    table.duration(
        "response_body_timeout",
        &mut limits.response_body_timeout,
        walk,
    );
    table.integer(
        "pool_per_endpoint_max",
        &mut limits.pool_per_endpoint_max,
        walk,
    );
    table.duration("pool_idle_timeout", &mut limits.pool_idle_timeout, walk);
    table.boolean("via", &mut limits.via, walk);
    table.finish(walk);
}

pub(super) fn streams(mut table: Table<'_>, streams: &mut stream::Config, walk: &mut Walk<'_>) {
    streams.times = times(&mut table, walk).over(streams.times);
    table.share("age_jitter", &mut streams.age_jitter, walk);
    table.duration("shutdown_grace", &mut streams.shutdown_grace, walk);
    table.integer("streams_max", &mut streams.streams_max, walk);
    table.size("message_bytes_max", &mut streams.message_bytes_max, walk);
    table.finish(walk);
}

pub(super) fn route_streams(mut table: Table<'_>, walk: &mut Walk<'_>) -> RouteTimes {
    let times = times(&mut table, walk);
    table.finish(walk);
    times
}

fn times(table: &mut Table<'_>, walk: &mut Walk<'_>) -> RouteTimes {
    let mut times = RouteTimes::default();
    for (key, slot) in [
        ("idle_timeout", &mut times.idle_timeout),
        ("age_max", &mut times.age_max),
        ("ping_client", &mut times.ping_client),
        ("ping_upstream", &mut times.ping_upstream),
    ] {
        *slot = table.optional_duration(key, walk);
    }
    times
}

pub(super) fn plugin_limits(mut table: Table<'_>, walk: &mut Walk<'_>) -> PluginLimits {
    let mut limits = PluginLimits::default();
    table.duration("deadline", &mut limits.deadline, walk);
    table.duration("init_deadline", &mut limits.init_deadline, walk);
    table.duration("watch_deadline", &mut limits.watch_deadline, walk);
    table.size("memory", &mut limits.memory_bytes_max, walk);
    table.size("returned", &mut limits.returned_bytes_max, walk);
    table.integer(
        "log_lines_per_second",
        &mut limits.log_lines_per_second,
        walk,
    );
    table.integer("writes", &mut limits.writes_max, walk);
    table.integer("calls", &mut limits.calls_max, walk);
    table.finish(walk);
    limits
}
