//! What a change is built on, and what it relies on.

use super::*;
use crate::fleet::entry::{ArtifactEntry, PluginEntry};
use crate::plugin::{Accord, Agreement};
use crate::store::{CommitError, Passage};

/// Its author has not seen what he would replace.
#[tokio::test]
async fn a_node_that_has_not_taken_the_last_change_makes_none() {
    let backend = Backend::new();
    let one = backend.node("a").await;
    one.push(201).await.expect("a version");
    let dir = tempfile::tempdir().expect("a directory");
    let behind = backend.still("b", dir, plugin()).await;
    let refused = behind.push(202).await;
    let Err(DeployError::Disagreed(reason)) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("about to take it"), "{reason}");
    assert_eq!(one.active(), Some(version(201)));
    behind.fleet.settle().await;
    behind.push(202).await.expect("a version");
    one.has(202).await;
}

/// What arrives waits for the turn that a change has.
#[tokio::test]
async fn a_change_that_is_overtaken_while_it_is_made_ready_is_given_up_at_once() {
    let backend = Backend::new();
    let dir = tempfile::tempdir().expect("a directory");
    let one = backend.still("a", dir, plugin()).await;
    one.push(201).await.expect("a version");
    let entry = PluginEntry {
        with_writes: true,
        ..one.fleet.entry(agreement(version(203)), "eve")
    };
    let entry = serde_json::to_vec(&entry).expect("JSON");
    let arrives = || one.fleet.arrives("plugin/p", &entry, false);
    let (pushed, passage) = tokio::join!(one.push(202), async { arrives() });
    assert!(matches!(passage, Passage::Wait(_)), "it is not ready");
    let expected = format!(
        "version {} was agreed on, by eve on node a: this node is about to take it",
        &version(203)[..12]
    );
    for refused in [pushed, one.push(204).await] {
        let Err(DeployError::Disagreed(reason)) = refused else {
            panic!("{refused:?}");
        };
        assert!(reason.contains(&expected), "{reason}");
    }
    // The turn is free: what came first is made ready.
    let put = backend.depot.put("203", component(203));
    put.await.expect("it is there");
    let bucket = one.fleet.bucket_id().expect("a bucket");
    let there = ArtifactEntry {
        digest: version(203),
        plugin: "p".to_owned(),
        bytes: component(203).len() as u64,
        whole: true,
        at_ms: 0,
    };
    let there = serde_json::to_vec(&there).expect("JSON");
    let there = Write::put(bucket, "artifact/203", there);
    one.fleet.commit(vec![there]).await.expect("written");
    let standing_by = tokio::spawn(Arc::clone(&one.fleet).stand_by());
    until("it is on stage", || matches!(arrives(), Passage::Noting(_))).await;
    standing_by.abort();
}

/// Between the look whether it is there and the agreement somebody may remove it.
#[tokio::test]
async fn a_component_that_is_removed_meanwhile_is_not_agreed_on() {
    let backend = Backend::new();
    let mut few = plugin();
    few.versions.keep = 2;
    let dir = tempfile::tempdir().expect("a directory");
    let one = backend.still("a", dir, few).await;
    for status in [201, 202, 203] {
        one.push(status).await.expect("a version");
    }
    let base = one.fleet.base("p").expect("it has the last one");
    let wanted = Agreement {
        active: version(201),
        ..base.agreed.clone().expect("agreed")
    };
    let batch = one.fleet.prepare("p", &base, wanted, "ada").await;
    let batch = batch.expect("it is there");
    // Who relies on it is in time, and then somebody removes it all the same.
    one.fleet.prune().await;
    let mut left = one.fleet.artifacts().into_iter();
    let relied_on = left.find(|(_, _, entry)| entry.digest == version(201));
    let (place, revision, entry) = relied_on.expect("it is among the newest again");
    let removed = one.fleet.remove(&place, revision, &entry).await;
    removed.expect("removed");
    assert_eq!(backend.artifacts(), 1);
    let agreed = one.fleet.store.commit(batch).await;
    assert!(
        matches!(&agreed, Err(CommitError::Conflict { .. })),
        "{agreed:?}"
    );
    let snapshot = one.fleet.store.snapshot();
    let (_, agreed) = one.fleet.agreed(&snapshot, "p").expect("agreed");
    assert_eq!(agreed.expect("readable").active, version(203));
}

/// Who looks before a change is agreed on finds that all is needed.
#[tokio::test]
async fn what_a_change_has_replaced_is_removed_once_it_is_agreed_on() {
    let backend = Backend::new();
    let mut few = plugin();
    few.versions.keep = 2;
    let dir = tempfile::tempdir().expect("a directory");
    let mut one = backend.still("a", dir, few).await;
    for status in [201, 202, 203] {
        one.push(status).await.expect("a version");
    }
    // As after a look between the last upload and the agreement.
    one.fleet.prune_due.store(false, SeqCst);
    assert_eq!(backend.artifacts(), 3);
    one.follow();
    until("two are left", || backend.artifacts() == 2).await;
}

