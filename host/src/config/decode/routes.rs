//! `[[route]]`: what it matches and what becomes of it.

use super::address;
use super::limits::route_streams;
use super::shorten;
use super::table::{Field, Table, Walk};
use super::text::header_templates;
use super::word::Text;
use crate::config::diagnostic::Finding;
use crate::plugin::Reply;
use crate::proxy::matcher::{HeaderPattern, HostPattern, Matcher, PathPattern, Pattern};
use crate::proxy::{Handler, OnFailure, RouteConfig};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use std::net::IpAddr;
use toml::de::DeValue;

/// Keys of which a route has exactly one.
const HANDLERS: [&str; 4] = ["plugin", "to", "upstream", "reply"];

pub(super) fn route(index: usize, mut table: Table<'_>, walk: &mut Walk<'_>) -> RouteConfig {
    let name = table.text("name", walk).map(|text| text.value);
    let matcher = table.table("match", walk).map(|table| matcher(table, walk));
    let handler = handler(&mut table, walk);
    let streams = table.table("streams", walk);
    let streams = streams.map(|table| route_streams(table, walk));
    table.finish(walk);
    RouteConfig {
        name: name.unwrap_or_else(|| format!("route-{}", index + 1)),
        matcher: matcher.unwrap_or_default(),
        // Problems keep the config from being used: this one is never seen.
        handler: handler.unwrap_or_else(|| Handler::Reply(empty_reply())),
        streams: streams.unwrap_or_default(),
    }
}

fn empty_reply() -> Reply {
    Reply {
        status: StatusCode::NOT_FOUND,
        headers: Vec::new(),
        body: bytes::Bytes::new(),
    }
}

fn handler(table: &mut Table<'_>, walk: &mut Walk<'_>) -> Option<Handler> {
    let mut given: Vec<Field<'_>> = HANDLERS.iter().filter_map(|key| table.take(key)).collect();
    given.sort_by_key(|field| field.key_span.start);
    let on_failure = table.take("on_failure");
    let Some(first) = given.first() else {
        let finding = Finding::new(
            &table.path,
            "the route does nothing with its requests",
            "no handler",
        )
        .help("write one of `plugin`, `to`, `upstream` or `reply`".to_owned());
        walk.report(table.span.clone(), finding);
        return None;
    };
    for second in &given[1..] {
        let message = format!(
            "`{}` conflicts with `{}`: a route has one handler",
            second.key, first.key
        );
        walk.report(
            second.key_span.clone(),
            Finding::new(&second.path, message, "a second handler"),
        );
    }
    if let Some(on_failure) = on_failure.as_ref().filter(|_| first.key != "plugin") {
        let finding = Finding::new(
            &on_failure.path,
            "`on_failure` is for routes with `plugin`",
            "no plugin to fail",
        );
        walk.report(on_failure.key_span.clone(), finding);
    }
    match first.key {
        "plugin" => Some(Handler::Plugin {
            plugin: first.text(walk)?.value,
            on_failure: on_failure
                .and_then(|field| on_failure_of(&field, walk))
                .unwrap_or_default(),
        }),
        "to" => {
            let (target, port) =
                first
                    .text(walk)?
                    .read(walk, "an address to forward to", address::dial)?;
            Some(Handler::To(target, port))
        }
        "upstream" => Some(Handler::Upstream(first.text(walk)?.value)),
        _ => Some(Handler::Reply(reply(first.table(walk)?, walk))),
    }
}

fn on_failure_of(field: &Field<'_>, walk: &mut Walk<'_>) -> Option<OnFailure> {
    if matches!(field.value(), DeValue::String(_)) {
        return field
            .text(walk)?
            .choice("on_failure", &[("last-good", ())], walk)
            .map(|()| OnFailure::LastGood);
    }
    if !matches!(field.value(), DeValue::Table(_)) {
        field.wrong_type(
            "`{ reply = 503 }`, `\"last-good\"` or `{ upstream = \"NAME\" }`",
            walk,
        );
        return None;
    }
    let mut table = field.table(walk)?;
    let (reply, upstream) = (table.take("reply"), table.take("upstream"));
    let chosen = match (reply, upstream) {
        (Some(reply), None) => status(&reply, walk).map(OnFailure::Reply),
        (None, Some(upstream)) => upstream
            .text(walk)
            .map(|text| OnFailure::Upstream(text.value)),
        _ => {
            let finding = Finding::new(
                &table.path,
                "expected either `reply` or `upstream` in `on_failure`",
                "one of two",
            )
            .help("write `{ reply = 503 }` or `{ upstream = \"NAME\" }`".to_owned());
            walk.report(table.span.clone(), finding);
            None
        }
    };
    table.finish(walk);
    chosen
}

