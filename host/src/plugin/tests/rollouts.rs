//! Versions beside the active one: tried, promoted, taken back, carried over a change of the config and a restart.

use super::guest::replies;
use super::*;
use crate::plugin::{Fraction, Order, Role, Share, Wanted};

const ORDER: Order<'_> = Order {
    by: "test",
    dry_run: false,
    force: false,
};

fn all() -> Role {
    Role::Canary(share(100.0))
}

fn share(percent: f64) -> Share {
    Share {
        fraction: Fraction::percent(percent).expect("a percentage"),
        field: "header:x-id".parse().expect("a field"),
    }
}

async fn bring(bench: &Bench, component: Vec<u8>, role: Role) -> Result<Deployed, DeployError> {
    let wanted = Wanted::Component(component.into());
    bench.plugins.bring("p", wanted, role, ORDER).await
}

fn canary(plugins: &Plugins) -> Option<Arc<Generation>> {
    plugins.slot("p").expect("a slot").canary_for(&head())
}

#[tokio::test]
async fn one_compiled_copy_serves_every_plugin_of_a_version() {
    let bench = Bench::new().await;
    let mut other = config();
    other.name = "q".into();
    other.settings.clear();
    let both = [config(), other];
    bench.plugins.apply(&both).await.expect("applied");
    bench.deploy(replies(201)).await.expect("a version");
    let component = Bytes::from(replies(201));
    let second = bench.plugins.deploy("q", component, "test", false).await;
    assert!(second.expect("a version").cached);
    let slot = bench.plugins.slot("q").expect("a slot");
    let other = slot.active().clone().expect("active");
    assert!(Arc::ptr_eq(
        &other.sandbox.code,
        &bench.active().sandbox.code
    ));
    assert_ne!(other.id(), bench.active().id(), "settings of its own");
}

#[tokio::test]
async fn a_canary_goes_on_under_another_config_as_a_generation_of_its_own() {
    let bench = Bench::new().await;
    bench.deploy(replies(201)).await.expect("a version");
    let begun = bring(&bench, replies(202), all()).await.expect("a canary");
    let before = canary(&bench.plugins).expect("all requests are its own");
    let mut changed = config();
    changed.settings.insert("more".into(), "1".into());
    let applied = bench.plugins.apply(&[changed]).await;
    applied.expect("applied");
    let after = canary(&bench.plugins).expect("it goes on");
    assert!(after.id() > before.id());
    assert_eq!(*after.label().digest, *begun.digest);
    assert!(after.config().settings.contains_key("more"));
}

#[tokio::test]
async fn a_promoted_canary_is_the_generation_it_was() {
    let bench = Bench::new().await;
    let first = bench.deploy(replies(201)).await.expect("a version");
    bring(&bench, replies(202), all()).await.expect("a canary");
    let tried = canary(&bench.plugins).expect("a canary");
    let promoted = bench.plugins.promote("p", ORDER).await.expect("promoted");
    assert_eq!(bench.active().id(), tried.id());
    assert_eq!(promoted.previous, Some(first.digest));
    assert!(canary(&bench.plugins).is_none());
    let none = bench.plugins.promote("p", ORDER).await;
    assert!(matches!(none, Err(DeployError::Conflict(_))));
}

#[tokio::test]
async fn a_push_ends_a_canary() {
    let bench = Bench::new().await;
    bench.deploy(replies(201)).await.expect("a version");
    bring(&bench, replies(202), all()).await.expect("a canary");
    bench.deploy(replies(203)).await.expect("a version");
    assert!(canary(&bench.plugins).is_none());
    let info = bench.plugins.get("p").expect("a plugin");
    assert!(info.canary.is_none());
    assert_eq!(info.versions.len(), 3);
}

#[tokio::test]
async fn a_canary_that_does_not_load_any_more_leaves_the_active_version_alone() {
    let bench = Bench::new().await;
    bench.deploy(replies(201)).await.expect("a version");
    let begun = bring(&bench, replies(202), all()).await.expect("a canary");
    bench.plugins.close();
    let kept = format!("plugins/p/{}.wasm", begun.digest);
    std::fs::write(bench.dir.path().join(kept), b"damaged").expect("written");
    let reopened = plugins(bench.dir.path(), &bench.store);
    let applied = reopened.apply(&[config()]).await;
    applied.expect("the active version");
    assert_eq!(status(&reopened), 201);
    assert!(canary(&reopened).is_none());
    assert!(reopened.get("p").expect("a plugin").canary.is_none());
}

#[tokio::test]
async fn calls_of_a_plugin_only_grow_while_its_generations_come_and_go() {
    let bench = Bench::new().await;
    for (version, status) in [201, 202, 203, 204].into_iter().enumerate() {
        bench.deploy(replies(status)).await.expect("a version");
        bench.active().stats(0).count(None, 1_500);
        let totals = bench.plugins.get("p").expect("a plugin").totals;
        assert_eq!(totals.ok, version as u64 + 1);
    }
    bring(&bench, replies(205), Role::Shadow(Fraction::ALL))
        .await
        .expect("a shadow");
    let shadow = bench.plugins.slot("p").expect("a slot").compared();
    let shadow = shadow.expect("one is on");
    shadow
        .as_ref()
        .expect("a shadow")
        .generation()
        .stats(0)
        .count(None, 1_500);
    let told = bench.plugins.get("p").expect("a plugin");
    assert_eq!(told.totals.ok, 4, "what a shadow says is no decision");
    assert_eq!(told.versions[1].calls, 1);
}
