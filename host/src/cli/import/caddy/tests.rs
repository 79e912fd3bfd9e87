use super::translate;
use crate::cli::import::Findings;
use crate::config::Config;
use serde_json::{Value, json};

const EXAMPLE: &str = include_str!("../../../../../examples/from-caddy/caddy.json");

/// The config that is written, the entries of its buckets, and what was found.
fn translated(document: &str) -> (String, Vec<(String, String)>, Findings) {
    let mut findings = Findings::default();
    let draft = translate(document, false, &mut findings).expect("JSON");
    let text = draft.to_toml("from a test", &[]);
    let entries = draft
        .buckets
        .into_iter()
        .flat_map(|bucket| bucket.entries)
        .collect();
    (text, entries, findings)
}

/// A document whose one server has these routes.
fn with_routes(routes: &Value) -> String {
    let server = json!({"listen": ["127.0.0.1:8080"], "routes": routes, "automatic_https": {"disable": true}});
    json!({"apps": {"http": {"servers": {"srv0": server}}}}).to_string()
}

/// The routes of the config, after it was read as `serve` reads it.
fn routes_of(routes: &Value) -> Value {
    let (text, _, findings) = translated(&with_routes(routes));
    assert!(
        findings.wrong.is_empty() && findings.unsupported.is_empty(),
        "{findings:?}"
    );
    Config::parse(&text, None).unwrap_or_else(|problems| panic!("{text}\n{problems:?}"));
    let value: Value = toml::from_str(&text).expect("TOML");
    value["route"].clone()
}

fn refused(routes: &Value) -> Vec<String> {
    translated(&with_routes(routes)).2.unsupported
}

#[test]
fn a_map_by_header_becomes_a_bucket_a_plugin_and_the_answer_to_everything_else() {
    let (text, entries, findings) = translated(EXAMPLE);
    assert_eq!(
        (findings.wrong.len(), findings.unsupported.len()),
        (0, 0),
        "{findings:?}"
    );
    assert_eq!(
        entries,
        [entry("id1", "127.0.0.2"), entry("id2", "127.0.0.3")]
    );
    let config = Config::parse(&text, None).expect("valid");
    assert_eq!(config.caddy_ids["proxy-map"], "upstream_ip");
    assert_eq!(config.listeners[0].address.port(), 8080);
    let value: Value = toml::from_str(&text).expect("TOML");
    assert_eq!(
        value["plugins"]["by-header"]["settings"],
        json!({"bucket": "upstream_ip", "header": "x-id", "port-header": "x-port", "unknown": "pass"})
    );
    assert_eq!(
        value["route"],
        json!([
            {
                "name": "by-map",
                "plugin": "by-header",
                "match": {"header": {"x-id": "*", "x-port": "re:^[0-9]+$"}}
            },
            {
                "name": "reply",
                "reply": {
                    "status": 404,
                    "headers": {"content-type": "application/json"},
                    "body": "{\"error\": \"Invalid request\", \"id\": \"${header.x-id}\"}"
                }
            }
        ])
    );
    let notes = findings.notes.join("\n");
    assert!(
        notes.contains("stream_close_delay is not needed"),
        "{notes}"
    );
    assert!(notes.contains("token"), "{notes}");
}

#[test]
fn upstreams_that_are_written_out_become_routes_with_their_conditions() {
    let routes = routes_of(&json!([
        {
            "match": [
                {"host": ["app.example.com"], "path": ["/api/*", "*.json"], "method": ["GET"]},
                {"header": {"X-Beta": ["on", "yes*"], "X-Old": null}}
            ],
            "handle": [{
                "handler": "reverse_proxy",
                "load_balancing": {"selection_policy": {"policy": "least_conn"}},
                "upstreams": [{"dial": "127.0.0.1:9000"}, {"dial": "backend"}]
            }]
        },
        {"handle": [{"handler": "reverse_proxy", "upstreams": [{"dial": "localhost:9001"}]}]}
    ]));
    assert_eq!(
        routes,
        json!([
            {
                "name": "forward",
                "upstream": "upstream",
                "match": {
                    "host": ["app.example.com"],
                    "path": ["/api/*", "re:^.*\\.json$"],
                    "method": ["GET"]
                }
            },
            {
                "name": "forward-2",
                "upstream": "upstream",
                "match": {"header": {"x-beta": "re:^on$|^yes.*$", "x-old": "!"}}
            },
            {"name": "forward-3", "to": "localhost:9001"}
        ])
    );
}

