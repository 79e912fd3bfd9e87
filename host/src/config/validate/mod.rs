//! Checks across sections.
//!
//! They need no text, so a config that was built in code is checked like one that was read.

use super::Config;
use super::diagnostic::{Finding, join, shorten};
use crate::admin::Address;
use crate::proxy::TICK;
use crate::store::bucket::HISTORY_MAX;
use crate::store::{BucketConfig, OnChange, SyncPolicy, Target, ValueKind};
use crate::upstream::guard::{self, Guard, Refused};
use crate::worker::WORKERS_MAX;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

mod admin;
mod fleet;
mod migration;
mod names;
mod plugins;
mod routes;
mod shared;
mod tokens;

use admin::admin;
use names::{is_name, known, names};

/// Most listeners of a config.
const LISTENERS_MAX: usize = 256;
/// Most routes of a config.
const ROUTES_MAX: usize = 10_000;
/// Most buckets of a config.
const BUCKETS_MAX: usize = 1_000;
/// Most upstreams of a config.
const UPSTREAMS_MAX: usize = 10_000;
/// Most plugins of a config.
const PLUGINS_MAX: usize = 1_000;
/// Most endpoints of an upstream.
const ENDPOINTS_MAX: usize = 1_000;
/// Most regular expressions among the keys of a bucket: they are compiled anew when one comes or goes.
const REGEXES_MAX: usize = 1_000;

/// From what hardly spares a sync to what nobody should lose.
const SYNC_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

/// Longest time from the change of an entry to the end of its streams, and over which they are closed.
const ON_CHANGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Everything that is wrong with a config whose values are each right in their type.
pub fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let found = &mut findings;
    let counts = [
        ("listener", config.listeners.len(), LISTENERS_MAX),
        ("route", config.routes.len(), ROUTES_MAX),
        ("buckets", config.buckets.len(), BUCKETS_MAX),
        ("upstreams", config.upstreams.len(), UPSTREAMS_MAX),
        ("plugins", config.plugins.len(), PLUGINS_MAX),
    ];
    for (path, count, max) in counts {
        if count > max {
            let message = format!("`{path}` has {count} entries, expected at most {max}");
            found.push(Finding::new(path, message, "too many"));
        }
    }
    if !found.is_empty() {
        // Some checks below compare each with each.
        return findings;
    }
    between("workers", &config.workers, 1..=WORKERS_MAX, found);
    names(config, found);
    listeners(config, found);
    admin(config, found);
    if let SyncPolicy::Interval(interval) = config.sync {
        let path = "store.embedded.sync_interval".to_owned();
        span(path, interval, SYNC_INTERVAL, found);
    }
    for bucket in &config.buckets {
        let path = join("buckets", &bucket.name);
        between(
            join(&path, "keys_max"),
            &bucket.keys_max,
            1..=u64::from(u32::MAX),
            found,
        );
        between(
            join(&path, "bytes_max"),
            &bucket.bytes_max,
            1..=1 << 50,
            found,
        );
        between(
            join(&path, "history"),
            &bucket.history,
            0..=HISTORY_MAX,
            found,
        );
        between(
            join(&path, "history_bytes_max"),
            &bucket.history_bytes_max,
            1..=1 << 50,
            found,
        );
        between(
            join(&path, "regexes_max"),
            &bucket.regexes_max,
            0..=REGEXES_MAX,
            found,
        );
        on_change(join(&path, "on_change"), bucket, found);
    }
    shared::shared(config, found);
    fleet::fleet(config, found);
    upstreams(config, found);
    for plugin in &config.plugins {
        plugins::plugin(config, plugin, found);
    }
    routes::routes(config, found);
    limits(config, found);
    caddy(config, found);
    findings
}

fn on_change(path: String, bucket: &BucketConfig, found: &mut Vec<Finding>) {
    if bucket.on_change != OnChange::Keep && bucket.values != ValueKind::Endpoint {
        let message = format!(
            "the values of bucket {:?} are bytes: no stream is routed by them",
            bucket.name
        );
        found.push(Finding::new(&path, message, "not a bucket of endpoints"));
    }
    if let OnChange::Drain { after, over } = bucket.on_change {
        let path = join(&path, "drain");
        for (key, span) in [("after", after), ("over", over)] {
            if span > ON_CHANGE_MAX {
                let expected = format!("expected at most {ON_CHANGE_MAX:?}");
                let message = format!("`{key}` is {span:?}: {expected}");
                found.push(Finding::new(join(&path, key), message, expected));
            }
        }
    }
}

