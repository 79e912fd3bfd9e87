//! The config is each node's own: the fleet tells its digest, so that a difference is seen.

use super::{Backend, PLUGIN, on, tables};
use crate::harness::proxy::PATIENT;
use crate::harness::servers::Engine;
use crate::harness::{Setup, TestProxy, eventually, sha256};
use serde_json::{Value, json};

/// What a node knows of another one's config.
async fn config_of(proxy: &TestProxy, node: &Value) -> Option<Value> {
    let fleet = proxy.admin().get("/v1/fleet").await.json();
    let nodes = fleet["nodes"].as_array().expect("nodes");
    let told = nodes.iter().find(|told| told["node"] == *node)?;
    Some(told["config"].clone())
}

async fn nodes_of_one_config_show_it_and_one_with_another_is_seen(backend: Backend) {
    // Without a name in it, nodes of the very same config are named by host and port.
    let tables = tables(&backend, "one").replace("node = \"one\"\n", "");
    let text = Setup::new(format!("{tables}{PLUGIN}{PATIENT}")).text();
    let other = format!("{text}# the same, said in another way\n");
    let proxies = [
        TestProxy::start_text(&text).await,
        TestProxy::start_text(&text).await,
    ];
    let mut names = Vec::new();
    for proxy in &proxies {
        let status = proxy.admin().get("/v1/status").await.json();
        names.push(status["fleet"]["node"].clone());
    }
    assert_ne!(names[0], names[1]);
    let all_see = async |of_first: &str, of_second: &str| {
        let expected = [of_first, of_second].map(|text| Some(json!(sha256(text.as_bytes()))));
        for proxy in &proxies {
            eventually(&format!("{expected:?}"), async || {
                let seen = [
                    config_of(proxy, &names[0]).await,
                    config_of(proxy, &names[1]).await,
                ];
                (seen == expected).then_some(())
            })
            .await;
        }
    };
    all_see(&text, &text).await;
    let put = proxies[1].admin().put("/v1/config", other.clone()).await;
    assert_eq!(put.status, 200, "{}", put.text());
    all_see(&text, &other).await;
}

on_both! {
    nodes_of_one_config_show_it_and_one_with_another_is_seen,
}
