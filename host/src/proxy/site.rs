//! What a worker serves: routes, limits and upstreams of one config, published to all workers with one atomic store.

use super::access_log::Prepared;
use super::encode::Forwarded;
use super::matcher::Matcher;
use super::{Handler, Limits, OnFailure};
use crate::config::Config;
use crate::deadline::Ticks;
use crate::listener::framing::HeadLimits;
use crate::listener::socket::Timeouts;
use crate::metrics::RouteCounters;
use crate::plugin::{PluginSlot, Reply, RouteTarget};
use crate::stream::Times;
use crate::upstream::balance::Balancer;
use crate::upstream::connection::PoolLimits;
use crate::upstream::exchange::ExchangeLimits;
use crate::upstream::guard::Guard;
use crate::upstream::tls::Tls;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// Everything a request needs of the config.
pub struct Site {
    /// In order: the first that matches decides.
    pub routes: Vec<Route>,
    /// What may be dialled.
    pub guard: Guard,
    /// What connects over TLS.
    pub tls: Tls,
    /// Bounds.
    pub limits: Limits,
    /// Upgraded streams.
    pub streams: crate::stream::Config,
    /// The bounds in ticks.
    pub ticks: LimitTicks,
    upstreams: Vec<crate::upstream::Config>,
}

/// Timeouts of [`Limits`], made once.
pub struct LimitTicks {
    /// Of a client's connection.
    pub downstream: Timeouts,
    /// Of idle upstream connections.
    pub pool: PoolLimits,
    /// Between two reads of a response body.
    pub response_body: Ticks,
    /// Of an exchange.
    pub exchange: ExchangeLimits,
}

/// A route at work.
pub struct Route {
    /// Its name.
    pub name: Arc<str>,
    /// The same, as lines of the log have it.
    pub log: Prepared,
    /// Which requests it is for.
    pub matcher: Matcher,
    /// What becomes of them.
    pub action: Action,
    /// Of its streams.
    pub streams: Times,
    /// Counters by worker.
    pub counters: Arc<[RouteCounters]>,
}

/// What becomes of a request.
pub enum Action {
    /// A plugin decides.
    Plugin(Arc<PluginSlot>, OnFailure),
    /// It is sent there.
    Forward(RouteTarget),
    /// It is answered; the body may hold `${header.NAME}`.
    Reply(Reply),
}

impl Site {
    /// Puts a checked config to work; `own` are the addresses we listen on. Counters of routes that keep their name are
    /// kept.
    ///
    /// # Errors
    /// If a route names a plugin that has no slot.
    pub fn new(
        config: &Config,
        own: Vec<SocketAddr>,
        slot: impl Fn(&str) -> Option<Arc<PluginSlot>>,
        before: Option<&Site>,
    ) -> Result<Self, String> {
        let counters = |name: &str| {
            let kept =
                before.and_then(|site| site.routes.iter().find(|route| &*route.name == name));
            kept.map_or_else(
                || {
                    (0..config.workers)
                        .map(|_| RouteCounters::default())
                        .collect()
                },
                |r| r.counters.clone(),
            )
        };
        let route = |route: &super::RouteConfig| -> Result<Route, String> {
            let action = match &route.handler {
                Handler::Plugin { plugin, on_failure } => {
                    let slot = slot(plugin)
                        .ok_or_else(|| format!("route {:?}: no plugin {plugin:?}", route.name))?;
                    Action::Plugin(slot, on_failure.clone())
                }
                Handler::To(target, port) => {
                    Action::Forward(RouteTarget::Address(target.clone(), *port))
                }
                Handler::Upstream(name) => {
                    Action::Forward(RouteTarget::Upstream(name.as_str().into(), None))
                }
                Handler::Reply(reply) => Action::Reply(reply.clone()),
            };
            let (name, matcher) = (route.name.as_str().into(), route.matcher.clone());
            Ok(Route {
                counters: counters(&route.name),
                log: Prepared::new(|line| line.text("route", &route.name)),
                name,
                matcher,
                action,
                streams: route.streams.over(config.streams.times),
            })
        };
        // Where the admin API is bound does not change while we run.
        let own_socket = match before {
            Some(site) => site.guard.own_socket(),
            None => config.admin.listen.socket(),
        };
        let own_socket = own_socket.map(Into::into);
        Ok(Self {
            routes: config.routes.iter().map(route).collect::<Result<_, _>>()?,
            guard: Guard::new(config.guard.clone(), own).beside(own_socket),
            tls: Tls::new(config.upstream_tls.clone()),
            ticks: LimitTicks::new(&config.limits),
            limits: config.limits.clone(),
            streams: config.streams.clone(),
            upstreams: config.upstreams.clone(),
        })
    }
}

impl LimitTicks {
    fn new(limits: &Limits) -> Self {
        Self {
            downstream: Timeouts {
                first_byte: Ticks::at_least(limits.first_byte_timeout),
                head: Ticks::at_least(limits.head_timeout),
                idle: Ticks::at_least(limits.idle_timeout),
                body: Ticks::at_least(limits.body_timeout),
                write: Ticks::at_least(limits.write_timeout),
            },
            pool: PoolLimits {
                per_endpoint_max: limits.pool_per_endpoint_max,
                idle_timeout: Ticks::at_least(limits.pool_idle_timeout),
            },
            response_body: Ticks::at_least(limits.response_body_timeout),
            exchange: ExchangeLimits {
                response: Ticks::at_least(limits.response_timeout),
                write: Ticks::at_least(limits.response_body_timeout),
                head_bytes_max: limits.head_bytes_max,
            },
        }
    }
}

impl Limits {
    /// The bounds of a request head.
    pub fn head(&self) -> HeadLimits {
        HeadLimits {
            bytes_max: self.head_bytes_max,
            fields_max: self.headers_max,
            target_bytes_max: self.uri_bytes_max,
        }
    }

    /// What is said of us and a client.
    pub fn forwarded<'a>(&self, client: &'a str) -> Forwarded<'a> {
        Forwarded {
            client,
            via: self.via,
        }
    }
}

/// A worker's own view of the site: with the state that workers do not share.
pub struct SiteView {
    /// The site.
    pub site: Arc<Site>,
    balancers: HashMap<Box<str>, Rc<Balancer>>,
}

impl SiteView {
    /// A view; upstreams whose config did not change keep their state.
    pub fn new(site: Arc<Site>, before: Option<&SiteView>) -> Rc<Self> {
        let kept = |config: &crate::upstream::Config| {
            let before = before?;
            let same = before.site.upstreams.iter().any(|old| old == config);
            same.then(|| before.balancers.get(config.name.as_str()).cloned())
                .flatten()
        };
        let balancers = site
            .upstreams
            .iter()
            .map(|u| {
                (
                    u.name.as_str().into(),
                    kept(u).unwrap_or_else(|| Balancer::new(u)),
                )
            })
            .collect();
        Rc::new(Self { balancers, site })
    }

    /// Whether the config has an upstream of that name.
    pub fn has_upstream(&self, name: &str) -> bool {
        self.balancers.contains_key(name)
    }

    /// An upstream by name.
    pub fn balancer(&self, name: &str) -> Option<Rc<Balancer>> {
        self.balancers.get(name).cloned()
    }
}