#[tokio::test]
async fn what_an_upload_left_half_done_goes_after_a_while_and_not_before() {
    let backend = Backend::new();
    let dir = tempfile::tempdir().expect("a directory");
    let one = backend.still("a", dir, plugin()).await;
    let bucket = one.fleet.bucket_id().expect("a bucket");
    let now = unix_ms(SystemTime::now());
    let begun = |seconds_ago: u64| {
        let entry = ArtifactEntry {
            digest: version(201),
            plugin: "p".to_owned(),
            bytes: 1,
            whole: false,
            at_ms: now - seconds_ago * 1000,
        };
        let entry = serde_json::to_vec(&entry).expect("JSON");
        Write::put(bucket, format!("artifact/{seconds_ago}"), entry)
    };
    let in_seconds = |seconds| Instant::now() + Duration::from_secs(seconds);
    let is_left = async |seconds_ago: u64, at: Instant| {
        one.fleet.prune_after(None, at).await;
        let all = one.fleet.artifacts().into_iter();
        all.map(|(place, ..)| place)
            .any(|place| place == seconds_ago.to_string())
    };
    let written = one.fleet.commit(vec![begun(3600)]).await;
    written.expect("written");
    // Whatever time of another node's clock they name: each has just come.
    assert!(is_left(3600, in_seconds(0)).await);
    let written = one.fleet.commit(vec![begun(60)]).await;
    written.expect("written");
    assert!(is_left(60, in_seconds(400)).await);
    assert!(!is_left(3600, in_seconds(660)).await);
    assert!(is_left(60, in_seconds(660)).await);
}

/// Of two plugins that have one component, one is forgotten.
#[tokio::test]
async fn what_another_plugin_needs_of_a_forgotten_one_stays_until_it_needs_it_no_more() {
    let backend = Backend::new();
    let one = backend.node("a").await;
    let other = PluginConfig {
        name: "q".to_owned(),
        ..plugin()
    };
    let both = [plugin(), other.clone()];
    one.plugins.apply(&both).await.expect("applied");
    let push = async |name: &str, status: u16| {
        let component = Wanted::Component(component(status));
        in_turn(async || {
            let bringing = one
                .plugins
                .bring(name, component.clone(), Role::Active, ORDER);
            bringing.await
        })
        .await
        .expect("a version")
    };
    push("p", 200).await;
    push("p", 201).await;
    push("q", 201).await;
    assert_eq!(backend.artifacts(), 2);
    let in_use = one.fleet.forget("p", false).await;
    assert!(
        matches!(&in_use, Err(ForgetError::InUse { node, .. }) if node == "a"),
        "{in_use:?}"
    );
    one.plugins.apply(&[other]).await.expect("applied");
    one.fleet.forget("p", true).await.expect("it could be");
    assert_eq!(backend.artifacts(), 2);
    one.fleet.forget("p", false).await.expect("forgotten");
    assert_eq!(backend.artifacts(), 1);
    let snapshot = one.fleet.store.snapshot();
    assert!(one.fleet.agreed(&snapshot, "p").is_none());
    push("q", 202).await;
    // What is about to be agreed on for the first time looks the same for a moment, so it goes later.
    one.fleet.prune().await;
    assert_eq!(backend.artifacts(), 2);
    let later = Instant::now() + Duration::from_secs(660);
    one.fleet.prune_after(None, later).await;
    let left = one.fleet.artifacts().into_iter();
    let left: Vec<String> = left.map(|(_, _, entry)| entry.digest).collect();
    assert_eq!(left, [version(202)]);
}

#[tokio::test]
async fn a_node_that_leaves_is_gone_at_once_and_tells_nothing_more() {
    let backend = Backend::new();
    let dir = tempfile::tempdir().expect("a directory");
    let one = backend.still("a", dir, plugin()).await;
    one.fleet.tell_once().await;
    one.fleet.leave().await;
    assert_eq!(one.fleet.row().nodes, 0);
    one.fleet.tell_once().await;
    assert_eq!(one.fleet.row().nodes, 0);
}

/// What a node has on its disk is as good as what it can fetch only if it is whole.
#[tokio::test]
async fn a_kept_version_that_is_damaged_is_fetched() {
    let backend = Backend::new();
    let one = backend.node("a").await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut other = backend.still("b", dir, plugin()).await;
    for status in [201, 202] {
        one.push(status).await.expect("a version");
        other.fleet.settle().await;
        assert_eq!(other.active(), Some(version(status)));
    }
    other.plugins.close();
    let dir = std::mem::replace(&mut other.dir, tempfile::tempdir().expect("a directory"));
    drop(other);
    let kept = file_named(dir.path(), &format!("{}.wasm", version(201)));
    std::fs::write(&kept, component(203)).expect("written");
    let back = Wanted::Version(version(201));
    one.bring(back, Role::Active).await.expect("kept");
    let other = backend.still("b", dir, plugin()).await;
    assert_eq!(other.active(), Some(version(202)));
    other.fleet.settle().await;
    assert_eq!(other.active(), Some(version(201)));
    assert!(other.fleet.row().fetches > 0);
}

