use super::decode::{Sources, decode};
use super::diagnostic::{Problem, render};
use super::*;
use crate::plugin::{Access, Guard, PluginLimits, Source, VersionPolicy};
use crate::proxy::access_log::Sink;
use crate::proxy::matcher::{HeaderPattern, HostPattern, Matcher, PathPattern};
use crate::proxy::{Handler, Limits, OnFailure};
use crate::store::{BackendKind, BucketConfig, OnChange, Target, ValueKind};
use crate::stream::RouteTimes;
use crate::upstream::Policy;
use proptest::prelude::*;
use std::time::Duration;

mod bad;
mod fleet;
mod shared;

const LISTENER: &str = "[[listener]]\nlisten = \"127.0.0.1:8080\"\n";

fn read(text: &str) -> Result<Config, Vec<Problem>> {
    let env = |name: &str| match name {
        "PORT" => Some("9000".to_owned()),
        "SECRET" => Some("hunter2".to_owned()),
        _ => None,
    };
    decode(
        text,
        &Sources {
            directory: Path::new("etc"),
            env: &env,
        },
    )
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|problems| panic!("{}", render(&problems, text, "test", false)))
}

/// The problems of a text, each as `line:column path: message [help]`.
fn problems(text: &str) -> Vec<String> {
    let problems = read(text).expect_err(text);
    let show = |problem: &Problem| {
        let help = problem
            .help
            .as_ref()
            .map(|help| format!(" [{help}]"))
            .unwrap_or_default();
        format!(
            "{}:{} {}: {}{help}",
            problem.line, problem.column, problem.path, problem.message
        )
    };
    problems.iter().map(show).collect()
}

