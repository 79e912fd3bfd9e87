//! Rates as people read them: a few lines and some tables, what matters most to the left.

use super::super::output::{self, Align, Table};
use super::super::streams::conditions;
use super::plugins::{Plugin, Version};
use super::rates::{Rates, Route};

/// Routes that are shown however low the screen is.
const ROUTES_MIN: usize = 3;

/// The lines of a report; of a screen so high, with as many routes as there is room for. Widths are the terminal's to cut.
pub(super) fn lines(rates: &Rates, admin: &str, now_ms: u64, height: Option<usize>) -> Vec<String> {
    let mut lines = vec![
        format!(
            "throwbar at {admin}   up {}   {}",
            output::age(rates.uptime_s),
            if rates.ready { "ready" } else { "NOT READY" },
        ),
        format!(
            "{} requests/s   {}   {} (+{}/s -{}/s)   {} map changes/s (revision {})",
            rate(rates.requests_per_s),
            output::counted(rates.connections, "connection"),
            output::counted(rates.streams, "stream"),
            rate(rates.streams_opened_per_s),
            rate(rates.streams_closed_per_s),
            rate(rates.map_changes_per_s),
            rates.revision,
        ),
    ];
    let mut below: Vec<String> = Vec::new();
    let tables = [plugins(rates), shadows(rates), drains(rates, now_ms)];
    for table in tables.into_iter().flatten() {
        below.push(String::new());
        below.extend(table.lines());
    }
    // An empty line and the headings; below them perhaps a line of how many are left out.
    let taken = lines.len() + 3 + below.len();
    let room = height.map(|height| height.saturating_sub(taken).max(ROUTES_MIN));
    lines.extend(routes(&rates.routes, room));
    lines.extend(below);
    lines
}

/// What is shown while the proxy does not answer.
pub(super) fn gone(error: &anyhow::Error) -> Vec<String> {
    let text = format!("{error:#}");
    let mut lines: Vec<String> = text.lines().map(output::printable).collect();
    lines.push("waiting for it; Ctrl-C ends".to_owned());
    lines
}

/// All routes, or the busiest ones that there is room for.
fn routes(all: &[Route], room: Option<usize>) -> Vec<String> {
    if all.is_empty() {
        return Vec::new();
    }
    let room = room.unwrap_or(all.len());
    let mut shown: Vec<&Route> = all.iter().collect();
    shown.sort_by(|a, b| b.requests_per_s.total_cmp(&a.requests_per_s));
    shown.truncate(room);
    shown.sort_by(|a, b| a.route.cmp(&b.route));
    let mut table = Table::new(&[
        ("ROUTE", Align::Left),
        ("REQUESTS/S", Align::Right),
        ("2XX", Align::Right),
        ("3XX", Align::Right),
        ("4XX", Align::Right),
        ("5XX", Align::Right),
        ("NO DECISION", Align::Right),
    ]);
    for route in shown {
        let [ok, moved, refused, failed] = route.by_class_per_s.map(rate);
        table.row([
            route.route.clone(),
            rate(route.requests_per_s),
            ok,
            moved,
            refused,
            failed,
            rate(route.no_decision_per_s),
        ]);
    }
    let mut lines = vec![String::new()];
    lines.extend(table.lines());
    if all.len() > room {
        lines.push(format!("… and {} more that do less", all.len() - room));
    }
    lines
}

/// A row for each version in use or with streams, a plugin's active one first.
fn plugins(rates: &Rates) -> Option<Table> {
    if rates.plugins.is_empty() {
        return None;
    }
    let mut table = Table::new(&[
        ("PLUGIN", Align::Left),
        ("VERSION", Align::Left),
        ("STATE", Align::Left),
        ("STREAMS", Align::Right),
        ("DECISIONS/S", Align::Right),
        ("P50", Align::Right),
        ("P99", Align::Right),
        ("TRAPS/S", Align::Right),
        ("OTHER ERRORS/S", Align::Right),
        ("P99 SO FAR", Align::Right),
    ]);
    for plugin in &rates.plugins {
        if plugin.active.is_none() {
            let mut row = vec![
                plugin.plugin.clone(),
                "none".to_owned(),
                "waits for a push".to_owned(),
            ];
            row.resize(10, String::new());
            table.row(row);
        }
        for version in &plugin.versions {
            let is_active = plugin.active.as_ref() == Some(&version.version);
            table.row(version_row(plugin, version, is_active));
        }
    }
    Some(table)
}

