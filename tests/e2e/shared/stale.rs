//! What the commands say of reads while the backend is away.

use super::*;

#[tokio::test]
async fn what_a_command_reads_while_the_backend_is_away_is_told_with_its_age() {
    let Some(mut fleet) = Fleet::start(Engine::Redis, 1).await else {
        return;
    };
    let proxy = &fleet.proxies[0];
    let admin = proxy.admin();
    admin.set("notes", "k", "v").await;
    let get = ["get", "notes", "k", "--json"];
    let fresh = proxy.kv(&get).await;
    assert_eq!(fresh.stderr, "");
    let age = |text: &str| {
        let json: Value = serde_json::from_str(text).expect("JSON");
        json["staleness"].as_f64()
    };
    assert!(age(&fresh.stdout).is_some_and(|age| age < 5.0));
    fleet.server.kill().await;
    eventually("what is known is old", async || {
        (staleness(&admin.get("/v1/kv/notes/k").await) > 6.0).then_some(())
    })
    .await;
    for (arguments, code) in [
        (&get[..], 0),
        (&["lookup", "notes", "k", "--json"], 0),
        (&["ls", "notes", "--json"], 0),
        (&["ls", "--json"], 0),
        (&["export", "notes"], 0),
        (&["get", "notes", "none"], 1),
    ] {
        let ended = proxy.kv(arguments).await;
        ended.refused(code, "s ago, for");
        let told = ended.stderr.matches("backend is away").count();
        assert_eq!(told, 1, "{arguments:?}: {}", ended.stderr);
        if arguments.contains(&"--json") {
            let old = age(&ended.stdout).is_some_and(|age| age > 5.0);
            assert!(old, "{arguments:?}: {}", ended.stdout);
        }
    }
    // What is this proxy's own is as it is now.
    admin.set("own", "k", "v").await;
    let own = proxy.kv(&["get", "own", "k"]).await;
    assert_eq!((&*own.stdout, &*own.stderr), ("v\n", ""));
}