#[test]
fn smallest_config_has_every_default() {
    let config = good(LISTENER);
    let expected = Config {
        data: PathBuf::from("etc/data"),
        listeners: vec![crate::listener::Config {
            name: "listener-1".to_owned(),
            address: "127.0.0.1:8080".parse().expect("an address"),
            http1: true,
            h2c: true,
        }],
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn reference_example_stands_at_the_defaults() {
    let text = include_str!("../../../examples/reference/throwbar.toml");
    let config = good(text);
    assert_eq!(config.admin, Default::default());
    assert_eq!(config.guard, Default::default());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.streams, Default::default());
    assert_eq!(config.log.access, Sink::default());
    assert_eq!(config.log.level.as_deref(), Some("info"));
    assert_eq!(config.data, Path::new("etc/data"));
    assert_eq!(config.sync, Default::default());
    assert_eq!(config.plugins[0].limits, PluginLimits::default());
    let versions = VersionPolicy {
        guard: Some(Guard::default()),
        ..VersionPolicy::default()
    };
    assert_eq!(config.plugins[0].versions, versions);
    assert_eq!(config.upstreams[0].policy, Policy::default());
    let bucket = BucketConfig::new("upstreams", BackendKind::Embedded, ValueKind::Endpoint);
    assert_eq!(config.buckets, [bucket]);
    assert_eq!(
        config.listeners[0].address,
        good(LISTENER).listeners[0].address
    );
    let Handler::Plugin { on_failure, .. } = &config.routes[0].handler else {
        panic!("a plugin")
    };
    assert_eq!(*on_failure, OnFailure::default());
}

#[test]
fn reference_example_names_every_setting() {
    let text = include_str!("../../../examples/reference/throwbar.toml");
    // Every section, spoilt by one unknown key: the help lists the keys there are.
    let spoilt: String = text
        .lines()
        .map(|line| match line.trim() {
            header if header.starts_with('[') => format!("{line}\nzzzzzzzzzzzz = 1\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let mut sections = 0;
    for problem in read(&format!("zzzzzzzzzzzz = 1\n{spoilt}")).expect_err("unknown keys") {
        let Some(keys) = problem
            .help
            .as_ref()
            .and_then(|help| help.strip_prefix("expected `"))
        else {
            continue;
        };
        sections += 1;
        for key in keys
            .trim_end_matches('`')
            .split(['`', ',', ' '])
            .filter(|key| !key.is_empty() && *key != "or")
        {
            let named = [
                format!("\n{key} ="),
                format!("\n# {key} ="),
                format!("[{key}"),
                format!(".{key}]"),
                format!("[[{key}]]"),
                format!("{{ {key} ="),
            ];
            assert!(
                named.iter().any(|form| text.contains(form)),
                "{key} of {} is not in the reference",
                problem.path
            );
        }
    }
    assert!(sections >= 10, "{sections}");
}

#[test]
fn streams_may_end_with_their_entry_and_get_pings() {
    let text = format!(
        "buckets.a.on_change = \"close\"\nbuckets.b.on_change = {{ drain = {{ over = \"5m\" }} }}\n{LISTENER}\n\
         [streams]\nping_client = \"45s\"\nage_jitter = 0\n"
    );
    let config = good(&text);
    let over = Duration::from_secs(300);
    assert_eq!(config.buckets[0].on_change, OnChange::Close);
    let after = Duration::ZERO;
    assert_eq!(config.buckets[1].on_change, OnChange::Drain { after, over });
    let streams = &config.streams;
    assert_eq!(streams.times.ping_client, Some(Duration::from_secs(45)));
    assert_eq!(
        (streams.times.ping_upstream, streams.age_jitter),
        (None, 0.0)
    );
}

#[test]
fn a_route_may_have_times_of_its_own_for_its_streams() {
    let text = format!(
        "{LISTENER}\n[streams]\nping_client = \"45s\"\n[[route]]\nto = \"a:1\"\n\
         [route.streams]\nping_client = \"0s\"\nage_max = \"4h\"\n"
    );
    let config = good(&text);
    let own = RouteTimes {
        age_max: Some(Duration::from_secs(14_400)),
        ping_client: Some(Duration::ZERO),
        ..RouteTimes::default()
    };
    assert_eq!(config.routes[0].streams, own);
}

#[test]
fn quickstart_is_the_seed_case() {
    let config = good(include_str!("../../../examples/quickstart/throwbar.toml"));
    let plugin = &config.plugins[0];
    assert_eq!(plugin.source, Source::Builtin("by-header".to_owned()));
    assert_eq!(plugin.grants["upstreams"], Access::Read);
    assert_eq!(config.caddy_ids["proxy-map"], "upstreams");
    assert!(config.routes[0].matcher.is_empty());
}

#[test]
fn other_examples_are_right() {
    good(include_str!("../../../examples/websocket/throwbar.toml"));
    good(include_str!("../../../examples/chat/throwbar.toml"));
    good(include_str!("../../../examples/migrate/throwbar.toml"));
    let canary = good(include_str!("../../../examples/canary/throwbar.toml"));
    assert_eq!(canary.plugins[0].settings["weights"], "stable=90,next=10");
    let handler = &canary.routes[0].handler;
    assert!(
        matches!(handler, Handler::Plugin { on_failure: OnFailure::Upstream(name), .. } if name == "stable")
    );
}

#[test]
fn values_reach_their_fields() {
    let config = good(
        r#"
        workers = 3
        data = "/var/lib/throwbar"
        admin = { listen = "unix:run/a.sock", auth = "none", component_bytes_max = 1_024, compile_cpu = "90s", compile_memory = "1GiB", body_bytes_max = "1KiB" }
        listener = [{ name = "l", listen = ":80", protocols = ["h2c"] }]
        buckets.b = { backend = "memory", values = "bytes", keys_max = 5, bytes_max = "1MiB" }
        upstreams.u = { endpoints = ["127.0.0.1:${env:PORT}", "[::1]:1", "App.local:2"], policy = "hash" }
        plugins.p = { source = "p.wasm", buckets.b = "write", settings = { s = "${env:SECRET}", n = -1_000, f = 1.50, t = true }, limits = { deadline = "2ms", calls = 7 } }
        plugins.q = {}
        guard = { allow = ["10.0.0.0/8", "::1"], ports = ["1024-2000", "80", 443] }
        limits = { head_timeout = "250ms", via = true }
        streams = { idle_timeout = "10m", age_max = "4h" }
        log = { access = "log/access", level = "debug" }
        "#,
    );
    assert_eq!(
        (config.workers, config.data.as_path()),
        (3, Path::new("/var/lib/throwbar"))
    );
    assert_eq!(
        config.admin.listen,
        crate::admin::Address::Unix("etc/run/a.sock".into())
    );
    assert_eq!(
        (
            config.admin.component_bytes_max,
            config.admin.body_bytes_max
        ),
        (1024, 1024)
    );
    let compile = config.admin.compile;
    assert_eq!((compile.cpu.as_secs(), compile.memory_bytes), (90, 1 << 30));
    assert_eq!(config.listeners[0].address.to_string(), "0.0.0.0:80");
    assert!(config.listeners[0].h2c && !config.listeners[0].http1);
    assert_eq!(
        (config.buckets[0].keys_max, config.buckets[0].bytes_max),
        (5, 1 << 20)
    );
    assert_eq!(
        config.upstreams[0].endpoints[2],
        (Target::Name("app.local".into(), None), 2)
    );
    assert_eq!(config.upstreams[0].endpoints[0].1, 9000);
    assert_eq!(config.upstreams[0].policy, Policy::Hash);
    let settings: Vec<_> = config.plugins[0]
        .settings
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(settings, ["f=1.50", "n=-1000", "s=hunter2", "t=true"]);
    assert_eq!(config.plugins[0].source, Source::File("etc/p.wasm".into()));
    assert_eq!(config.plugins[0].limits.calls_max, 7);
    assert_eq!(config.plugins[1].source, Source::Pushed);
    assert_eq!(config.guard.ports, [1024..=2000, 80..=80, 443..=443]);
    assert_eq!(config.guard.allow[1].to_string(), "::1/128");
    assert_eq!(config.limits.head_timeout.as_millis(), 250);
    assert_eq!(
        config.streams.times.age_max.map(|age| age.as_secs()),
        Some(14_400)
    );
    assert_eq!(config.log.access, Sink::File("etc/log/access".into()));
}

#[test]
fn routes_keep_order_conditions_and_handlers() {
    let config = good(&format!(
        r#"{LISTENER}
        [plugins.p]
        [[route]]
        match = {{ host = ["*.Example.com", "::1"], path = "/a/*", method = ["GET", "PURGE"], header = {{ X-Id = "!" }}, upgrade = "websocket" }}
        plugin = "p"
        on_failure = "last-good"
        [[route]]
        match.path = "/b"
        reply = {{ status = 503, headers = {{ retry-after = "5" }}, body = "busy $${{x" }}
        [[route]]
        reply = {{ status = 404, json = {{ error = "Invalid request", id = "${{header.x-id}}", a = [1, true, {{}}] }} }}
        "#
    ));
    let expected = Matcher {
        hosts: vec![
            HostPattern::Suffix(".example.com".into()),
            HostPattern::Exact("[::1]".into()),
        ],
        paths: vec![PathPattern::Prefix("/a/".into())],
        methods: vec![http::Method::GET, "PURGE".parse().expect("a method")],
        headers: vec![(http::HeaderName::from_static("x-id"), HeaderPattern::Absent)],
        websocket: true,
    };
    assert_eq!(config.routes[0].matcher, expected);
    assert!(matches!(
        &config.routes[0].handler,
        Handler::Plugin {
            on_failure: OnFailure::LastGood,
            ..
        }
    ));
    let Handler::Reply(busy) = &config.routes[1].handler else {
        panic!("a reply")
    };
    assert_eq!(
        (busy.status.as_u16(), &busy.body[..]),
        (503, &b"busy ${x"[..])
    );
    let Handler::Reply(invalid) = &config.routes[2].handler else {
        panic!("a reply")
    };
    let body = r#"{"error": "Invalid request", "id": "${header.x-id}", "a": [1, true, {}]}"#;
    assert_eq!(invalid.body, body);
    let content_type = (
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    assert_eq!(invalid.headers, [content_type]);
}

#[test]
fn every_problem_is_told_at_once_in_order() {
    let text = "\
workers = 0
[[listener]]
lisen = \":8080\"
[plugins.p]
source = \"builtin:nope\"
limits = { memory = \"1XB\", dedline = \"1ms\" }
[[route]]
plugin = \"q\"
match = { path = \"x\", metod = \"GET\" }
[[route]]
to = \"nowhere\"
[streams]
idle = \"1s\"
";
    let places: Vec<_> = problems(text)
        .iter()
        .map(|problem| problem.split(": ").next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(
        places,
        [
            "1:11 workers",
            "2:1 listener[0]",
            "3:1 listener[0].lisen",
            "5:10 plugins.p.source",
            "6:21 plugins.p.limits.memory",
            "6:28 plugins.p.limits.dedline",
            "8:10 route[0].plugin",
            "9:18 route[0].match.path",
            "9:23 route[0].match.metod",
            "11:6 route[1].to",
            "13:1 streams.idle",
        ]
    );
}

#[test]
fn syntax_errors_have_places_and_come_together() {
    let problems = problems("workers = \n[[listener]]\nlisten = :8080\n");
    assert!(problems.len() >= 2, "{problems:?}");
    assert!(problems[0].starts_with("1:"), "{problems:?}");
    assert!(problems[1].starts_with("3:"), "{problems:?}");
}

#[test]
fn without_listener_nothing_could_connect() {
    assert_eq!(
        problems(""),
        [
            "1:1 listener: no listener: no client could connect [write `[[listener]]` with `listen = \"127.0.0.1:8080\"`]"
        ]
    );
}

#[test]
fn secrets_are_never_shown() {
    let text = format!(
        "data = \"${{env:SECRET}}\\u0000\"\nworkers = 1\nadmin = {{ listen = \"${{env:SECRET}}\", auth = \"${{env:SECRET}}\" }}\n\
         upstreams.u.endpoints = [\"${{env:SECRET}}\"]\nlimits.head_timeout = \"${{env:SECRET}}\"\n\
         guard.allow = [\"${{env:SECRET}}\"]\n{LISTENER}\
         [[route]]\nmatch = {{ path = \"${{env:SECRET}}\", host = \"${{env:SECRET}}:1\", method = \"${{env:SECRET}}\" }}\nto = \"http://${{env:SECRET}}\"\n"
    );
    let problems = read(&text).expect_err("nothing is what it should be");
    assert!(problems.len() >= 9, "{problems:?}");
    let shown = format!("{}{problems:?}", render(&problems, &text, "test", false));
    assert!(!shown.to_lowercase().contains("hunter2"), "{shown}");
}

#[test]
fn secrets_are_not_shown_by_checks_across_sections_either() {
    let text = format!(
        "plugins.p = {{ source = \"builtin:${{env:SECRET}}\" }}\n{LISTENER}name = \"${{env:SECRET}}\"\n\
         [[listener]]\nlisten = \":81\"\nname = \"${{env:SECRET}}\"\n\
         [[route]]\nname = \"${{env:SECRET}}\"\nto = \"a:1\"\n\
         [[route]]\nplugin = \"${{env:SECRET}}\"\non_failure = {{ upstream = \"${{env:SECRET}}\" }}\n\
         [compat.caddy]\na = \"${{env:SECRET}}\"\n"
    );
    let problems = read(&text).expect_err("names of nothing");
    assert_eq!(problems.len(), 6, "{problems:?}");
    let shown = format!("{}{problems:?}", render(&problems, &text, "test", false));
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_config_made_in_code_is_checked_without_a_file() {
    let mut config = good(LISTENER);
    assert_eq!(validate::check(&config), []);
    config
        .caddy_ids
        .insert("proxy-map".to_owned(), "upstreams".to_owned());
    let findings: Vec<String> = validate::check(&config)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        findings,
        ["compat.caddy.proxy-map: no bucket is named \"upstreams\" (the config has no buckets)"]
    );
}

#[test]
fn paths_are_relative_to_the_file() {
    let config =
        Config::parse(LISTENER, Some(Path::new("/etc/throwbar/throwbar.toml"))).expect("right");
    assert_eq!(config.data, Path::new("/etc/throwbar/data"));
    assert_eq!(
        Config::parse(LISTENER, None).expect("right").data,
        Path::new("data")
    );
    assert_eq!(
        Config::parse(LISTENER, Some(Path::new("t.toml")))
            .expect("right")
            .data,
        Path::new("data")
    );
}

#[test]
fn huge_text_and_many_problems_are_bound() {
    assert_eq!(
        read(&" ".repeat(decode::TEXT_BYTES_MAX + 1))
            .expect_err("huge")
            .len(),
        1
    );
    let many: String = (0..10_000)
        .map(|index| format!("key{index} = {index}\n"))
        .collect();
    assert!(read(&many).expect_err("unknown keys").len() <= 200);
}

#[test]
fn lists_are_bound() {
    let routes = "[[route]]\nto = \"a:1\"\n".repeat(10_001);
    let message = "route: `route` has 10001 entries, expected at most 10000";
    assert!(problems(&format!("{LISTENER}{routes}"))[0].contains(message));
    let endpoints: String = (0..1_001).map(|index| format!("\"a{index}:1\",")).collect();
    let found = problems(&format!(
        "upstreams.u.endpoints = [{endpoints}]\n{LISTENER}"
    ));
    assert_eq!(found.len(), 1);
    assert!(
        found[0].contains("has 1001 endpoints, expected at most 1000"),
        "{found:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let problems = read(&text).expect_err("no listener");
        render(&problems, &text, "test", true);
    }

    #[test]
    fn spoilt_examples_never_panic(at in 0usize..12_000, cut in 0usize..40, put in "[\\PC\n]{0,12}") {
        let text = include_str!("../../../examples/reference/throwbar.toml");
        let mut start = at % text.len();
        while !text.is_char_boundary(start) { start -= 1; }
        let mut end = (start + cut).min(text.len());
        while !text.is_char_boundary(end) { end -= 1; }
        let spoilt = format!("{}{put}{}", &text[..start], &text[end.max(start)..]);
        if let Err(problems) = read(&spoilt) {
            prop_assert!(!problems.is_empty());
            render(&problems, &spoilt, "test", false);
            for problem in problems {
                prop_assert!(spoilt.get(problem.span.clone()).is_some());
            }
        }
    }
}
