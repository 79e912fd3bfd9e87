//! Data brought along from version to version: at a swap, at a rollback, when the process ends in between.

use super::guest::Guest;
use super::*;
use crate::plugin::guard::Verdict;
use crate::plugin::record::Activation;
use crate::plugin::{Step, digest};
use crate::store::{Revision, Snapshot};
use serde_json::json;
use std::time::{Duration, SystemTime};

/// Writes 127.0.0.9 under `moved`.
pub(super) const MOVE: &str = "(call $put (i32.const 1024) (i32.const 3) (i32.const 1032) (i32.const 5) (i32.const 1040) (i32.const 9) (i32.const 2048))";
/// What [`MOVE`] passes.
const STRINGS: &str = r#"(data (i32.const 1024) "map") (data (i32.const 1032) "moved") (data (i32.const 1040) "127.0.0.9")"#;
/// The result of a migration that refuses with "as asked".
const REFUSAL: &str = r#"(data (i32.const 1056) "as asked") (data (i32.const 3072) "\01\00\00\00\20\04\00\00\08\00\00\00")"#;

/// A guest that replies with this status; `data` makes it another version, too.
fn guest(status: u16, more: &str) -> String {
    let [low, high] = status.to_le_bytes();
    format!(r#"(data (i32.const 256) "\02\00\00\00\{low:02x}\{high:02x}") {STRINGS} {more}"#)
}

pub(crate) fn migrating(status: u16, more: &str, instructions: &str) -> Vec<u8> {
    let data = guest(status, more);
    let guest = Guest {
        data: &data,
        init: "",
        route: "",
    };
    guest.migrating(instructions)
}

/// Where the entry is that [`MOVE`] writes.
fn moved(store: &Store) -> Option<Revision> {
    moved_in(&store.snapshot())
}

pub(super) fn moved_in(snapshot: &Snapshot) -> Option<Revision> {
    let bucket = snapshot.bucket(snapshot.bucket_id("map").expect("a bucket"))?;
    bucket.get("moved").map(|entry| entry.revision)
}

#[tokio::test]
async fn a_migration_of_another_type_is_refused_before_it_is_called() {
    let bench = Bench::new().await;
    let data = guest(201, "");
    let wrong = Guest {
        data: &data,
        init: "",
        route: "",
    };
    let refused = bench.deploy(wrong.migrating_wrongly()).await;
    let Err(DeployError::World(reason)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        reason.contains("export migrate of throwbar:plugin/migration@0.1.0"),
        "{reason}"
    );
}

#[tokio::test]
async fn data_are_migrated_once_for_a_version_and_not_for_its_settings() {
    let bench = Bench::new().await;
    let first = bench.deploy(guest::replies(201)).await.expect("a version");
    assert!(first.migrated.is_none() && moved(&bench.store).is_none());
    let second = bench.deploy(migrating(202, "", MOVE)).await.expect("moved");
    let told = second.migrated.expect("a migration");
    assert_eq!(
        (told.from, told.written, told.deleted),
        (Some(first.digest), 1, 0)
    );
    let at = moved(&bench.store).expect("the entry");
    assert_eq!(bench.active().data_since(), at.0);
    let mut changed = config();
    changed.settings.insert("more".into(), "1".into());
    bench.plugins.apply(&[changed]).await.expect("applied");
    assert_eq!(moved(&bench.store), Some(at));
    assert_eq!(bench.status(), 202);
}

#[tokio::test]
async fn the_first_version_has_a_migration_from_none() {
    let bench = Bench::new().await;
    // Traps if there is a version that it comes from.
    let check = format!("(if (local.get $some) (then unreachable)) {MOVE}");
    let first = bench
        .deploy(migrating(201, "", &check))
        .await
        .expect("a version");
    assert_eq!(first.migrated.expect("a migration").from, None);
    let second = bench.deploy(migrating(202, "", &check)).await;
    let Err(DeployError::Migrate(reason)) = second else {
        panic!("{second:?}");
    };
    assert!(reason.starts_with("trap: "), "{reason}");
    assert_eq!(bench.status(), 201);
}

#[tokio::test]
async fn what_fails_changes_nothing_unless_it_is_forced() {
    let bench = Bench::with(|config| {
        config.versions.migration.deadline = std::time::Duration::from_millis(20);
        config.versions.migration.writes_max = 0;
    })
    .await;
    bench.deploy(guest::replies(201)).await.expect("a version");
    let before = bench.store.snapshot().revision();
    // A put over the bound is a typed error, which this one does not look at.
    let over = format!("{MOVE} (if (i32.load8_u (i32.const 2048)) (then unreachable))");
    for (component, expected) in [
        (migrating(202, "", &over), "trap: "),
        (
            migrating(202, "", "(loop $l (br $l))"),
            "deadline of 20ms exceeded",
        ),
        (migrating(202, REFUSAL, ""), "it refused: as asked"),
    ] {
        let refused = bench.deploy(component).await;
        let Err(DeployError::Migrate(reason)) = refused else {
            panic!("{expected}: {refused:?}");
        };
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(
            (bench.status(), bench.store.snapshot().revision()),
            (201, before)
        );
    }
    let order = Order {
        by: "test",
        dry_run: false,
        force: true,
    };
    let component = Wanted::Component(migrating(202, REFUSAL, "").into());
    let forced = bench
        .plugins
        .bring("p", component, Role::Active, order)
        .await
        .expect("active all the same");
    assert!(forced.not_migrated.expect("a reason").contains("as asked"));
    assert_eq!(
        (bench.status(), bench.store.snapshot().revision()),
        (202, before)
    );
}

#[tokio::test]
async fn the_guard_goes_back_whatever_the_migration_says() {
    let bench = Bench::new().await;
    // Refuses what comes from another version, as one that cannot know a newer form.
    let first = migrating(201, "", "(if (local.get $some) (then unreachable))");
    bench.deploy(first).await.expect("a version");
    bench.deploy(migrating(202, "", MOVE)).await.expect("moved");
    assert!(matches!(
        bench.plugins.rollback("p", "test", false).await,
        Err(DeployError::Migrate(_))
    ));
    assert_eq!(bench.status(), 202);
    let slot = bench.plugins.slot("p").expect("a slot");
    let verdict = Verdict {
        decided: std::time::Instant::now(),
        limit: "traps",
        reason: "as asked".into(),
    };
    let id = bench.active().id();
    bench.plugins.take_back(&slot, id, &verdict).await;
    assert_eq!(bench.status(), 201);
}

/// Plugins over a store on disk, so that marks outlive them.
async fn durable(dir: &Path) -> (Store, Arc<Plugins>) {
    let buckets = [
        BucketConfig::new("map", BackendKind::Embedded, ValueKind::Endpoint),
        BucketConfig::new("notes", BackendKind::Memory, ValueKind::Bytes),
    ];
    let store = Store::open(&buckets, dir).expect("a store");
    let plugins = plugins(dir, &store);
    plugins.apply(&[config()]).await.expect("applied");
    (store, plugins)
}

#[tokio::test]
async fn a_version_whose_data_are_migrated_is_active_after_a_crash_before_it_was_recorded() {
    let dir = tempfile::tempdir().expect("a directory");
    let record = dir.path().join("plugins/p/active.json");
    let (store, first) = durable(dir.path()).await;
    let deploy = async |plugins: &Plugins, component: Vec<u8>| {
        plugins.deploy("p", component.into(), "test", false).await
    };
    let old = deploy(&first, guest::replies(201))
        .await
        .expect("a version");
    let recorded = std::fs::read(&record).expect("a record");
    let new = deploy(&first, migrating(202, "", MOVE))
        .await
        .expect("moved");
    let at = moved(&store);
    // As if the process had ended between the two.
    std::fs::write(&record, recorded).expect("written");
    first.close();
    store.close();
    drop((first, store));
    for round in 0..2 {
        let (store, plugins) = durable(dir.path()).await;
        assert_eq!(status(&plugins), 202, "round {round}");
        assert_eq!(moved(&store), at, "it ran once");
        let info = plugins.get("p").expect("a plugin");
        assert_eq!(info.active.as_ref(), Some(&new.digest));
        // It is recorded by now, and a rollback is not undone by what the data say.
        if round == 0 {
            let back = plugins.rollback("p", "test", false).await.expect("back");
            assert_eq!(back.digest, old.digest);
            let again = deploy(&plugins, migrating(202, "", MOVE)).await;
            assert_eq!(
                again
                    .expect("active")
                    .migrated
                    .expect("a migration")
                    .written,
                0
            );
        }
        plugins.close();
        store.close();
    }
    let (_store, plugins) = durable(dir.path()).await;
    plugins.rollback("p", "test", false).await.expect("back");
    plugins.close();
    drop((_store, plugins));
    let (_store, plugins) = durable(dir.path()).await;
    assert_eq!(status(&plugins), 201);
}

/// The mark of a migration that another node made then for the version that replies with 202.
fn of_another(store: &Store, at: SystemTime) -> WriteBatch {
    let to = Activation {
        at,
        ..Activation::now(&digest(&guest::replies(202)), "test@other")
    };
    let mark = json!({ "id": "of-the-other", "from": null, "to": to, "pushed": true });
    let marks = store.snapshot().marks_beside(None).expect("a bucket");
    WriteBatch {
        writes: vec![Write::put(marks, "p", mark.to_string().into_bytes())],
        ..Default::default()
    }
}

/// The clock of the node that migrated may be ahead of this one's.
#[tokio::test]
async fn what_followed_a_version_that_another_node_migrated_stays_over_a_restart() {
    for is_ahead in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, plugins) = durable(dir.path()).await;
        let batch = of_another(&store, SystemTime::now() + Duration::from_secs(3600));
        let order = Order {
            by: "test",
            dry_run: false,
            force: false,
        };
        let take = async |status: u16| {
            let component = guest::replies(status);
            let version = digest(&component);
            let component = Some(component.into());
            let taken = if is_ahead {
                let staged = plugins.stage("p", &version, component, false).await;
                plugins.take_over(staged.expect("staged"), order).await
            } else {
                let step = Step::Activate(version);
                plugins.take_step("p", step, component, order, false).await
            };
            taken.expect("taken");
        };
        take(201).await;
        store.commit(batch).await.expect("a commit");
        for status in [202, 203] {
            take(status).await;
        }
        plugins.close();
        store.close();
        drop((store, plugins));
        let (_store, plugins) = durable(dir.path()).await;
        assert_eq!(status(&plugins), 203);
    }
}

