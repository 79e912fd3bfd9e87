//! Rates as people read them: a few lines and two tables.

use super::super::output::{self, Align, Table};
use super::rates::{Plugin, Rates};

/// The lines of a screen, as many as fit; widths are the terminal's to cut.
pub(super) fn lines(rates: &Rates, admin: &str) -> Vec<String> {
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
        String::new(),
    ];
    lines.extend(routes(rates).lines());
    if !rates.plugins.is_empty() {
        lines.push(String::new());
        lines.extend(plugins(rates).lines());
    }
    lines
}

fn routes(rates: &Rates) -> Table {
    let mut table = Table::new(&[
        ("ROUTE", Align::Left),
        ("REQUESTS/S", Align::Right),
        ("2XX", Align::Right),
        ("3XX", Align::Right),
        ("4XX", Align::Right),
        ("5XX", Align::Right),
        ("NO DECISION", Align::Right),
    ]);
    for route in &rates.routes {
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
    table
}

/// A row for each plugin's active version, and one for each other that still has streams.
fn plugins(rates: &Rates) -> Table {
    let mut table = Table::new(&[
        ("PLUGIN", Align::Left),
        ("VERSION", Align::Left),
        ("STREAMS", Align::Right),
        ("DECISIONS/S", Align::Right),
        ("P50", Align::Right),
        ("P99", Align::Right),
        ("TRAPS/S", Align::Right),
        ("OTHER ERRORS/S", Align::Right),
    ]);
    for plugin in &rates.plugins {
        let time = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), output::span);
        table.row([
            plugin.plugin.clone(),
            plugin.active.clone().unwrap_or_else(|| "none".to_owned()),
            active_streams(plugin).to_string(),
            rate(plugin.decisions_per_s),
            time(plugin.p50_ns),
            time(plugin.p99_ns),
            rate(plugin.traps_per_s),
            rate(plugin.other_errors_per_s),
        ]);
        let is_old = |version: &&super::rates::Version| {
            version.streams > 0 && plugin.active.as_ref() != Some(&version.version)
        };
        for version in plugin.versions.iter().filter(is_old) {
            let mut row = vec![
                String::new(),
                version.version.clone(),
                version.streams.to_string(),
            ];
            row.resize(8, String::new());
            table.row(row);
        }
    }
    table
}

fn active_streams(plugin: &Plugin) -> u64 {
    let is_active =
        |version: &&super::rates::Version| plugin.active.as_ref() == Some(&version.version);
    let active = plugin.versions.iter().filter(is_active);
    active.map(|version| version.streams).sum()
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
    use super::super::rates::{Route, Version};
    use super::*;

    #[test]
    fn a_screen_shows_routes_and_the_versions_that_streams_belong_to() {
        let rates = Rates {
            uptime_s: 250,
            ready: true,
            requests_per_s: 1234.4,
            connections: 1,
            streams: 12,
            streams_opened_per_s: 0.5,
            streams_closed_per_s: 0.0,
            revision: 41,
            map_changes_per_s: 3.0,
            routes: vec![Route {
                route: "all".into(),
                requests_per_s: 1234.4,
                by_class_per_s: [1200.0, 0.0, 34.4, 0.0],
                no_decision_per_s: 0.0,
            }],
            plugins: vec![Plugin {
                plugin: "by-id".into(),
                active: Some("4be7a0".into()),
                decisions_per_s: 1234.4,
                p50_ns: Some(850),
                p99_ns: Some(3_200),
                traps_per_s: 0.0,
                other_errors_per_s: 0.0,
                versions: [("4be7a0", 9), ("9f2c11", 3), ("e01234", 0)]
                    .map(|(version, streams)| Version {
                        version: version.into(),
                        streams,
                    })
                    .into(),
            }],
        };
        let expected = "\
throwbar at 127.0.0.1:2019   up 4m 10s   ready
1,234 requests/s   1 connection   12 streams (+0.5/s -0/s)   3.0 map changes/s (revision 41)

ROUTE  REQUESTS/S    2XX  3XX  4XX  5XX  NO DECISION
all         1,234  1,200    0   34    0            0

PLUGIN  VERSION  STREAMS  DECISIONS/S     P50     P99  TRAPS/S  OTHER ERRORS/S
by-id   4be7a0         9        1,234  850 ns  3.2 µs        0               0
        9f2c11         3";
        assert_eq!(lines(&rates, "127.0.0.1:2019").join("\n"), expected);
    }
}
