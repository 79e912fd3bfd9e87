//! Caddy's config as JSON, as far as it routes: listeners, maps, routes to upstreams, fixed answers.

mod condition;
mod handlers;
mod json;
mod maps;
mod placeholder;

#[cfg(test)]
mod tests;

use super::Findings;
use super::draft::{Admin, Draft, Handler, Listener, Route};
use condition::Condition;
use json::Node;
use maps::Map;
use std::collections::{BTreeMap, BTreeSet};

/// Makes a draft of a config.
///
/// # Errors
/// If the text is no JSON at all.
pub(super) fn translate(
    text: &str,
    without_token: bool,
    findings: &mut Findings,
) -> Result<Draft, String> {
    let document: serde_json::Value = serde_json::from_str(text).map_err(|error| {
        let caddyfile = !text.trim_start().starts_with('{') || !text.contains('"');
        let hint = if caddyfile || text.contains("reverse_proxy {") {
            ": a Caddyfile becomes JSON with `caddy adapt --config Caddyfile`"
        } else {
            ""
        };
        format!("no JSON: {error}{hint}")
    })?;
    let mut translation = Translation {
        draft: Draft::new(),
        maps: BTreeMap::new(),
        names: BTreeSet::new(),
        findings,
    };
    translation.document(Node::root(&document), without_token);
    Ok(translation.draft)
}

/// The draft as it grows.
struct Translation<'f> {
    draft: Draft,
    /// By the name of their placeholder, such as `upstream_ip`.
    maps: BTreeMap<String, Map>,
    /// Of routes, upstreams and plugins.
    names: BTreeSet<String>,
    findings: &'f mut Findings,
}

/// What holds where a handler stands.
#[derive(Clone)]
struct Scope {
    /// Any of these.
    conditions: Vec<Condition>,
    /// Fields that are set in a response.
    response: BTreeMap<String, String>,
    /// Fields that are removed from a request, in lower case.
    removed: BTreeSet<String>,
}