fn between<T: PartialOrd + Display>(
    path: impl Into<String>,
    value: &T,
    range: RangeInclusive<T>,
    found: &mut Vec<Finding>,
) {
    if !range.contains(value) {
        let path = path.into();
        let key = path.rsplit('.').next().unwrap_or_default().to_owned();
        let expected = format!("expected {} to {}", range.start(), range.end());
        found.push(Finding::new(
            path,
            format!("`{key}` is {value}: {expected}"),
            expected,
        ));
    }
}

/// A duration within bounds.
fn span(path: String, value: Duration, range: RangeInclusive<Duration>, found: &mut Vec<Finding>) {
    if !range.contains(&value) {
        let key = path.rsplit('.').next().unwrap_or_default().to_owned();
        let expected = format!("expected {:?} to {:?}", range.start(), range.end());
        let message = format!("`{key}` is {value:?}: {expected}");
        found.push(Finding::new(path, message, expected));
    }
}

/// A timeout within bounds; none may be 0.
fn timeout(path: String, value: Duration, max: Duration, found: &mut Vec<Finding>) {
    let key = path.rsplit('.').next().unwrap_or_default().to_owned();
    if value.is_zero() {
        let message = format!("`{key}` is 0: nothing would ever be in time");
        found.push(Finding::new(path, message, "expected more than 0"));
    } else if value > max {
        let expected = format!("expected at most {max:?}");
        found.push(Finding::new(
            path,
            format!("`{key}` is {value:?}: {expected}"),
            expected,
        ));
    }
}

fn listeners(config: &Config, found: &mut Vec<Finding>) {
    if config.listeners.is_empty() {
        let help = "write `[[listener]]` with `listen = \"127.0.0.1:8080\"`".to_owned();
        found.push(
            Finding::new(
                "listener",
                "no listener: no client could connect",
                "no `[[listener]]`",
            )
            .help(help),
        );
    }
    for (index, listener) in config.listeners.iter().enumerate() {
        let path = format!("listener[{index}]");
        if !listener.http1 && !listener.h2c {
            let finding = Finding::new(
                join(&path, "protocols"),
                "the listener speaks no protocol",
                "empty",
            );
            found.push(finding.help("write `protocols = [\"h1\", \"h2c\"]`".to_owned()));
        }
        let path = join(&path, "listen");
        let address = listener.address;
        let earlier = config.listeners[..index]
            .iter()
            .position(|other| other.address == address);
        if let Some(earlier) = earlier.filter(|_| address.port() != 0) {
            let message = format!(
                "{address} is the address of listener {:?} already",
                config.listeners[earlier].name
            );
            let other = format!("listener[{earlier}].listen");
            found.push(Finding::new(&path, message, "listened on twice").other(other));
        }
        if let Address::Tcp(admin) = config.admin.listen
            && overlap(admin, address)
        {
            let message = format!("{address} takes the address of the admin API, {admin}");
            found.push(
                Finding::new(path, message, "the admin API listens here").other("admin.listen"),
            );
        }
    }
}

/// Whether two sockets cannot both be bound.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// The guard as it binds addresses of the config itself.
fn trusted(config: &Config) -> Guard {
    let admin = match config.admin.listen {
        Address::Tcp(address) => Some(address),
        Address::Unix(_) => None,
    };
    let own = config
        .listeners
        .iter()
        .map(|listener| listener.address)
        .chain(admin);
    let own = own.filter(|address| address.port() != 0).collect();
    Guard::new(guard::Config::default(), own)
}

fn refused(guard: &Guard, (target, port): (&Target, u16)) -> Option<Refused> {
    match target {
        Target::Ip(ip, _) => guard.check(SocketAddr::new(*ip, port), true).err(),
        // A name is checked when it is dialled, by what it resolves to then.
        Target::Name(..) | Target::Unix(_) => None,
    }
}