#[test]
fn a_condition_outside_holds_for_the_routes_inside() {
    let routes = routes_of(&json!([{
        "match": [{"host": ["a.example.com"]}],
        "handle": [{"handler": "subroute", "routes": [
            {"match": [{"path": ["/x"]}], "handle": [{"handler": "static_response", "status_code": "204"}]},
            {"handle": [{"handler": "static_response", "body": "hello ${a} \\{http.x\\}"}]}
        ]}]
    }]));
    assert_eq!(
        routes[0]["match"],
        json!({"host": ["a.example.com"], "path": ["/x"]})
    );
    assert_eq!(routes[1]["match"], json!({"host": ["a.example.com"]}));
    assert_eq!(
        routes[1]["reply"],
        json!({"status": 200, "body": "hello $${a} {http.x}"})
    );
}

#[test]
fn the_port_may_be_a_fixed_one_or_that_of_the_entry() {
    let with_dial = |dial: &str| {
        let map = json!({"mappings": [{"input": "a", "outputs": ["10.0.0.1:1"]}]});
        let (text, ..) = translated(&with_map(&map, dial));
        let value: Value = toml::from_str(&text).expect("TOML");
        value["plugins"]["by-header"]["settings"].clone()
    };
    assert_eq!(with_dial("{to}:8080")["port"], "8080");
    assert_eq!(with_dial("{to}")["port-header"], "");
    assert_eq!(with_dial("{to}")["strip"], "false");
}

#[test]
fn what_has_no_counterpart_is_told_with_its_place() {
    let file_server = json!([{"handle": [{"handler": "file_server"}]}]);
    assert_eq!(
        refused(&file_server),
        ["apps.http.servers.srv0.routes[0].handle[0]: handler \"file_server\" has no counterpart"]
    );
    let respond = |condition: Value| json!([{"match": [condition], "handle": [{"handler": "static_response"}]}]);
    for (condition, place) in [
        (
            json!({"remote_ip": {"ranges": ["10.0.0.0/8"]}}),
            "match[0].remote_ip",
        ),
        (
            json!({"expression": "{method} == \"GET\""}),
            "match[0].expression",
        ),
    ] {
        let told = refused(&respond(condition));
        assert!(told.len() == 1 && told[0].contains(place), "{told:?}");
    }
    let proxy = |extra: Value| {
        let mut proxy = json!({"handler": "reverse_proxy", "upstreams": [{"dial": "a:1"}]});
        proxy
            .as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("an object").clone());
        json!([{"handle": [proxy]}])
    };
    for (extra, place) in [
        (
            json!({"health_checks": {"passive": {"max_fails": 1}}}),
            "health_checks",
        ),
        (
            json!({"transport": {"protocol": "http", "tls": {"a": 1}}}),
            "transport.tls",
        ),
        (
            json!({"headers": {"request": {"set": {"a": ["b"]}}}}),
            "request.set",
        ),
        (
            json!({"upstreams": [{"dial": "{http.vars.x}:1"}]}),
            "upstreams[0].dial",
        ),
        (
            json!({"upstreams": [{"dial": "a:99999"}]}),
            "upstreams[0].dial",
        ),
    ] {
        let told = refused(&proxy(extra));
        assert!(told.len() == 1 && told[0].contains(place), "{told:?}");
    }
    let placeholder =
        json!([{"handle": [{"handler": "static_response", "body": "{http.request.uri}"}]}]);
    assert!(refused(&placeholder)[0].contains("{http.request.uri}"));
}

/// A map by X-ID to `{to}` with these keys beside, and an upstream dialled by it.
fn with_map(extra: &Value, dial: &str) -> String {
    let mut map = json!({
        "handler": "map", "source": "{http.request.header.X-ID}", "destinations": ["{to}"]
    });
    let extra = extra.as_object().expect("an object").clone();
    map.as_object_mut().expect("an object").extend(extra);
    let proxy = json!({"handler": "reverse_proxy", "upstreams": [{"dial": dial}]});
    with_routes(&json!([{"handle": [map, proxy]}]))
}