impl Translation<'_> {
    fn document(&mut self, document: Node<'_>, without_token: bool) {
        let mut document = document.object(self.findings);
        self.admin(document.take("admin"), without_token);
        let notes = [
            (
                "logging",
                "logs are not carried over: the access log is JSON on standard output",
            ),
            (
                "storage",
                "storage is not carried over: it is for certificates",
            ),
        ];
        for (key, note) in notes {
            document.pass_over(key, note, self.findings);
        }
        if let Some(apps) = document.take("apps") {
            let mut apps = apps.object(self.findings);
            if let Some(http) = apps.take("http") {
                self.http(http);
            }
            apps.finish(self.findings);
        }
        document.finish(self.findings);
        self.tell_unused_maps();
        if self.draft.listener.is_empty() && self.findings.wrong.is_empty() {
            let nothing = "apps.http.servers: no server that listens, expected one".to_owned();
            self.findings.wrong.push(nothing);
        }
        let last = self.draft.route.last();
        if last.is_none_or(|route| {
            !route.matcher.is_empty() || matches!(route.handler, Handler::Plugin(_))
        }) {
            self.findings.note(
                "a request that no route is for is answered 404; Caddy answers 200 without a body",
            );
        }
    }

    fn admin(&mut self, admin: Option<Node<'_>>, without_token: bool) {
        let mut listen = None;
        if let Some(admin) = admin {
            let mut admin = admin.object(self.findings);
            if let Some(node) = admin.take("listen") {
                listen =
                    node.text(self.findings)
                        .and_then(|text| match text.strip_prefix("unix/") {
                            Some(path) => Some(format!("unix:{path}")),
                            None => self.address(text, &node),
                        });
            }
            let origins = "the admin API has a token; origins are not looked at";
            for key in ["enforce_origin", "origins"] {
                admin.pass_over(key, origins, self.findings);
            }
            admin.pass_over(
                "config",
                "a changed config is not saved by itself",
                self.findings,
            );
            admin.finish(self.findings);
        }
        if !without_token {
            self.findings.note(
                "the admin API asks for the token in data/admin.token; Caddy's asks for none, and --without-token makes it so",
            );
        }
        let auth = without_token.then_some("none");
        if listen.is_some() || auth.is_some() {
            self.draft.admin = Some(Admin { listen, auth });
        }
    }

    fn http(&mut self, http: Node<'_>) {
        let mut http = http.object(self.findings);
        for key in [
            "http_port",
            "https_port",
            "grace_period",
            "shutdown_delay",
            "metrics",
        ] {
            http.pass_over(
                key,
                &format!("apps.http.{key} is not carried over"),
                self.findings,
            );
        }
        let servers = match http.take("servers") {
            Some(servers) => servers.object(self.findings).take_all(),
            None => Vec::new(),
        };
        http.finish(self.findings);
        for (index, (name, server)) in servers.into_iter().enumerate() {
            if index > 0 {
                // Routes are of the proxy, not of a listener.
                server.unsupported(
                    "a second server: its routes would be those of every listener",
                    self.findings,
                );
                continue;
            }
            self.server(name, server);
        }
    }

    fn server(&mut self, name: &str, server: Node<'_>) {
        let mut server = server.object(self.findings);
        for node in server
            .take("listen")
            .map(|node| node.items(self.findings))
            .unwrap_or_default()
        {
            let Some(listen) = node
                .text(self.findings)
                .and_then(|text| self.address(text, &node))
            else {
                continue;
            };
            let name = match self.draft.listener.len() {
                0 => name.to_owned(),
                more => format!("{name}-{}", more + 1),
            };
            self.draft.listener.push(Listener { name, listen });
        }
        let plain = server.take("automatic_https").is_some_and(|node| {
            let mut https = node.object(self.findings);
            for key in ["disable_redirects", "disable_certificates"] {
                https.take(key);
            }
            let disabled = https.take("disable").is_some_and(|node| node.value == true);
            https.finish(self.findings);
            disabled
        });
        for key in ["logs", "metrics", "protocols"] {
            server.pass_over(
                key,
                &format!("{key} of a server are not carried over"),
                self.findings,
            );
        }
        if let Some(routes) = server.take("routes") {
            let mut scope = Scope {
                conditions: vec![Condition::default()],
                response: BTreeMap::new(),
                removed: BTreeSet::new(),
            };
            self.routes(routes, &mut scope);
        }
        server.finish(self.findings);
        let hosts = self
            .draft
            .route
            .iter()
            .any(|route| !route.matcher.host.is_empty());
        let tls_port = self
            .draft
            .listener
            .iter()
            .any(|listener| listener.listen.ends_with(":443"));
        if tls_port || (hosts && !plain) {
            let text = format!(
                "apps.http.servers.{name}: HTTPS has no counterpart: this listens in plain HTTP"
            );
            self.findings.unsupported.push(text);
        }
    }

    /// An address to listen on, as Caddy writes it.
    fn address(&mut self, text: &str, node: &Node<'_>) -> Option<String> {
        let bare = text.strip_prefix("tcp/").unwrap_or(text);
        match crate::cli::serve::parse_listen(bare) {
            Ok(address) => {
                if bare.starts_with(':') {
                    self.findings.note(format!(
                        "{bare} is every IPv4 interface here; write \"[::]{bare}\" for IPv6, too"
                    ));
                    return Some(bare.to_owned());
                }
                Some(address.to_string())
            }
            Err(expected) => {
                node.unsupported(format_args!("{text:?}: {expected}"), self.findings);
                None
            }
        }
    }

    /// Routes in their order: the first that answers ends a request.
    fn routes(&mut self, routes: Node<'_>, scope: &mut Scope) {
        for node in routes.items(self.findings) {
            let path = node.path.clone();
            let mut route = node.object(self.findings);
            let own = condition::any_of(route.take("match"), self.findings);
            let is_for_all = own == [Condition::default()];
            let mut inner = scope.clone();
            inner.conditions = self.both(&scope.conditions, &own, &path);
            let before = self.draft.route.len();
            for handler in route
                .take("handle")
                .map(|node| node.items(self.findings))
                .unwrap_or_default()
            {
                self.handler(handler, &mut inner);
            }
            // Both say in which order Caddy looks, which is ours.
            for key in ["group", "terminal"] {
                route.take(key);
            }
            route.finish(self.findings);
            let changed = inner.response != scope.response || inner.removed != scope.removed;
            if changed && self.draft.route.len() == before {
                if is_for_all {
                    (scope.response, scope.removed) = (inner.response, inner.removed);
                } else {
                    let why = format!(
                        "{path}: fields that a condition sets for later routes have no counterpart"
                    );
                    self.findings.unsupported.push(why);
                }
            }
        }
    }

    fn both(&mut self, outer: &[Condition], inner: &[Condition], path: &str) -> Vec<Condition> {
        let mut both = Vec::new();
        for outer in outer {
            for inner in inner {
                match outer.and(inner) {
                    Ok(condition) => both.push(condition),
                    Err(what) => self.findings.unsupported.push(format!(
                        "{path}.match: two conditions on the {what}, one inside the other, have no counterpart"
                    )),
                }
            }
        }
        both
    }

    /// A route for each of the conditions.
    fn route(&mut self, kind: &str, handler: &Handler, scope: &Scope) {
        for condition in &scope.conditions {
            let name = self.unused(kind);
            self.draft.route.push(Route {
                name,
                handler: handler.clone(),
                matcher: condition.matcher.clone(),
            });
        }
    }

    /// A name that nothing has yet.
    fn unused(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut number = 1;
        while !self.names.insert(name.clone()) {
            number += 1;
            name = format!("{wanted}-{number}");
        }
        name
    }
}