pub(super) fn file_named(dir: &std::path::Path, name: &str) -> std::path::PathBuf {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.ends_with(name) {
                return path;
            }
        }
    }
    panic!("no {name} in {}", dir.display());
}

#[tokio::test]
async fn who_forces_a_version_on_one_node_forces_it_on_all() {
    let backend = Backend::new();
    let (one, other) = (backend.node("a").await, backend.node("b").await);
    one.push(202).await.expect("a version");
    other.has(202).await;
    one.push(201).await.expect("a version");
    other.has(201).await;
    until("it may agree", || one.fleet.base("p").is_ok()).await;
    // As the guard of a node would have it.
    let base = one.fleet.base("p").expect("it has the last one");
    let wanted = Agreement {
        failing: Some((version(202), "5 traps".to_owned())),
        ..base.agreed.clone().expect("agreed")
    };
    let agreed = one.fleet.agree("p", &base, wanted, "guard").await;
    agreed.expect("agreed");
    for node in [&one, &other] {
        let marked = || node.plugins.present("p").expect("the plugin").failing;
        until("it is marked", || marked().contains(&version(202))).await;
    }
    until("it may push", || one.fleet.base("p").is_ok()).await;
    let refused = one.push(202).await;
    assert!(
        matches!(refused, Err(DeployError::Failing { .. })),
        "{refused:?}"
    );
    let forced = Order {
        force: true,
        ..ORDER
    };
    let again = Wanted::Version(version(202));
    let brought = one.plugins.bring("p", again, Role::Active, forced).await;
    brought.expect("forced");
    other.has(202).await;
}

#[tokio::test]
async fn what_is_written_with_a_push_is_written_if_it_is_agreed_on_and_else_not() {
    let backend = Backend::new();
    let (one, other) = (backend.node("a").await, backend.node("b").await);
    one.push(200).await.expect("a version");
    other.has(200).await;
    let snapshot = backend.store.snapshot();
    let map = snapshot.bucket_id("map").expect("a bucket");
    let push_with = async |node: &Node, status: u16, key: &str| {
        let batch = WriteBatch {
            writes: vec![Write::put(map, key, *b"127.0.0.1")],
            ..WriteBatch::default()
        };
        let wanted = Wanted::Component(component(status));
        in_turn(async || {
            let writes = batch.clone();
            let done = node
                .plugins
                .activate_with("p", wanted.clone(), ORDER, writes);
            done.await
        })
        .await
    };
    let (first, second) = tokio::join!(push_with(&one, 201, "one"), push_with(&other, 202, "two"));
    let (won, key, lost) = match (first, second) {
        (Ok(won), Err(_)) => (won, "one", "two"),
        (Err(_), Ok(won)) => (won, "two", "one"),
        both => panic!("{both:?}"),
    };
    let snapshot = backend.store.snapshot();
    let map = snapshot.bucket(map).expect("a bucket");
    assert_eq!(map.get(lost), None);
    let written = map.get(key).expect("it is written").revision;
    assert_eq!(
        won.revision,
        Some(written),
        "the version decides from there on"
    );
    let (agreed, _) = one.fleet.agreed(&snapshot, "p").expect("agreed");
    assert_eq!(agreed, written, "both in one step");
    let winner = Some(won.digest);
    until("both have the winner's", || {
        one.active() == winner && other.active() == winner
    })
    .await;
}

fn agreement(active: String) -> Agreement {
    Agreement {
        active,
        canary: None,
        failing: None,
        force: false,
        back: false,
    }
}

#[tokio::test]
async fn what_is_relied_on_again_is_not_removed_by_who_looked_before() {
    let backend = Backend::new();
    let (one, two) = (backend.node("one").await, backend.node("two").await);
    for status in [201, 202] {
        one.push(status).await.expect("pushed");
        two.has(status).await;
    }
    let of = |digest: &str| {
        let mut all = one.fleet.artifacts().into_iter();
        all.find(|(_, _, entry)| entry.digest == digest)
    };
    let looked = of(&version(201)).expect("it is there");
    two.push(201).await.expect("pushed");
    one.has(201).await;
    let (place, revision, entry) = looked;
    let removed = one.fleet.remove(&place, revision, &entry).await;
    removed.expect("it is left alone");
    let (.., entry) = of(&version(201)).expect("it is still there");
    assert!(entry.whole);
    assert_eq!(backend.artifacts(), 2);
}
