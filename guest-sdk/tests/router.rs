//! The attribute and the fake host, as a plugin's own tests use them.

use throwbar::prelude::*;
use throwbar::testing::{Host, Outcome, get, request};

mod by_function {
    use super::*;

    #[throwbar::router]
    pub(super) fn route(req: &Request) -> Decision {
        if let Some(key) = req.header("X-Key") {
            return match req.find("upstreams", key) {
                Some(entry) => Forward::to(entry).key(format!("found {key}")).into(),
                None => Decision::Pass,
            };
        }
        match req.lookup_port("upstreams", "x-id", "x-port") {
            Some(entry) => entry.into(),
            None => helped(req),
        }
    }

    /// Reads what the attribute cannot see.
    fn helped(asked: &Request) -> Decision {
        let (first, again) = (asked.header("x-other"), asked.header("X-OTHER"));
        assert_eq!(first, again);
        let text = format!("{} {:?} {:?}", asked.method(), asked.query(), first);
        Reply::text(200, text).into()
    }
}

#[test]
fn a_function_subscribes_to_its_literals_and_reaches_the_rest() {
    let host = Host::new().bucket("upstreams", [("a", "127.0.0.2:81"), ("b", "127.0.0.3")]);
    let plugin = host.start::<by_function::route>().unwrap();

    let forwarded = plugin.route(get("/").header("x-key", "a")).forwarded();
    assert_eq!(forwarded.to, Target::address("127.0.0.2:81"));
    assert_eq!(forwarded.key.as_deref(), Some("found a"));
    let portless = plugin.route(get("/").header("x-key", "b"));
    assert_eq!(portless, Outcome::Passed);

    let ask = get("/").header("x-id", "b").header("x-port", "82");
    let forwarded = plugin.route(ask).forwarded();
    assert_eq!(forwarded.to, Target::address("127.0.0.3:82"));
    assert_eq!(forwarded.key.as_deref(), Some("b"));

    let ask = request("PUT", "/?q").header("x-other", "o");
    let reply = plugin.route(ask).replied();
    assert_eq!(reply.body, br#"PUT Some("q") Some("o")"#);
}

#[test]
fn a_bucket_that_is_not_granted_refuses_the_plugin() {
    let error = Host::new().start::<by_function::route>().err().unwrap();
    assert_eq!(error, "bucket \"upstreams\" is not granted");
}

mod unseen {
    use super::*;

    #[throwbar::router]
    pub(super) fn route(req: &Request) -> Decision {
        let (bucket, key) = ("upstreams", "x-id");
        req.lookup(bucket, key).map_or(Decision::Pass, Into::into)
    }
}

#[test]
fn a_lookup_in_a_bucket_nobody_subscribed_to_says_what_to_do() {
    let host = Host::new().bucket("upstreams", [("a", "127.0.0.2:81")]);
    let plugin = host.start::<unseen::route>().unwrap();
    let outcome = plugin.route(get("/").header("x-id", "a"));
    assert!(matches!(outcome, Outcome::Panicked(why) if why.contains("name it as a literal")));
}

/// Looks up by tokens and by names, and edits both ways.
struct Tokens {
    upstreams: Bucket,
    id: Slot,
    tenant: Subscribed,
}

#[throwbar::router]
impl Router for Tokens {
    fn init(setup: &mut Setup) -> Result<Self, String> {
        setup.remove_request_header("x-id");
        setup.set_request_header("x-via", "constant");
        setup.set_response_header("x-version", "1");
        Ok(Self {
            upstreams: setup.bucket("upstreams"),
            id: setup.slot_header("X-ID"),
            tenant: setup.header("X-Tenant"),
        })
    }

    fn route(&self, req: &Request) -> Decision {
        let by_token = req.lookup(self.upstreams, self.id);
        assert_eq!(
            by_token.is_some(),
            req.lookup("upstreams", "x-id").is_some()
        );
        // This field has no slot: the key goes through the plugin.
        let entry = by_token.or(req.lookup(self.upstreams, "x-spare-id"));
        match entry {
            Some(entry) => Forward::to(entry)
                .set_header("X-Via", req.get(self.tenant).unwrap_or("nobody"))
                .remove_response_header("server")
                .rewrite("/other?path")
                .into(),
            None => Reply::text(404, req.slot(self.id).unwrap_or_default()).into(),
        }
    }
}

#[test]
fn edits_are_made_in_order_and_entries_become_addresses() {
    let host = Host::new().bucket("upstreams", [("a", "[::1]:81")]);
    let plugin = host.start::<Tokens>().unwrap();
    let ask = get("/").header("x-id", "a").header("x-tenant", "blue");
    let forwarded = plugin.route(ask.header("X-Via", "client")).forwarded();
    assert_eq!(forwarded.to, Target::address("[::1]:81"));
    assert_eq!(forwarded.path, "/other?path");
    assert_eq!(forwarded.header("x-id"), None);
    assert_eq!(forwarded.header("x-via"), Some("blue"));
    assert_eq!(forwarded.headers.len(), 2);
    assert_eq!(forwarded.response_remove, ["server"]);
    assert_eq!(forwarded.response_set, [("x-version".into(), "1".into())]);

    let spare = plugin.route(get("/").header("x-spare-id", "a"));
    assert_eq!(spare.forwarded().to, Target::address("[::1]:81"));
    let unknown = plugin.route(get("/").header("x-id", "b")).replied();
    assert_eq!((unknown.status, &unknown.body[..]), (404, &b"b"[..]));
}

mod writing {
    use super::*;

    #[throwbar::router]
    pub(super) fn route(req: &Request) -> Reply {
        let known = kv::get("agents", "a").unwrap();
        let revision = known.map(|entry| entry.revision);
        let stale = kv::compare_and_set("agents", "a", Some(99), None);
        assert_eq!(stale, Err(kv::Error::Conflict(revision)));
        kv::compare_and_set("agents", "a", revision, Some(b"127.0.0.9")).unwrap();
        log::info("written");
        if req.header("x-panic").is_some() {
            panic!(
                "after {}",
                kv::get("agents", "a").unwrap().unwrap().revision
            );
        }
        Reply::new(204)
    }
}

#[test]
fn writes_are_applied_when_the_call_returns_and_not_after_a_panic() {
    let host = Host::new().writable_bucket("agents", [("a", "127.0.0.2")]);
    let plugin = host.start::<writing::route>().unwrap();

    let outcome = plugin.route(get("/").header("x-panic", "1"));
    assert_eq!(outcome, Outcome::Panicked("after 0".into()));
    assert_eq!(host.value("agents", "a").unwrap(), "127.0.0.2");

    assert_eq!(plugin.route(get("/")).replied().status, 204);
    assert_eq!(host.value("agents", "a").unwrap(), "127.0.0.9");
    assert_eq!(host.log().len(), 2);
    // And again: the entry has the revision that the first call committed.
    assert_eq!(plugin.route(get("/")).replied().status, 204);
}

/// Has a setting that is a number.
struct Picky {
    port: u16,
}

#[throwbar::router]
impl Router for Picky {
    fn init(_: &mut Setup) -> Result<Self, String> {
        let port = config::parse("port")?.unwrap_or(80);
        Ok(Self { port })
    }

    fn route(&self, req: &Request) -> Decision {
        let scheme = (req.scheme(), req.authority(), req.client_ip());
        assert_eq!(scheme, ("https", "a.test", "10.0.0.1"));
        assert!(req.is_websocket());
        assert_eq!(req.header_all("x-a"), [b"1", b"2"]);
        assert_eq!(req.header_names(), ["x-a", "x-b"]);
        Target::address(format!("127.0.0.1:{}", self.port)).into()
    }
}

#[test]
fn a_setting_that_cannot_be_read_is_named_with_its_value() {
    let error = Host::new().config("port", "http").start::<Picky>();
    let error = error.err().unwrap();
    assert!(
        error.starts_with("setting \"port\" is \"http\": "),
        "{error}"
    );
}

#[test]
fn the_whole_request_can_be_asked_for() {
    let plugin = Host::new().config("port", "81").start::<Picky>().unwrap();
    let ask = get("/")
        .scheme("https")
        .authority("a.test")
        .client_ip("10.0.0.1")
        .websocket()
        .header("x-a", "1")
        .header("x-b", "3")
        .header("x-a", "2");
    let to = plugin.route(ask).forwarded().to;
    assert_eq!(to, Target::address("127.0.0.1:81"));
}

struct Choosy;

impl Router for Choosy {
    fn init(_: &mut Setup) -> Result<Self, String> {
        Ok(Self)
    }

    fn route(&self, req: &Request) -> Decision {
        let forward = Forward::to(Target::upstream("app"));
        match req.is_websocket() {
            true => forward.on_change(OnChange::Close).into(),
            false => forward.into(),
        }
    }
}

#[test]
fn what_is_said_of_a_stream_holds_for_one_call() {
    let plugin = Host::new().start::<Choosy>().unwrap();
    let said = |ask| plugin.route(ask).forwarded().on_change;
    assert_eq!(said(get("/").websocket()), Some(OnChange::Close));
    assert_eq!(said(get("/")), None);
}

/// Rewrites notes that begin with `1:` so that they begin with `2:`, and refuses others.
fn second_form(from: Option<&str>) -> Result<(), String> {
    kv::each("notes", "", |key, entry| {
        let note = String::from_utf8_lossy(&entry.value).into_owned();
        match (note.strip_prefix("1:"), key) {
            (_, "panic") => panic!("as asked"),
            (Some(text), _) => Ok(kv::put("notes", key, format!("2:{text}"))?),
            (None, _) => Err(format!("{key} of {from:?} has no form")),
        }
    })
}

#[test]
fn a_migration_writes_all_or_nothing() {
    let host = Host::new().bytes_bucket("notes", [("a", "1:x"), ("b", "1:y")]);
    assert_eq!(host.migrate(second_form, Some("ab")), Ok(()));
    assert_eq!(host.value("notes", "b").as_deref(), Some("2:y"));

    for (other, reason) in [
        ("c", "c of None has no form"),
        ("panic", "migrate panicked: as asked"),
    ] {
        let host = Host::new().bytes_bucket("notes", [("a", "1:x"), (other, "x")]);
        assert_eq!(host.migrate(second_form, None), Err(reason.into()));
        assert_eq!(host.value("notes", "a").as_deref(), Some("1:x"));
    }
}
