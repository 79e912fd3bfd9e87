//! Handlers: `headers`, `subroute`, `reverse_proxy`, `static_response`.

use super::json::{Node, Object};
use super::{Scope, Translation, placeholder};
use crate::cli::import::draft::{Handler, Plugin, Reply, Upstream};
use std::collections::{BTreeMap, BTreeSet};

/// What the port of an endpoint is.
enum Port {
    /// In this header field.
    Field(String),
    /// This one.
    Fixed(String),
    /// That of the map's entry.
    OfEntry,
}

impl Translation<'_> {
    /// One handler of a route.
    pub(super) fn handler(&mut self, node: Node<'_>, scope: &mut Scope) {
        let mut handler = node.clone().object(self.findings);
        let Some(kind) = handler
            .take("handler")
            .and_then(|kind| kind.text(self.findings))
        else {
            let missing = format!(
                "{}.handler: missing, expected the name of a handler",
                node.path
            );
            self.findings.wrong.push(missing);
            return;
        };
        match kind {
            "map" => self.map(&node, handler, scope),
            "headers" => self.headers(handler, scope),
            "subroute" => {
                if let Some(routes) = handler.take("routes") {
                    self.routes(routes, &mut scope.clone());
                }
                handler.finish(self.findings);
            }
            "reverse_proxy" => self.reverse_proxy(&node, handler, scope),
            "static_response" => self.static_response(&node, handler, scope),
            other => node.unsupported(
                format_args!("handler {other:?} has no counterpart"),
                self.findings,
            ),
        }
    }

    /// Fields of requests and responses.
    fn headers(&mut self, mut headers: Object<'_>, scope: &mut Scope) {
        if let Some(request) = headers.take("request") {
            self.removals(request, scope);
        }
        if let Some(response) = headers.take("response") {
            let mut response = response.object(self.findings);
            response.take("deferred");
            if let Some(set) = response.take("set") {
                self.fields(set, scope);
            }
            response.finish(self.findings);
        }
        headers.finish(self.findings);
    }

    fn fields(&mut self, set: Node<'_>, scope: &mut Scope) {
        for (name, node) in set.object(self.findings).take_all() {
            let values = node.clone().texts(self.findings);
            let is_map = |name: &str| self.maps.contains_key(name);
            match values.as_slice() {
                [value] if placeholder::is_plain(value, is_map) => {
                    let value = value.replace("${", "$${");
                    scope.response.insert(name.to_ascii_lowercase(), value);
                }
                _ => node.unsupported("expected one value without placeholders", self.findings),
            }
        }
    }

    fn removals(&mut self, request: Node<'_>, scope: &mut Scope) {
        let mut request = request.object(self.findings);
        if let Some(names) = request.take("delete") {
            let names = names.texts(self.findings).into_iter();
            scope.removed.extend(names.map(str::to_ascii_lowercase));
        }
        request.finish(self.findings);
    }

    fn static_response(&mut self, node: &Node<'_>, mut response: Object<'_>, scope: &Scope) {
        let mut scope = scope.clone();
        let status = match response.take("status_code") {
            None => Some(200),
            Some(node) => {
                let number = match node.value {
                    serde_json::Value::String(text) => text.parse().ok(),
                    other => other.as_u64(),
                };
                let status = number
                    .and_then(|n| u16::try_from(n).ok())
                    .filter(|n| (200..600).contains(n));
                if status.is_none() {
                    node.unsupported("expected a status from 200 to 599", self.findings);
                }
                status
            }
        };
        if let Some(headers) = response.take("headers") {
            self.fields(headers, &mut scope);
        }
        let body = match response.take("body") {
            None => Some(String::new()),
            Some(node) => node.text(self.findings).and_then(|text| {
                let is_map = |name: &str| self.maps.contains_key(name);
                placeholder::reply_body(text, is_map)
                    .map_err(|name| {
                        node.unsupported(format_args!("{name} has no counterpart"), self.findings)
                    })
                    .ok()
            }),
        };
        response.take("close");
        response.finish(self.findings);
        if scope
            .conditions
            .iter()
            .any(|condition| condition.mapped.is_some())
        {
            node.unsupported(
                "an answer that depends on the map has no counterpart",
                self.findings,
            );
            return;
        }
        if let (Some(status), Some(body)) = (status, body) {
            let reply = Reply {
                status,
                headers: scope.response.clone(),
                body,
            };
            self.route("reply", &Handler::Reply(reply), &scope);
        }
    }

    fn reverse_proxy(&mut self, node: &Node<'_>, mut proxy: Object<'_>, scope: &Scope) {
        let mut scope = scope.clone();
        if let Some(headers) = proxy.take("headers") {
            let mut headers = headers.object(self.findings);
            if let Some(request) = headers.take("request") {
                self.removals(request, &mut scope);
            }
            headers.finish(self.findings);
        }
        if !scope.response.is_empty() {
            node.unsupported(
                "fields set in responses of upstreams have no counterpart",
                self.findings,
            );
        }
        let kept = "no change closes a stream: stream_close_delay is not needed";
        proxy.pass_over("stream_close_delay", kept, self.findings);
        proxy.pass_over(
            "flush_interval",
            "responses are never held back: flush_interval is not needed",
            self.findings,
        );
        if let Some(transport) = proxy.take("transport") {
            let mut transport = transport.object(self.findings);
            if let Some(protocol) = transport.take("protocol")
                && protocol.value != "http"
            {
                protocol.unsupported("expected \"http\"", self.findings);
            }
            transport.finish(self.findings);
        }
        let policy = self.policy(&mut proxy);
        let mut dials = Vec::new();
        for upstream in proxy
            .take("upstreams")
            .map(|node| node.items(self.findings))
            .unwrap_or_default()
        {
            let mut upstream = upstream.object(self.findings);
            let dial = upstream.take("dial");
            dials.extend(dial.and_then(|node| Some((node.text(self.findings)?, node.clone()))));
            upstream.finish(self.findings);
        }
        proxy.finish(self.findings);
        match dials.as_slice() {
            [] => node.unsupported("no upstream that is written out", self.findings),
            [(dial, place)] if dial.contains('{') => self.by_map(dial, place, &scope),
            _ => self.fixed(node, &dials, policy, &scope),
        }
    }

    /// Which endpoint of several a request goes to.
    fn policy(&mut self, proxy: &mut Object<'_>) -> &'static str {
        let Some(balancing) = proxy.take("load_balancing") else {
            return "round-robin";
        };
        let mut balancing = balancing.object(self.findings);
        let mut policy = "round-robin";
        if let Some(selection) = balancing.take("selection_policy") {
            let mut selection = selection.object(self.findings);
            if let Some(node) = selection.take("policy") {
                policy = match node.text(self.findings) {
                    Some("least_conn") => "least-requests",
                    Some("ip_hash" | "client_ip_hash") => "hash",
                    Some("random" | "round_robin") | None => "round-robin",
                    Some(other) => {
                        node.unsupported(
                            format_args!("policy {other:?} has no counterpart"),
                            self.findings,
                        );
                        policy
                    }
                };
            }
            selection.finish(self.findings);
        }
        balancing.finish(self.findings);
        policy
    }

    /// Endpoints that are written out.
    fn fixed(
        &mut self,
        node: &Node<'_>,
        dials: &[(&str, Node<'_>)],
        policy: &'static str,
        scope: &Scope,
    ) {
        if !scope.removed.is_empty() {
            node.unsupported("only a plugin removes fields of a request", self.findings);
        }
        if scope
            .conditions
            .iter()
            .any(|condition| condition.mapped.is_some())
        {
            node.unsupported(
                "an upstream that depends on the map but is not in it has no counterpart",
                self.findings,
            );
            return;
        }
        let mut endpoints = Vec::with_capacity(dials.len());
        for (dial, place) in dials {
            // Without a port Caddy dials 80.
            let dialled = dial.strip_prefix("tcp/").unwrap_or(dial);
            let with_port = match dialled.parse::<crate::store::Target>() {
                Ok(target) if target.port().is_some() => dialled.to_owned(),
                Ok(_) => format!("{dialled}:80"),
                Err(error) => {
                    place.unsupported(format_args!("{error}"), self.findings);
                    continue;
                }
            };
            endpoints.push(with_port);
        }
        let (kind, handler) = match endpoints.as_slice() {
            [] => return,
            [one] => ("forward", Handler::To(one.clone())),
            _ => {
                let upstream = Upstream { endpoints, policy };
                let known = self
                    .draft
                    .upstreams
                    .iter()
                    .find(|(_, known)| **known == upstream);
                let name = match known.map(|(name, _)| name.clone()) {
                    Some(name) => name,
                    None => self.unused("upstream"),
                };
                self.draft.upstreams.insert(name.clone(), upstream);
                ("forward", Handler::Upstream(name))
            }
        };
        self.route(kind, &handler, scope);
    }

    /// An endpoint that a map names: what the built-in plugin by-header does.
    fn by_map(&mut self, dial: &str, place: &Node<'_>, scope: &Scope) {
        let found = placeholder::leading(dial)
            .and_then(|(name, rest)| Some((name, self.dialled(name)?, rest)));
        let Some((name, map, rest)) = found else {
            place.unsupported(
                format_args!("{dial:?}: expected the placeholder of a map, then a port"),
                self.findings,
            );
            return;
        };
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => Some(Port::OfEntry),
            Some(port) => match placeholder::header(port) {
                Some(field) => Some(Port::Field(field)),
                None => port
                    .parse::<u16>()
                    .ok()
                    .filter(|port| *port > 0)
                    .map(|_| Port::Fixed(port.to_owned())),
            },
            None => None,
        };
        let Some(port) = port else {
            place.unsupported(
                format_args!("{dial:?}: expected a port, or a header field that holds it"),
                self.findings,
            );
            return;
        };
        let mut fields = BTreeSet::from([map.header.clone()]);
        let mut settings = BTreeMap::from([
            ("header", map.header.clone()),
            ("bucket", map.bucket.clone()),
            ("unknown", "pass".to_owned()),
        ]);
        match port {
            Port::Field(field) => {
                fields.insert(field.clone());
                settings.insert("port-header", field);
            }
            Port::Fixed(port) => drop(settings.insert("port", port)),
            Port::OfEntry => drop(settings.insert("port-header", String::new())),
        }
        if map.finds_empty {
            settings.insert("absent", "empty".to_owned());
        }
        if scope.removed.is_empty() {
            settings.insert("strip", "false".to_owned());
        } else if scope.removed != fields {
            let names: Vec<&str> = fields.iter().map(String::as_str).collect();
            let why = format!(
                "removes other fields than {}: only all of these or none can be",
                names.join(" and ")
            );
            place.unsupported(why, self.findings);
        }
        match scope
            .conditions
            .iter()
            .find_map(|condition| condition.mapped.as_deref())
        {
            Some(mapped) if mapped != name => {
                place.unsupported(
                    format_args!("is under a condition on another map, {mapped:?}"),
                    self.findings,
                );
            }
            Some(_) => {}
            None if map.has_default => {}
            None => self
                .findings
                .note("a key that the map does not have goes to the next route; Caddy answers 502"),
        }
        let plugin = Plugin {
            source: "builtin:by-header",
            buckets: BTreeMap::from([(map.bucket.clone(), "read")]),
            settings,
        };
        let known = self
            .draft
            .plugins
            .iter()
            .find(|(_, known)| **known == plugin);
        let plugin_name = match known.map(|(name, _)| name.clone()) {
            Some(name) => name,
            None => self.unused("by-header"),
        };
        self.draft.plugins.insert(plugin_name.clone(), plugin);
        self.route("by-map", &Handler::Plugin(plugin_name), scope);
    }
}
