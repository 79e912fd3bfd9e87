//! What was agreed on of a plugin that no config has any more: it is said, and taken out when somebody asks for it.

use super::{Backend, PLUGIN, all_have, first_version, fleet_status, on, tables};
use crate::harness::proxy::PATIENT;
use crate::harness::servers::Engine;
use crate::harness::{Setup, TestProxy, eventually, fixture};
use serde_json::{Value, json};

/// A node with these tables beside those of the fleet, and an audit log.
fn setup(backend: &Backend, name: &str, rest: &str) -> Setup {
    let mut setup = Setup::new(format!("{}{rest}", tables(backend, name)));
    let log = "[log]\naudit = \"audit.log\"\n";
    setup.frame = setup.frame.replace("[log]\n", log);
    setup
}

/// Its config with the plugin, and without it.
fn configs(backend: &Backend, name: &str) -> [Setup; 2] {
    let with = format!("{PLUGIN}{PATIENT}");
    [&*with, "[[route]]\nreply = { status = 200 }\n"].map(|rest| setup(backend, name, rest))
}

async fn apply(proxy: &TestProxy, config: &Setup) {
    let put = proxy.admin().put("/v1/config", config.text()).await;
    assert_eq!(put.status, 200, "{}", put.text());
}

async fn of_fleet(proxy: &TestProxy, what: &str) -> Value {
    proxy.admin().get("/v1/fleet").await.json()[what].clone()
}

async fn a_plugin_that_no_node_has_any_more_is_forgotten_when_asked(backend: Backend) {
    let forget = ["fleet", "forget", "router"];
    let [[with_one, without_one], [with_two, without_two]] =
        ["one", "two"].map(|name| configs(&backend, name));
    let proxies = [
        TestProxy::start_text(&with_one.text()).await,
        TestProxy::start_text(&with_two.text()).await,
    ];
    let [one, two] = &proxies;
    let _upstream = first_version(&proxies).await;
    one.run(&forget).await.refused(1, "node \"one\" has it:");
    // A config that is on its way reaches one node after the other.
    apply(one, &without_one).await;
    let refused = one.run(&forget).await;
    refused.refused(1, "node \"two\" has it, as it told last");
    let shown = fleet_status(one, &[]).await;
    assert!(!shown.stdout.contains("no node has"), "{}", shown.stdout);
    apply(two, &without_two).await;
    let line = "plugin router: no node has a plugin of this name; `throwbar fleet forget router`";
    for proxy in &proxies {
        eventually("it is said", async || {
            let shown = fleet_status(proxy, &[]).await;
            (shown.code == 0 && shown.stdout.contains(line)).then_some(())
        })
        .await;
    }
    let tried = one.run(&[&forget[..], &["--dry-run"]].concat()).await.ok();
    assert_eq!(tried, "router: would be forgotten; nothing changed\n");
    assert!(of_fleet(one, "plugins").await["router"].is_object());
    assert_eq!(one.run(&forget).await.ok(), "router: forgotten\n");
    for proxy in &proxies {
        eventually("neither it nor its components are there", async || {
            let nothing = of_fleet(proxy, "plugins").await == json!({})
                && of_fleet(proxy, "artifacts").await == json!([]);
            nothing.then_some(())
        })
        .await;
    }
    let again = two.run(&forget).await;
    again.refused(1, "the fleet has agreed on nothing of a plugin \"router\"");
    let log = std::fs::read_to_string(one.file("audit.log")).expect("an audit log");
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    let outcomes: Vec<(Value, Value)> = lines
        .filter(|line: &Value| line["path"] == "/v1/fleet/plugins/router")
        .map(|line| (line["outcome"].clone(), line["plugin"].clone()))
        .collect();
    let told = |outcome: &str, plugin: Value| (json!(outcome), plugin);
    assert_eq!(
        outcomes,
        [
            told("in-use", Value::Null),
            told("in-use", Value::Null),
            told("forgotten", json!("router")),
        ]
    );
    // It may come back: then it begins anew.
    apply(one, &with_one).await;
    apply(two, &with_two).await;
    let version = two.admin().push_ok("router", fixture("version-b")).await;
    all_have(&proxies, &version).await;
}

on_both! {
    a_plugin_that_no_node_has_any_more_is_forgotten_when_asked,
}