fn entry(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn a_default_is_found_by_every_other_key_and_by_a_request_without_one() {
    let mappings = json!([
        {"input": "a", "outputs": ["10.0.0.1"]},
        {"input_regexp": "^b", "outputs": ["10.0.0.2"]},
        {"input": "b1", "outputs": ["10.0.0.9"]},
        {"input_regexp": "^a", "outputs": ["10.0.0.3"]},
        {"input": "c", "outputs": [null]}
    ]);
    let map = json!({"mappings": mappings, "defaults": ["10.0.0.4"]});
    let (text, entries, findings) = translated(&with_map(&map, "{to}:80"));
    assert_eq!(findings.unsupported, [""; 0]);
    assert_eq!(
        entries,
        [
            entry("a", "10.0.0.1"),
            entry("re:(?<n1>)^b", "10.0.0.2"),
            entry("re:(?<n2>)^a", "10.0.0.3"),
            entry("*", "10.0.0.4"),
        ]
    );
    let notes = findings.notes.join("\n");
    assert!(
        notes.contains("mappings[2]: input \"b1\" is never found"),
        "{notes}"
    );
    assert!(!notes.contains("Caddy answers 502"), "{notes}");
    Config::parse(&text, None).expect("valid");
    let value: Value = toml::from_str(&text).expect("TOML");
    assert_eq!(
        value["buckets"]["to"]["lookup"],
        json!(["exact", "regex", "default"])
    );
    assert_eq!(value["plugins"]["by-header"]["settings"]["absent"], "empty");
}

#[test]
fn each_placeholder_of_a_map_that_an_upstream_is_dialled_by_has_a_bucket() {
    let map = json!({
        "destinations": ["{to}", "{file}", "{port}"],
        "defaults": ["", "/none", ""],
        "mappings": [{"input": "a", "outputs": ["10.0.0.1", "/x", 81]}]
    });
    let (text, entries, findings) = translated(&with_map(&map, "{to}:80"));
    assert_eq!(findings.unsupported, [""; 0]);
    assert_eq!(entries, [entry("a", "10.0.0.1")]);
    assert!(!text.contains("lookup"), "{text}");
    let notes = findings.notes.join("\n");
    assert!(notes.contains("{file} is left out"), "{notes}");
    let few =
        json!({"destinations": ["{to}", "{file}"], "mappings": [{"input": "a", "outputs": ["x"]}]});
    let (_, _, findings) = translated(&with_map(&few, "{to}:80"));
    assert!(
        findings.wrong[0].contains("outputs: 1, expected one for each of 2"),
        "{findings:?}"
    );
}

#[test]
fn entries_that_a_bucket_cannot_hold_are_told_with_their_place() {
    let told = |mappings: Value, default: &str| {
        let map = json!({"mappings": mappings, "defaults": [default]});
        translated(&with_map(&map, "{to}:80"))
            .2
            .unsupported
            .join("\n")
    };
    let one = |input: &str, output: &str| json!([{"input": input, "outputs": [output]}]);
    for (mappings, default, expected) in [
        (one("c", "not/a/host"), "", "mappings[0]: \"not/a/host\""),
        (
            one("c", "{http.request.host}:1"),
            "",
            "an output with placeholders",
        ),
        (one("", "10.0.0.1"), "", "mappings[0]: input is empty"),
        (one("*", "10.0.0.1"), "10.0.0.2", "mappings[0]: input \"*\""),
        (
            one("a", ""),
            "10.0.0.2",
            "an empty output has no counterpart beside a default",
        ),
        (
            json!([]),
            "{http.request.host}",
            "defaults[0]: \"{http.request.host}\"",
        ),
        (
            json!([{"input_regexp": "^(.*)$", "outputs": ["$1"]}]),
            "",
            "mappings[0]: an output with parts",
        ),
        (
            json!([{"input": "a", "outputs": ["b"]}, {"input": "a", "outputs": ["c"]}]),
            "",
            "mappings[1]: input \"a\" is that of mappings[0] already",
        ),
    ] {
        let told = told(mappings, default);
        assert!(told.contains(expected), "{expected}: {told}");
    }
}

#[test]
fn what_is_no_config_of_caddy_is_told() {
    let mut findings = Findings::default();
    let caddyfile = ":8080 {\n reverse_proxy {upstream_ip}:80\n}\n";
    let error = translate(caddyfile, false, &mut findings).expect_err("refused");
    assert!(error.contains("caddy adapt"), "{error}");
    for (document, expected) in [
        ("[]", "the document: an array, expected an object"),
        (
            "{}",
            "apps.http.servers: no server that listens, expected one",
        ),
        (
            r#"{"apps": {"http": {"servers": {"a": {"listen": 1}}}}}"#,
            "apps.http.servers.a.listen: a number, expected an array",
        ),
    ] {
        let (_, _, findings) = translated(document);
        assert_eq!(findings.wrong.first().map(String::as_str), Some(expected));
    }
}

#[test]
fn https_and_a_second_server_are_not_dropped_in_silence() {
    let server = json!({"listen": [":443"], "routes": []});
    let document = json!({"apps": {"http": {"servers": {"a": server, "b": {"listen": [":81"]}}}, "tls": {"x": 1}}});
    let (_, _, findings) = translated(&document.to_string());
    let told = findings.unsupported.join("\n");
    for part in ["HTTPS", "servers.b: a second server", "apps.tls"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}