fn status(field: &Field<'_>, walk: &mut Walk<'_>) -> Option<StatusCode> {
    let number = field.integer::<i64>(walk)?;
    let status = u16::try_from(number)
        .ok()
        .filter(|code| (200..600).contains(code));
    let status = status.and_then(|code| StatusCode::from_u16(code).ok());
    if status.is_none() {
        let message = format!("status {number} is not one of a reply: expected 200 to 599");
        walk.report(
            field.span.clone(),
            Finding::new(&field.path, message, "expected 200 to 599"),
        );
    }
    status
}

fn matcher(mut table: Table<'_>, walk: &mut Walk<'_>) -> Matcher {
    let mut matcher = Matcher::default();
    for text in texts(table.take("host"), walk) {
        matcher
            .hosts
            .extend(text.read(walk, "a host to match", host));
    }
    for text in texts(table.take("path"), walk) {
        matcher
            .paths
            .extend(text.read(walk, "a path to match", path));
    }
    for text in texts(table.take("method"), walk) {
        matcher.methods.extend(text.read(walk, "a method", method));
    }
    for field in table
        .table("header", walk)
        .map(Table::fields)
        .unwrap_or_default()
    {
        let name = header_name(&field, walk);
        let pattern = field
            .text(walk)
            .and_then(|text| text.read(walk, "a value to match", header_pattern));
        matcher.headers.extend(name.zip(pattern));
    }
    matcher.websocket = table
        .choice("upgrade", &[("websocket", true)], walk)
        .unwrap_or_default();
    table.finish(walk);
    matcher
}

/// The strings of a value that is one or an array of them.
fn texts(field: Option<Field<'_>>, walk: &mut Walk<'_>) -> Vec<Text> {
    let Some(field) = field else {
        return Vec::new();
    };
    let items = field.one_or_many(walk);
    if items.is_empty() && matches!(field.value(), DeValue::Array(_)) {
        let finding = Finding::new(
            &field.path,
            format!("`{}` is empty: it would match nothing", field.key),
            "empty",
        )
        .help("leave it out to match everything".to_owned());
        walk.report(field.span.clone(), finding);
    }
    items.iter().filter_map(|item| item.text(walk)).collect()
}

fn host(text: &str) -> Result<HostPattern, String> {
    if text == "*" {
        return Err("leave `host` out to match every host".to_owned());
    }
    if let Some(domain) = text.strip_prefix("*.") {
        return Ok(HostPattern::Suffix(
            format!(".{}", address::host_name(domain)?).into(),
        ));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => Ok(HostPattern::Exact(format!("[{ip}]").into())),
        Ok(IpAddr::V4(ip)) if bare == text => Ok(HostPattern::Exact(ip.to_string().into())),
        _ if text.contains(':') => Err("expected a host without its port".to_owned()),
        _ if text.contains('*') => {
            Err("expected `*` only as the first label, such as \"*.example.com\"".to_owned())
        }
        _ => Ok(HostPattern::Exact(address::host_name(text)?.into())),
    }
}

fn path(text: &str) -> Result<PathPattern, String> {
    if let Some(pattern) = text.strip_prefix("re:") {
        return Pattern::new(pattern).map(PathPattern::Pattern);
    }
    if !text.starts_with('/') {
        return Err(
            "expected it to begin with `/`, or with `re:` for a regular expression".to_owned(),
        );
    }
    if let Some(bad) = text
        .chars()
        .find(|c| !c.is_ascii_graphic() || matches!(c, '?' | '#'))
    {
        return Err(match bad {
            '?' => "the query takes no part in matching: leave out what begins with `?`".to_owned(),
            _ => format!("a path never contains {bad:?}: it arrives percent-encoded"),
        });
    }
    match text.strip_suffix('*') {
        Some(prefix) if !prefix.contains('*') => Ok(PathPattern::Prefix(prefix.into())),
        None if !text.contains('*') => Ok(PathPattern::Exact(text.into())),
        _ => Err("expected `*` only at the end: use `re:` for other patterns".to_owned()),
    }
}

fn method(text: &str) -> Result<Method, String> {
    let method = Method::from_bytes(text.as_bytes())
        .map_err(|_| "expected one such as \"GET\"".to_owned())?;
    let upper = text.to_ascii_uppercase();
    if upper != text {
        return Err(format!("methods are case-sensitive: write {upper:?}"));
    }
    Ok(method)
}

fn header_pattern(text: &str) -> Result<HeaderPattern, String> {
    match text {
        "*" => Ok(HeaderPattern::Present),
        "!" => Ok(HeaderPattern::Absent),
        _ => match text.strip_prefix("re:") {
            Some(pattern) => Pattern::new(pattern).map(HeaderPattern::Pattern),
            None => HeaderValue::from_str(text)
                .map(|_| HeaderPattern::Exact(text.into()))
                .map_err(|_| "a header field never contains control characters".to_owned()),
        },
    }
}

