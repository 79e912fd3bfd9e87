//! What `examples/fleet` says it shows.

use crate::harness::fixture_path;
use crate::harness::servers::{Engine, Server, free_port};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Three proxies and etcd are started, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn one_command_shows_a_put_and_a_push_reaching_every_node() {
    // Says so loudly if there is none.
    if Server::start(Engine::Etcd).await.is_none() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/fleet/run");
    let ports = [(); 9].map(|()| free_port().to_string());
    let output = Command::new("bash")
        .arg(script)
        .env("THROWBAR", env!("CARGO_BIN_EXE_throwbar-under-test"))
        .env("PLUGIN", fixture_path("count"))
        .env("PLUGIN_ANSWER", "200")
        .env("PORTS", ports[..3].join(" "))
        .env("ADMIN_PORTS", ports[3..6].join(" "))
        .env("ETCD_PORTS", ports[6..8].join(" "))
        .env("ECHO_PORT", &ports[8])
        .stdin(Stdio::null())
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await;
    let output = output
        .expect("the example ends in time")
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert_eq!(
        said.matches("answers 200 from 127.0.0.2:").count(),
        3,
        "{said}"
    );
    assert_eq!(
        said.matches("answers 200 from 127.0.0.3:").count(),
        6,
        "{said}"
    );
    assert_eq!(
        said.lines()
            .filter(|line| line.ends_with("answers 200"))
            .count(),
        3,
        "{said}"
    );
}
