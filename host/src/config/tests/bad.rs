use super::{LISTENER, problems};

/// A text that stands after three lines, and its only problem.
const BAD: &[(&str, &str)] = &[
    (
        "worker = 2",
        "4:1 worker: unknown key `worker` [did you mean `workers`?]",
    ),
    (
        "buckets.b.on_change = \"drop\"",
        "4:23 buckets.b.on_change: unknown on_change \"drop\": expected `keep`, `close` or `{ drain = { after = \"0s\", over = \"5m\" } }`",
    ),
    (
        "buckets.b.on_change = 5",
        "4:23 buckets.b.on_change: `on_change` is the integer 5, expected `\"keep\"`, `\"close\"` or `{ drain = { after = \"0s\", over = \"5m\" } }`",
    ),
    (
        "buckets.b.on_change = { drain = { ovr = \"5s\" } }",
        "4:35 buckets.b.on_change.drain.ovr: unknown key `ovr` in buckets.b.on_change.drain [did you mean `over`?]",
    ),
    (
        "buckets.b.on_change = { drain = { over = \"2d\" } }",
        "4:42 buckets.b.on_change.drain.over: `over` is 172800s: expected at most 86400s",
    ),
    (
        "buckets.b = { values = \"bytes\", on_change = \"close\" }",
        "4:45 buckets.b.on_change: the values of bucket \"b\" are bytes: no stream is routed by them",
    ),
    (
        "streams.age_jitter = 0.6",
        "4:22 streams.age_jitter: `age_jitter` is 0.6: expected 0 to 0.5",
    ),
    (
        "streams.age_jitter = \"10%\"",
        "4:22 streams.age_jitter: `age_jitter` is a string, expected a number such as 0.1",
    ),
    ("version = 2", "4:11 version: `version` is 2, expected 1"),
    (
        "workers = \"2\"",
        "4:11 workers: `workers` is a string, expected an integer",
    ),
    (
        "workers = 0",
        "4:11 workers: `workers` is 0: expected 1 to 256",
    ),
    (
        "workers = -1",
        "4:11 workers: `workers` is -1, which is out of range",
    ),
    (
        "data = \"\"",
        "4:8 data: \"\" is not a path: expected the path of a file or directory",
    ),
    (
        "data = \"${env:NONE}\"",
        "4:8 data: environment variable `NONE` is not set: set it, or write `${env:NONE:-default}`",
    ),
    (
        "data = \"${evn:X}\"",
        "4:8 data: unknown substitution `${evn:X}`: expected `${env:NAME}`, `${file:PATH}`, or in the body of a reply `${header.NAME}`; write `$${` for a plain `${`",
    ),
    (
        "admin = 1",
        "4:9 admin: `admin` is the integer 1, expected a table",
    ),
    (
        "admin.listen = \"2019\"",
        "4:16 admin.listen: \"2019\" is not an address of the admin API: expected an address: write \":2019\" or \"127.0.0.1:2019\"",
    ),
    (
        "admin = { listen = \":2019\", auth = \"none\" }",
        "4:36 admin.auth: `auth` is \"none\" and the admin API listens on 0.0.0.0:2019, which others can reach [write `auth = \"token\"`, or listen on 127.0.0.1]",
    ),
    (
        "admin.auth = \"tokne\"",
        "4:14 admin.auth: unknown auth \"tokne\": expected `token` or `none` [did you mean `token`?]",
    ),
    (
        "admin.body_bytes_max = \"1MB\"",
        "4:24 admin.body_bytes_max: \"1MB\" is not a size: write \"1MiB\"",
    ),
    (
        "[[listener]]",
        "4:1 listener[1]: key `listen` is missing in listener[1] [write `listen = \"127.0.0.1:8080\"`]",
    ),
    (
        "[[listener]]\nlisten = \"127.0.0.1:8080\"",
        "5:10 listener[1].listen: 127.0.0.1:8080 is the address of listener \"listener-1\" already",
    ),
    (
        "[[listener]]\nlisten = \":2019\"",
        "5:10 listener[1].listen: 0.0.0.0:2019 takes the address of the admin API, 127.0.0.1:2019",
    ),
    (
        "[[listener]]\nname = \"listener-1\"\nlisten = \":81\"",
        "5:8 listener[1].name: two listeners are named \"listener-1\"",
    ),
    (
        "[[listener]]\nlisten = \":81\"\nprotocols = [\"http\"]",
        "6:14 listener[1].protocols[0]: unknown protocol \"http\": expected `h1` or `h2c`",
    ),
    (
        "[[listener]]\nlisten = \":81\"\nprotocols = []",
        "6:13 listener[1].protocols: the listener speaks no protocol [write `protocols = [\"h1\", \"h2c\"]`]",
    ),
    (
        "[buckets.b]\nbackend = \"files\"",
        "5:11 buckets.b.backend: unknown backend \"files\": expected `embedded`, `memory`, `etcd` or `redis`",
    ),
    (
        "[store.embedded]\nsync = \"never\"",
        "5:8 store.embedded.sync: unknown sync \"never\": expected `always` or `interval`",
    ),
    (
        "[store.embedded]\nsync = \"interval\"\nsync_interval = \"0s\"",
        "6:17 store.embedded.sync_interval: `sync_interval` is 0ns: expected 1ms to 60s",
    ),
    (
        "[buckets.\"a b\"]",
        "4:1 buckets.\"a b\": \"a b\" cannot be the name of a bucket: expected at most 64 letters, digits, `-`, `_` and `.`, the first a letter or digit",
    ),
    (
        "[upstreams.u]",
        "4:1 upstreams.u: key `endpoints` is missing in upstreams.u [write `endpoints = [\"127.0.0.1:9000\"]`]",
    ),
    (
        "[upstreams.u]\nendpoints = []",
        "5:13 upstreams.u.endpoints: upstream \"u\" has no endpoints [write `endpoints = [\"127.0.0.1:9000\"]`]",
    ),
    (
        "[upstreams.u]\nendpoints = [\"a:1\", \"A:1\"]",
        "5:21 upstreams.u.endpoints[1]: upstream \"u\" has this endpoint twice",
    ),
    (
        "[upstreams.u]\nendpoints = [\"http://a:1/\"]",
        "5:14 upstreams.u.endpoints[0]: \"http://a:1/\" is not an endpoint: expected no scheme: write \"a:1\"",
    ),
    (
        "[upstreams.u]\nendpoints = [\"a:1\"]\npolicy = \"roundrobin\"",
        "6:10 upstreams.u.policy: unknown policy \"roundrobin\": expected `round-robin`, `least-requests` or `hash` [did you mean `round-robin`?]",
    ),
    (
        "[plugins.p]\nsource = \"builtin:by-haeder\"",
        "5:10 plugins.p.source: \"builtin:by-haeder\" is not built in: expected `builtin:by-header`, `builtin:canary`, `builtin:chat-filter`, `builtin:maintenance`, `builtin:path-prefix`, `builtin:prefix-rules` or `builtin:self-register` [did you mean `builtin:by-header`?]",
    ),
    (
        "[plugins.By_Header]",
        "4:1 plugins.By_Header: \"By_Header\" cannot be the name of a plugin: expected 1 to 64 of a-z, 0-9 and `-`",
    ),
    (
        "[plugins.p]\nlimits = { memory = \"65MiB\" }",
        "5:21 plugins.p.limits.memory: `memory` is 68157440: expected 65536 to 67108864",
    ),
    (
        "[plugins.p]\nbuckets = { upstream = \"read\" }\n[buckets.upstreams]",
        "5:24 plugins.p.buckets.upstream: no bucket is named \"upstream\" [did you mean `upstreams`?]",
    ),
    (
        "[plugins.p]\nsettings = { a = [1] }",
        "5:18 plugins.p.settings.a: `a` is an array, expected a string, a number or true or false",
    ),
    (
        "[plugins.p]\nlimits = { deadline = 5 }",
        "5:23 plugins.p.limits.deadline: `deadline` has no unit [write \"5s\" or \"5ms\"]",
    ),
    (
        "[plugins.p]\nlimits = { deadline = \"0ms\" }",
        "5:23 plugins.p.limits.deadline: `deadline` is 0: nothing would ever be in time",
    ),
    (
        "[route]",
        "4:1 route: `route` is a table, expected an array of tables [write `[[route]]`]",
    ),
    (
        "[[route]]",
        "4:1 route[0]: the route does nothing with its requests [write one of `plugin`, `to`, `upstream` or `reply`]",
    ),
    (
        "[[route]]\nplugin = \"by-id\"\n[plugins.by-ip]",
        "5:10 route[0].plugin: no plugin is named \"by-id\" [did you mean `by-ip`?]",
    ),
    (
        "[[route]]\nupstream = \"app\"",
        "5:12 route[0].upstream: no upstream is named \"app\" [the config has no upstreams]",
    ),
    (
        "[[route]]\nto = \"169.254.169.254:80\"",
        "5:6 route[0].to: never dialled: address 169.254.169.254:80 is link-local, unspecified or multicast",
    ),
    (
        "[[route]]\nto = \"127.0.0.1:8080\"",
        "5:6 route[0].to: never dialled: address 127.0.0.1:8080 is our own",
    ),
    (
        "[[route]]\nto = \"127.0.0.1\"",
        "5:6 route[0].to: \"127.0.0.1\" is not an address to forward to: it has no port: write \"127.0.0.1:8080\"",
    ),
    (
        "[[route]]\nto = \"a:1\"\nreply = { status = 404 }",
        "6:1 route[0].reply: `reply` conflicts with `to`: a route has one handler",
    ),
    (
        "[[route]]\nto = \"a:1\"\non_failure = \"last-good\"",
        "6:1 route[0].on_failure: `on_failure` is for routes with `plugin`",
    ),
    (
        "[[route]]\nto = \"a:1\"\n[[route]]\nto = \"b:1\"",
        "6:1 route[1]: no request reaches route \"route-2\": route \"route-1\" before it takes them all [the first route that matches decides: put the narrower one first]",
    ),
    (
        "[[route]]\nreply = { status = 99 }",
        "5:20 route[0].reply.status: status 99 is not one of a reply: expected 200 to 599",
    ),
    (
        "[[route]]\nreply = { body = \"x\" }",
        "5:9 route[0].reply: key `status` is missing in route[0].reply [write `status = 404`]",
    ),
    (
        "[[route]]\nreply = { status = 404, body = \"${header.a b}\" }",
        "5:32 route[0].reply.body: `${header.a b}` does not name a header field",
    ),
    (
        "[[route]]\nreply = { status = 404, headers = { content-length = \"1\" } }",
        "5:37 route[0].reply.headers.content-length: `content-length` is set by the proxy itself",
    ),
    (
        "[[route]]\nreply = { status = 404, headers = { x = \"a\\r\\nb\" } }",
        "5:41 route[0].reply.headers.x: \"a\\r\\nb\" is not the value of a header field: expected no line ends or other control characters",
    ),
    (
        "[[route]]\nreply = { status = 204, body = \"x\" }",
        "5:25 route[0].reply.body: a reply with status 204 has no body",
    ),
    (
        "[[route]]\nmatch = { path = \"a\" }\nto = \"a:1\"",
        "5:18 route[0].match.path: \"a\" is not a path to match: expected it to begin with `/`, or with `re:` for a regular expression",
    ),
    (
        "[[route]]\nmatch = { path = \"re:(\" }\nto = \"a:1\"",
        "5:18 route[0].match.path: \"re:(\" is not a path to match: unclosed group",
    ),
    (
        "[[route]]\nmatch = { path = [] }\nto = \"a:1\"",
        "5:18 route[0].match.path: `path` is empty: it would match nothing [leave it out to match everything]",
    ),
    (
        "[[route]]\nmatch = { host = \"a:80\" }\nto = \"a:1\"",
        "5:18 route[0].match.host: \"a:80\" is not a host to match: expected a host without its port",
    ),
    (
        "[[route]]\nmatch = { method = \"get\" }\nto = \"a:1\"",
        "5:20 route[0].match.method: \"get\" is not a method: methods are case-sensitive: write \"GET\"",
    ),
    (
        "[[route]]\nmatch = { header = { \"x y\" = \"*\" } }\nto = \"a:1\"",
        "5:22 route[0].match.header.\"x y\": \"x y\" is not the name of a header field",
    ),
    (
        "[[route]]\nmatch = { upgrade = \"h2c\" }\nto = \"a:1\"",
        "5:21 route[0].match.upgrade: unknown upgrade \"h2c\": expected `websocket`",
    ),
    (
        "[plugins.p]\nkeep = 0",
        "5:8 plugins.p.keep: `keep` is 0: expected 1 to 100",
    ),
    (
        "[plugins.p]\non_max_draining = \"drain-oldest\"",
        "5:19 plugins.p.on_max_draining: `on_max_draining` closes streams over 30s, but there is no `max_draining`",
    ),
    (
        "[plugins.p.guard]\nerror_rate = 5",
        "5:14 plugins.p.guard.error_rate: `error_rate` is the integer 5, expected a number from 0 to 1",
    ),
    (
        "[plugins.p.guard]\nerror_rate = 1",
        "4:1 plugins.p.guard: this guard has no limit: expected one of `error_rate`, `traps`, `p99`",
    ),
    (
        "[plugins.p.guard]\np99 = \"20ms\"",
        "5:7 plugins.p.guard.p99: `p99` is 20ms: expected 1µs to 10ms",
    ),
    (
        "guard.allow = [\"10.1.0.0/8\"]",
        "4:16 guard.allow[0]: \"10.1.0.0/8\" is not a network: it has bits set beyond its prefix: write \"10.0.0.0/8\"",
    ),
    (
        "guard.ports = [\"9-1\"]",
        "4:16 guard.ports[0]: \"9-1\" is not a range of ports: the range is empty: write \"1-9\"",
    ),
    (
        "limits.head_timeout = \"0s\"",
        "4:23 limits.head_timeout: `head_timeout` is 0: nothing would ever be in time",
    ),
    (
        "limits.head_bytes_max = \"1KiB\"",
        "4:25 limits.head_bytes_max: `head_bytes_max` is 1024: expected 8192 to 1048576",
    ),
    (
        "limits.via = 1",
        "4:14 limits.via: `via` is the integer 1, expected true or false",
    ),
    (
        "limits.headers_max = 1e3",
        "4:22 limits.headers_max: `headers_max` is the number 1e3, expected an integer",
    ),
    (
        "streams.age_max = \"4 hours\"",
        "4:19 streams.age_max: \"4 hours\" is not a duration: expected a whole number with its unit, such as \"250ms\", \"5s\", \"10m\" or \"4h\"",
    ),
    (
        "streams.ping_client = \"1ms\"",
        "4:23 streams.ping_client: `ping_client` is 1ms: expected 100ms to 86400s",
    ),
    (
        "[[route]]\nto = \"a:1\"\nstreams = { ping_upstream = \"25h\" }",
        "6:29 route[0].streams.ping_upstream: `ping_upstream` is 90000s: expected 100ms to 86400s",
    ),
    (
        "[[route]]\nto = \"a:1\"\nstreams = { ping = \"5s\" }",
        "6:13 route[0].streams.ping: unknown key `ping` in route[0].streams [expected `idle_timeout`, `age_max`, `ping_client` or `ping_upstream`]",
    ),
    (
        "[[route]]\nreply = { status = 404 }\nstreams = { age_max = \"1h\" }",
        "6:11 route[0].streams: `streams` is for routes that forward: a reply opens none",
    ),
    (
        "log.level = \"chatty=loud\"",
        "4:13 log.level: unknown level \"loud\": expected off, error, warn, info, debug, trace, or target=level",
    ),
    (
        "log.level = \"loud\"",
        "4:13 log.level: unknown level \"loud\": expected off, error, warn, info, debug, trace, or target=level",
    ),
    (
        "compat.caddy.map = \"nope\"",
        "4:20 compat.caddy.map: no bucket is named \"nope\" [the config has no buckets]",
    ),
    (
        "compat.caddy.map = \"b\"\nbuckets.b.values = \"bytes\"",
        "4:20 compat.caddy.map: the values of bucket \"b\" are bytes, expected endpoints",
    ),
    (
        "a = 1\na = 2",
        "5:1 : `a` is there twice [the first is on line 4]",
    ),
    (
        "[guard]\nports = []\n[limits]\nvia = true\nvia = false",
        "8:1 : `via` is there twice [the first is on line 7]",
    ),
    (
        "streams.age_max = \"1h\"\nstreams.age_max = \"2h\"",
        "5:9 : `streams.age_max` is there twice [the first is on line 4]",
    ),
    (
        "[buckets.a]\n[buckets.\"b\"]\n[buckets.a] # again",
        "6:10 : `buckets.a` is there twice [the first is on line 4: put all of its keys there]",
    ),
    (
        "[[route]]\nto = \"a:1\"\n[route]",
        "6:2 : `route` is there twice [line 4 has `[[route]]`: write `[[route]]` for one more]",
    ),
    (
        "[guard]\nworkers = 2",
        "5:1 guard.workers: unknown key `workers` in guard [`workers` is a key of the top level: put it before the first `[table]`]",
    ),
    (
        "[buckets]\ndata = \"data\"",
        "5:1 buckets.data: unknown key `data` in buckets [`data` is a key of the top level: put it before the first `[table]`]",
    ),
    (
        "[[route]]\nto = \"a:1\"\n[route.limits]\nvia = true",
        "6:8 route[0].limits: unknown key `limits` in route[0] [it is a table of the top level: write `[limits]`]",
    ),
    (
        "[guard]\nbuckets.a.backend = \"memory\"",
        "5:1 guard.buckets: unknown key `buckets` in guard [they are tables of the top level: write `[buckets.NAME]`]",
    ),
    (
        "[guard]\nlistener = [{ listen = \":81\" }]",
        "5:1 guard.listener: unknown key `listener` in guard [they are tables of the top level: write `[[listener]]`]",
    ),
];

#[test]
fn what_is_said_of_misplaced_keys_holds_for_all_keys_of_the_top_level() {
    let text = format!("zzzzzzzzzzzz = 1\n{LISTENER}");
    let told = &problems(&text)[0];
    let (_, known) = told.split_once("[expected ").expect("help");
    let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
    assert_eq!(known.len(), 17, "{told}");
    for key in known {
        for value in ["1", "{}", "[]"] {
            let text = format!("{LISTENER}\n[guard]\n{key} = {value}\n");
            let told = problems(&text);
            let is_table = value != "1";
            let is_value = ["version", "workers", "data"].contains(&key);
            let helps = told[0].contains("of the top level: ");
            assert_eq!(helps, is_table != is_value, "{told:?}");
        }
    }
}

#[test]
fn each_problem_has_its_place_and_says_what_was_expected() {
    for (text, expected) in BAD {
        // Keys at the top level must come before tables.
        let first = "listener = [{ listen = \"127.0.0.1:8080\" }]\n\n\n";
        let text = match text.starts_with("[[listener]]") {
            true => format!("{LISTENER}\n{text}"),
            false => format!("{first}{text}"),
        };
        assert_eq!(problems(&text), [*expected], "{text}");
    }
}