fn header_name(field: &Field<'_>, walk: &mut Walk<'_>) -> Option<HeaderName> {
    let name = HeaderName::try_from(field.key).ok();
    if name.is_none() {
        let message = format!("{:?} is not the name of a header field", shorten(field.key));
        walk.report(
            field.key_span.clone(),
            Finding::new(&field.path, message, "not a header name"),
        );
    }
    name
}

fn reply(mut table: Table<'_>, walk: &mut Walk<'_>) -> Reply {
    let mut reply = empty_reply();
    match table.take("status") {
        Some(field) => reply.status = status(&field, walk).unwrap_or(reply.status),
        None => table.missing("status", "status = 404", walk),
    }
    for field in table
        .table("headers", walk)
        .map(Table::fields)
        .unwrap_or_default()
    {
        reply.headers.extend(reply_header(&field, walk));
    }
    let (body, json) = (table.take("body"), table.take("json"));
    let content = if let Some(json) = json {
        if let Some(body) = body {
            let finding = Finding::new(
                &body.path,
                "`body` conflicts with `json`: a reply has one body",
                "a second body",
            );
            walk.report(body.key_span.clone(), finding);
        }
        let mut text = String::new();
        write_json(&json, &mut text, walk);
        Some((json, text, "application/json"))
    } else {
        body.and_then(|field| {
            let text = field.text(walk)?.value;
            Some((field, text, "text/plain; charset=utf-8"))
        })
    };
    if let Some((field, text, content_type)) = content {
        body_rules(&field, &text, reply.status, walk);
        if !reply
            .headers
            .iter()
            .any(|(name, _)| *name == header::CONTENT_TYPE)
            && !text.is_empty()
        {
            reply
                .headers
                .push((header::CONTENT_TYPE, HeaderValue::from_static(content_type)));
        }
        reply.body = text.into();
    }
    table.finish(walk);
    reply
}

fn body_rules(field: &Field<'_>, text: &str, status: StatusCode, walk: &mut Walk<'_>) {
    if !text.is_empty() && matches!(status.as_u16(), 204 | 205 | 304) {
        let message = format!("a reply with status {} has no body", status.as_u16());
        walk.report(
            field.key_span.clone(),
            Finding::new(&field.path, message, "never sent"),
        );
    }
    for name in header_templates(text) {
        if HeaderName::try_from(name).is_err() {
            let message = format!(
                "`${{header.{}}}` does not name a header field",
                shorten(name)
            );
            walk.report(
                field.span.clone(),
                Finding::new(&field.path, message, "in this body"),
            );
        }
    }
}

fn reply_header(field: &Field<'_>, walk: &mut Walk<'_>) -> Option<(HeaderName, HeaderValue)> {
    let name = header_name(field, walk)?;
    let text = field.text(walk)?;
    let ours = [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::TRAILER,
        header::TE,
        header::DATE,
    ];
    if ours.contains(&name) || matches!(name.as_str(), "keep-alive" | "proxy-connection") {
        let message = format!("`{name}` is set by the proxy itself");
        walk.report(
            field.key_span.clone(),
            Finding::new(&field.path, message, "not yours to set"),
        );
        return None;
    }
    if text.value.contains("${header.") {
        let finding = Finding::new(
            &field.path,
            "`${header.NAME}` is for the body of a reply",
            "not in a header",
        );
        walk.report(field.span.clone(), finding);
        return None;
    }
    let value = text.read(walk, "the value of a header field", |text| {
        HeaderValue::from_str(text)
            .map_err(|_| "expected no line ends or other control characters".to_owned())
    })?;
    Some((name, value))
}

/// Writes a value as JSON on one line, in the order of the text.
fn write_json(field: &Field<'_>, out: &mut String, walk: &mut Walk<'_>) {
    match field.value() {
        DeValue::String(_) => {
            let text = field.text(walk).map(|text| text.value).unwrap_or_default();
            out.push_str(&json_string(&text));
        }
        DeValue::Integer(_) => {
            out.push_str(&field.integer::<i64>(walk).unwrap_or_default().to_string());
        }
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(number) if number.is_finite() => out.push_str(&number.to_string()),
            _ => field.wrong_type("a number that JSON has", walk),
        },
        DeValue::Boolean(value) => out.push_str(&value.to_string()),
        DeValue::Datetime(value) => out.push_str(&json_string(&value.to_string())),
        DeValue::Array(_) => {
            out.push('[');
            for (index, item) in field.items(walk).unwrap_or_default().iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_json(item, out, walk);
            }
            out.push(']');
        }
        DeValue::Table(_) => {
            out.push('{');
            let fields = field.table(walk).map(Table::fields).unwrap_or_default();
            for (index, field) in fields.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                out.push_str(&json_string(field.key));
                out.push_str(": ");
                write_json(field, out, walk);
            }
            out.push('}');
        }
    }
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