fn version_row(plugin: &Plugin, version: &Version, is_active: bool) -> [String; 10] {
    let time = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), output::span);
    let of_plugin = |ns: Option<u64>| match is_active {
        true => time(ns),
        false => String::new(),
    };
    let state = match version.canary_percent {
        Some(percent) => format!("{} {percent} %", version.state),
        None => version.state.clone(),
    };
    [
        if is_active {
            plugin.plugin.clone()
        } else {
            String::new()
        },
        version.version.clone(),
        state,
        output::count(version.streams),
        rate(version.decisions_per_s),
        of_plugin(plugin.p50_ns),
        of_plugin(plugin.p99_ns),
        rate(version.traps_per_s),
        rate(version.other_errors_per_s),
        time(version.p99_so_far_ns),
    ]
}

fn shadows(rates: &Rates) -> Option<Table> {
    let mut table = Table::new(&[
        ("SHADOW", Align::Left),
        ("SAMPLED/S", Align::Right),
        ("COMPARED", Align::Right),
        ("DIFFERING", Align::Right),
        ("", Align::Right),
        ("DROPPED", Align::Right),
    ]);
    let mut is_empty = true;
    for plugin in &rates.plugins {
        let Some(shadow) = &plugin.shadow else {
            continue;
        };
        is_empty = false;
        table.row([
            format!("{}@{}", plugin.plugin, shadow.version),
            rate(shadow.sampled_per_s),
            output::count(shadow.compared),
            output::count(shadow.differing),
            percent(shadow.differing, shadow.compared),
            output::count(shadow.dropped),
        ]);
    }
    (!is_empty).then_some(table)
}

fn drains(rates: &Rates, now_ms: u64) -> Option<Table> {
    if rates.drains.is_empty() {
        return None;
    }
    let mut table = Table::new(&[
        ("DRAIN", Align::Right),
        ("DONE", Align::Right),
        ("LEFT", Align::Right),
        ("ENDS IN", Align::Right),
        ("CAUSE", Align::Left),
        ("SELECTOR", Align::Left),
    ]);
    for drain in &rates.drains {
        table.row([
            drain.id.to_string(),
            percent(drain.closed + drain.gone, drain.matched),
            output::count(drain.left),
            output::age(drain.ends_ms.saturating_sub(now_ms).div_ceil(1_000)),
            drain.cause.clone(),
            conditions(&drain.selector),
        ]);
    }
    Some(table)
}

/// A part of a whole; of nothing there is none.
fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