fn upstreams(config: &Config, found: &mut Vec<Finding>) {
    let guard = trusted(config);
    for upstream in &config.upstreams {
        let endpoints = join(&join("upstreams", &upstream.name), "endpoints");
        if upstream.endpoints.is_empty() {
            let message = format!("upstream {:?} has no endpoints", upstream.name);
            let finding = Finding::new(&endpoints, message, "empty");
            found.push(finding.help("write `endpoints = [\"127.0.0.1:9000\"]`".to_owned()));
        }
        if upstream.endpoints.len() > ENDPOINTS_MAX {
            let message = format!(
                "upstream {:?} has {} endpoints, expected at most {ENDPOINTS_MAX}",
                upstream.name,
                upstream.endpoints.len()
            );
            found.push(Finding::new(&endpoints, message, "too many"));
            continue;
        }
        for (index, (target, port)) in upstream.endpoints.iter().enumerate() {
            let path = format!("{endpoints}[{index}]");
            if let Some(why) = refused(&guard, (target, *port)) {
                found.push(Finding::new(
                    &path,
                    format!("never dialled: {why}"),
                    "never dialled",
                ));
            }
            let mut earlier = upstream.endpoints[..index].iter();
            let first =
                earlier.position(|(first, first_port)| first == target && first_port == port);
            if let Some(first) = first {
                let message = format!("upstream {:?} has this endpoint twice", upstream.name);
                found.push(
                    Finding::new(path, message, "named again")
                        .other(format!("{endpoints}[{first}]")),
                );
            }
        }
    }
}

fn limits(config: &Config, found: &mut Vec<Finding>) {
    let limits = &config.limits;
    let day = Duration::from_secs(24 * 3600);
    for (key, value) in [
        ("first_byte_timeout", limits.first_byte_timeout),
        ("head_timeout", limits.head_timeout),
        ("idle_timeout", limits.idle_timeout),
        ("body_timeout", limits.body_timeout),
        ("write_timeout", limits.write_timeout),
        ("connect_timeout", limits.connect_timeout),
        ("response_timeout", limits.response_timeout),
        ("response_body_timeout", limits.response_body_timeout),
        ("pool_idle_timeout", limits.pool_idle_timeout),
    ] {
        timeout(join("limits", key), value, day, found);
    }
    // 8 KiB is the least that HTTP/1 is read with.
    between(
        "limits.head_bytes_max",
        &limits.head_bytes_max,
        8 << 10..=1 << 20,
        found,
    );
    between("limits.headers_max", &limits.headers_max, 1..=10_000, found);
    between(
        "limits.uri_bytes_max",
        &limits.uri_bytes_max,
        1..=65_534,
        found,
    );
    between(
        "limits.connections_max",
        &limits.connections_max,
        1..=10_000_000,
        found,
    );
    between(
        "limits.connections_per_client_max",
        &limits.connections_per_client_max,
        1..=10_000_000,
        found,
    );
    between(
        "limits.h2_streams_max",
        &limits.h2_streams_max,
        1..=100_000,
        found,
    );
    between(
        "limits.pool_per_endpoint_max",
        &limits.pool_per_endpoint_max,
        0..=1_000_000,
        found,
    );
    let times = config.streams.times;
    pings("streams", [times.ping_client, times.ping_upstream], found);
    between(
        "streams.streams_max",
        &config.streams.streams_max,
        0..=10_000_000,
        found,
    );
    between(
        "streams.age_jitter",
        &config.streams.age_jitter,
        0.0..=0.5,
        found,
    );
    between(
        "streams.message_bytes_max",
        &config.streams.message_bytes_max,
        125..=64 << 20,
        found,
    );
}

/// Each ping comes after a tick at least; what is zero never comes.
fn pings(path: &str, [client, upstream]: [Option<Duration>; 2], found: &mut Vec<Finding>) {
    let range = TICK..=Duration::from_secs(24 * 3600);
    for (key, interval) in [("ping_client", client), ("ping_upstream", upstream)] {
        if let Some(interval) = interval.filter(|interval| !interval.is_zero()) {
            span(join(path, key), interval, range.clone(), found);
        }
    }
}

fn caddy(config: &Config, found: &mut Vec<Finding>) {
    for (id, name) in &config.caddy_ids {
        let path = join("compat.caddy", id);
        if !is_name(id) {
            let message = format!(
                "{:?} cannot be part of the URL `/id/{{id}}/mappings`",
                shorten(id)
            );
            found.push(Finding::new(&path, message, "not a name"));
        }
        match config.buckets.iter().find(|bucket| bucket.name == *name) {
            Some(bucket) if bucket.values != ValueKind::Endpoint => {
                let message =
                    format!("the values of bucket {name:?} are bytes, expected endpoints");
                found.push(Finding::new(path, message, "not a bucket of endpoints"));
            }
            Some(_) => {}
            None => known(
                path,
                "bucket",
                name,
                config.buckets.iter().map(|bucket| bucket.name.as_str()),
                found,
            ),
        }
    }
}
