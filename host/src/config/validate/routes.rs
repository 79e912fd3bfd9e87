//! Checks of `[[route]]`: what a route names exists, may be dialled, and a request can reach it.

use super::names::known;
use super::{pings, refused, trusted};
use crate::config::Config;
use crate::config::diagnostic::{Finding, join};
use crate::proxy::{Handler, OnFailure};
use crate::stream::RouteTimes;

/// Everything that is wrong with the routes.
pub(super) fn routes(config: &Config, found: &mut Vec<Finding>) {
    let guard = trusted(config);
    let upstreams = || {
        config
            .upstreams
            .iter()
            .map(|upstream| upstream.name.as_str())
    };
    for (index, route) in config.routes.iter().enumerate() {
        let path = format!("route[{index}]");
        match &route.handler {
            Handler::Plugin { plugin, on_failure } => {
                let plugins = config.plugins.iter().map(|plugin| plugin.name.as_str());
                known(join(&path, "plugin"), "plugin", plugin, plugins, found);
                if let OnFailure::Upstream(upstream) = on_failure {
                    known(
                        format!("{path}.on_failure.upstream"),
                        "upstream",
                        upstream,
                        upstreams(),
                        found,
                    );
                }
            }
            Handler::To(target, port) => {
                if let Some(why) = refused(&guard, (target, *port)) {
                    found.push(Finding::new(
                        join(&path, "to"),
                        format!("never dialled: {why}"),
                        "never dialled",
                    ));
                }
            }
            Handler::Upstream(upstream) => known(
                join(&path, "upstream"),
                "upstream",
                upstream,
                upstreams(),
                found,
            ),
            Handler::Reply(_) => {
                if route.streams != RouteTimes::default() {
                    found.push(Finding::new(
                        join(&path, "streams"),
                        "`streams` is for routes that forward: a reply opens none",
                        "never in force",
                    ));
                }
            }
        }
        let times = route.streams;
        let intervals = [times.ping_client, times.ping_upstream];
        pings(&join(&path, "streams"), intervals, found);
        // A plugin may pass a request on to the next route; no other handler does.
        let earlier = config.routes[..index].iter().position(|earlier| {
            !matches!(earlier.handler, Handler::Plugin { .. })
                && (earlier.matcher.is_empty() || earlier.matcher == route.matcher)
        });
        if let Some(earlier) = earlier {
            let name = &config.routes[earlier].name;
            let finding = Finding::new(
                &path,
                format!(
                    "no request reaches route {:?}: route {name:?} before it takes them all",
                    route.name
                ),
                "never reached",
            );
            found.push(finding.other(format!("route[{earlier}]")).help(
                "the first route that matches decides: put the narrower one first".to_owned(),
            ));
        }
    }
}