/// A rate with as many digits as it deserves.
fn rate(per_s: f64) -> String {
    match per_s {
        0.0 => "0".to_owned(),
        small if small < 9.95 => format!("{small:.1}"),
        large => output::count(large.round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plugins::Shadow;
    use super::super::rates::{Drain, Reading};
    use super::super::sample::Sample;
    use super::*;
    use std::time::Duration;

    fn version(version: &str, state: &str, streams: u64, decisions_per_s: f64) -> Version {
        Version {
            version: version.into(),
            state: state.into(),
            canary_percent: (state == "canary").then_some(5.0),
            streams,
            decisions_per_s,
            traps_per_s: 0.0,
            other_errors_per_s: 0.0,
            p99_so_far_ns: (decisions_per_s > 0.0).then_some(4_100),
        }
    }

    fn route(name: &str, requests_per_s: f64) -> Route {
        Route {
            route: name.into(),
            requests_per_s,
            by_class_per_s: [requests_per_s, 0.0, 0.0, 0.0],
            no_decision_per_s: 0.0,
        }
    }

    fn nothing() -> Rates {
        let nothing = Reading::default();
        Rates::between(&nothing, &nothing, Duration::from_secs(1))
    }

    fn rates() -> Rates {
        Rates {
            uptime_s: 250,
            ready: true,
            requests_per_s: 1234.4,
            connections: 1,
            streams: 13,
            streams_opened_per_s: 0.5,
            revision: 41,
            map_changes_per_s: 3.0,
            routes: vec![Route {
                by_class_per_s: [1200.0, 0.0, 34.4, 0.0],
                ..route("all", 1234.4)
            }],
            plugins: vec![
                Plugin {
                    plugin: "by-id".into(),
                    active: Some("4be7a0".into()),
                    decisions_per_s: 1234.4,
                    p50_ns: Some(850),
                    p99_ns: Some(3_200),
                    traps_per_s: 0.0,
                    other_errors_per_s: 0.0,
                    session_errors_per_s: 0.0,
                    versions: vec![
                        version("4be7a0", "active", 9, 1174.4),
                        version("77aa01", "canary", 1, 60.0),
                        version("c0ffee", "shadow", 0, 0.0),
                        version("9f2c11", "draining", 3, 0.0),
                    ],
                    shadow: Some(Shadow {
                        version: "c0ffee".into(),
                        sampled_per_s: 123.0,
                        compared: 1_200,
                        differing: 3,
                        dropped: 0,
                    }),
                },
                Plugin {
                    plugin: "chat".into(),
                    active: None,
                    versions: Vec::new(),
                    shadow: None,
                    ..nothing_of_a_plugin()
                },
            ],
            drains: vec![Drain {
                id: 2,
                state: "running".into(),
                matched: 4,
                closed: 1,
                gone: 0,
                left: 3,
                ends_ms: 100_500,
                cause: "max-draining".into(),
                selector: serde_json::json!({ "plugin": "by-id", "version": "9f2c11d0e4a7b3c2d1" }),
            }],
            ..nothing()
        }
    }

    fn nothing_of_a_plugin() -> Plugin {
        let text = "throwbar_plugin_calls_total{plugin=\"p\",outcome=\"ok\"} 0\n";
        let reading = Reading {
            sample: Sample::parse(text).expect("metrics"),
            drains: Vec::new(),
        };
        let mut rates = Rates::between(&reading, &reading, Duration::from_secs(1));
        rates.plugins.remove(0)
    }

    #[test]
    fn a_screen_shows_routes_versions_the_shadow_and_what_is_drained() {
        let expected = "\
throwbar at 127.0.0.1:2019   up 4m 10s   ready
1,234 requests/s   1 connection   13 streams (+0.5/s -0/s)   3.0 map changes/s (revision 41)

ROUTE  REQUESTS/S    2XX  3XX  4XX  5XX  NO DECISION
all         1,234  1,200    0   34    0            0

PLUGIN  VERSION  STATE             STREAMS  DECISIONS/S     P50     P99  TRAPS/S  OTHER ERRORS/S  P99 SO FAR
by-id   4be7a0   active                  9        1,174  850 ns  3.2 µs        0               0      4.1 µs
        77aa01   canary 5 %              1           60                        0               0      4.1 µs
        c0ffee   shadow                  0            0                        0               0           -
        9f2c11   draining                3            0                        0               0           -
chat    none     waits for a push

SHADOW        SAMPLED/S  COMPARED  DIFFERING         DROPPED
by-id@c0ffee        123     1,200          3  0.2 %        0

DRAIN    DONE  LEFT  ENDS IN  CAUSE         SELECTOR
    2  25.0 %     3      41s  max-draining  plugin=by-id version=9f2c11d0e4a7";
        let lines = lines(&rates(), "127.0.0.1:2019", 60_000, None);
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn a_proxy_that_did_nothing_yet_is_two_lines() {
        let expected = "\
throwbar at unix:a   up 0s   NOT READY
0 requests/s   0 connections   0 streams (+0/s -0/s)   0 map changes/s (revision 0)";
        assert_eq!(
            lines(&nothing(), "unix:a", 0, Some(24)).join("\n"),
            expected
        );
    }

    #[test]
    fn a_low_screen_shows_the_busiest_routes_and_the_plugins_whole() {
        let all = (0..40).map(|at| route(&format!("r{at:02}"), f64::from(at % 10)));
        let rates = Rates {
            routes: all.collect(),
            ..rates()
        };
        let shown = lines(&rates, "unix:a", 0, Some(22));
        let text = shown.join("\n");
        let names: Vec<&str> = shown
            .iter()
            .filter_map(|line| line.split(' ').next())
            .filter(|name| name.starts_with('r') && name.len() == 3)
            .collect();
        assert_eq!(names, ["r09", "r19", "r29", "r39"], "{text}");
        assert!(text.contains("… and 36 more that do less"), "{text}");
        assert_eq!(shown.len(), 22, "{text}");
        let high = lines(&rates, "unix:a", 0, Some(60));
        assert!(high.len() <= 60 && high.len() > 55, "{}", high.len());
    }

    #[test]
    fn a_proxy_that_is_gone_is_waited_for() {
        let error = anyhow::anyhow!("no proxy answers at a: refused\n  start one");
        let expected = [
            "no proxy answers at a: refused",
            "  start one",
            "waiting for it; Ctrl-C ends",
        ];
        assert_eq!(gone(&error), expected);
    }
}
