//! The `by-header` plugin: one header field names an entry of a bucket, another one its port.

pub mod by_header;

pub use by_header::ByHeader;

throwbar::export!(ByHeader);

#[cfg(test)]
mod tests {
    use super::ByHeader;
    use throwbar::Target;
    use throwbar::testing::{Host, Outcome, get};

    fn host() -> Host {
        Host::new().bucket(
            "upstreams",
            [
                ("id1", "127.0.0.2"),
                ("id2", "127.0.0.3:81"),
                ("six", "::1"),
            ],
        )
    }

    #[test]
    fn id_and_port_make_the_address_and_both_fields_go() {
        let plugin = host().start::<ByHeader>().unwrap();
        let request = get("/a?b").header("X-ID", "id1").header("X-Port", "8080");
        let forwarded = plugin.route(request.header("accept", "*/*")).forwarded();
        assert_eq!(forwarded.to, Target::address("127.0.0.2:8080"));
        assert_eq!(forwarded.headers, [("accept".into(), "*/*".into())]);
        assert_eq!(forwarded.path, "/a?b");
        assert_eq!(forwarded.key.as_deref(), Some("id1"));

        let request = get("/").header("x-id", "six").header("x-port", "80");
        let forwarded = plugin.route(request).forwarded();
        assert_eq!(forwarded.to, Target::address("[::1]:80"));
    }

    #[test]
    fn the_port_field_wins_over_the_port_of_the_entry() {
        let plugin = host().start::<ByHeader>().unwrap();
        let request = get("/").header("x-id", "id2").header("x-port", "9");
        let forwarded = plugin.route(request).forwarded();
        assert_eq!(forwarded.to, Target::address("127.0.0.3:9"));
    }

    #[test]
    fn anything_else_is_a_404_that_names_the_id() {
        let plugin = host().start::<ByHeader>().unwrap();
        let body = |ask| {
            let reply = plugin.route(ask).replied();
            assert_eq!(reply.status, 404);
            let json = ("content-type".to_owned(), "application/json".to_owned());
            assert_eq!(reply.headers, [json]);
            String::from_utf8(reply.body).unwrap()
        };
        let unknown = r#"{"error": "Invalid request", "id": "id9"}"#;
        assert_eq!(
            body(get("/").header("x-id", "id9").header("x-port", "80")),
            unknown
        );
        assert_eq!(
            body(get("/").header("x-port", "80")),
            r#"{"error": "Invalid request", "id": ""}"#
        );
        assert_eq!(
            body(get("/").header("x-id", r#"a"b\"#).header("x-port", "80")),
            r#"{"error": "Invalid request", "id": "a\"b\\"}"#
        );
        for port in ["", "0", "080", "08080", "65536", "+1", "8o", "80 "] {
            let request = get("/").header("x-id", "id1").header("x-port", port);
            assert_eq!(
                body(request),
                r#"{"error": "Invalid request", "id": "id1"}"#,
                "port {port:?}"
            );
        }
        assert_eq!(
            body(get("/").header("x-id", "id1")),
            r#"{"error": "Invalid request", "id": "id1"}"#
        );
    }

    #[test]
    fn without_a_port_field_the_port_is_that_of_the_entry() {
        let host = host().config("port-header", "");
        let plugin = host.start::<ByHeader>().unwrap();
        let forwarded = plugin.route(get("/").header("x-id", "id2")).forwarded();
        assert_eq!(forwarded.to, Target::address("127.0.0.3:81"));
        let portless = plugin.route(get("/").header("x-id", "id1"));
        assert_eq!(portless.replied().status, 404);
    }

    #[test]
    fn a_port_of_the_settings_is_that_of_every_request() {
        let plugin = host().config("port", "99").start::<ByHeader>().unwrap();
        let request = get("/").header("x-id", "id1").header("x-port", "1");
        let forwarded = plugin.route(request).forwarded();
        assert_eq!(forwarded.to, Target::address("127.0.0.2:99"));
        assert_eq!(forwarded.headers, [("x-port".into(), "1".into())]);
        assert_eq!(forwarded.key.as_deref(), Some("id1"));
        assert_eq!(plugin.route(get("/")).replied().status, 404);
    }

    #[test]
    fn both_fields_are_sent_on_if_the_settings_say_so() {
        let plugin = host().config("strip", "false").start::<ByHeader>().unwrap();
        let request = get("/").header("x-id", "id1").header("x-port", "8080");
        assert_eq!(plugin.route(request).forwarded().headers.len(), 2);
    }

    #[test]
    fn an_unknown_id_may_be_left_to_the_next_route() {
        let plugin = host()
            .config("unknown", "pass")
            .start::<ByHeader>()
            .unwrap();
        for request in [
            get("/"),
            get("/").header("x-id", "id9").header("x-port", "80"),
        ] {
            assert!(matches!(plugin.route(request), Outcome::Passed));
        }
        let known = get("/").header("x-id", "id1").header("x-port", "80");
        plugin.route(known).forwarded();
    }

    #[test]
    fn a_request_without_the_field_may_have_the_entry_of_an_empty_key() {
        let host = || Host::new().bucket("upstreams", [("", "127.0.0.9:82"), ("a", "127.0.0.2")]);
        let to = |host: Host, ask| match host.start::<ByHeader>().unwrap().route(ask) {
            Outcome::Forwarded(forwarded) => Some(forwarded.to),
            _ => None,
        };
        let empty = || host().config("absent", "empty");
        let by_field = || get("/").header("x-port", "80");
        assert_eq!(
            to(empty(), by_field()),
            Some(Target::address("127.0.0.9:80"))
        );
        let fixed = empty().config("port", "81");
        assert_eq!(to(fixed, get("/")), Some(Target::address("127.0.0.9:81")));
        let own = empty().config("port-header", "");
        assert_eq!(to(own, get("/")), Some(Target::address("127.0.0.9:82")));
        assert_eq!(to(host(), by_field()), None);
        assert_eq!(to(empty(), get("/").header("x-port", "080")), None);
        assert_eq!(to(empty(), by_field().header("x-id", "b")), None);
    }

    #[test]
    fn settings_name_the_fields_and_the_bucket() {
        let host = Host::new()
            .bucket("agents", [("a", "127.0.0.4")])
            .config("bucket", "agents")
            .config("header", "X-Agent")
            .config("port-header", "X-Agent-Port");
        let plugin = host.start::<ByHeader>().unwrap();
        let request = get("/")
            .header("x-agent", "a")
            .header("x-agent-port", "1")
            .header("x-id", "stays");
        let forwarded = plugin.route(request).forwarded();
        assert_eq!(forwarded.to, Target::address("127.0.0.4:1"));
        assert_eq!(forwarded.headers, [("x-id".into(), "stays".into())]);
    }

    #[test]
    fn a_config_that_cannot_work_is_refused() {
        let empty = host().config("header", "").start::<ByHeader>();
        assert!(empty.err().unwrap().contains("\"header\""));
        for (name, value) in [
            ("port", "0"),
            ("port", "x"),
            ("strip", "no"),
            ("absent", "no"),
            ("unknown", ""),
        ] {
            let error = host().config(name, value).start::<ByHeader>().err();
            assert!(error.unwrap().contains(name), "{name} {value}");
        }
        let both = host().config("port", "1").config("port-header", "x-p");
        assert!(both.start::<ByHeader>().err().unwrap().contains("exclude"));
        let ungranted = host().config("bucket", "other").start::<ByHeader>();
        assert_eq!(ungranted.err().unwrap(), "bucket \"other\" is not granted");
    }
}