#[tokio::test]
async fn a_migration_that_others_made_long_ago_is_no_reason_to_go_back_to_its_version() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, plugins) = durable(dir.path()).await;
    for status in [202, 201] {
        let component = Bytes::from(guest::replies(status));
        let deployed = plugins.deploy("p", component, "test", false).await;
        deployed.expect("a version");
    }
    let batch = of_another(&store, SystemTime::now() - Duration::from_secs(3600));
    store.commit(batch).await.expect("a commit");
    plugins.close();
    store.close();
    drop((store, plugins));
    let (_store, plugins) = durable(dir.path()).await;
    assert_eq!(status(&plugins), 201);
}

#[tokio::test]
async fn a_source_that_changed_migrates_when_the_config_is_applied_and_refuses_it_if_that_fails() {
    let bench = Bench::new().await;
    let file = bench.dir.path().join("router.wasm");
    let sourced = |setting: &str| {
        let mut config = config();
        config.source = Source::File(file.clone());
        config.settings.insert("change".into(), setting.into());
        config
    };
    std::fs::write(&file, migrating(201, "", MOVE)).expect("written");
    bench.plugins.apply(&[sourced("1")]).await.expect("applied");
    let at = moved(&bench.store).expect("the first version wrote it");
    assert_eq!(bench.status(), 201);
    // Of the same source nothing is read again: as another file, it is another version.
    let other = bench.dir.path().join("other.wasm");
    std::fs::write(&other, migrating(202, REFUSAL, "")).expect("written");
    let mut refused = sourced("2");
    refused.source = Source::File(other);
    let (name, error) = bench.plugins.apply(&[refused]).await.expect_err("refused");
    assert_eq!(name, "p");
    assert!(matches!(error, DeployError::Migrate(_)), "{error}");
    assert_eq!((bench.status(), moved(&bench.store)), (201, Some(at)));
}
