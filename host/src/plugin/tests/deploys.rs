//! From upload to the active generation and back, across restarts.

use super::guest::{Guest, PASS, replies};
use super::*;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

#[tokio::test]
async fn a_first_deploy_then_a_swap_then_the_same_again() {
    let bench = Bench::new().await;
    let first = bench.deploy(replies(201)).await.expect("a version");
    assert_eq!(
        (first.outcome, first.cached, first.previous),
        (Outcome::First, false, None)
    );
    assert_eq!(bench.status(), 201);

    let second = bench.deploy(replies(202)).await.expect("a version");
    assert_eq!(second.outcome, Outcome::Swapped);
    assert_eq!(second.previous, Some(first.digest.clone()));
    assert!(second.generation > first.generation);
    assert_eq!(bench.status(), 202);
    let slot = bench.plugins.slot("p").expect("a slot");
    let previous = slot.previous().clone().expect("a previous generation");
    assert_eq!(*previous.label().digest, *first.digest);

    let again = bench.deploy(replies(202)).await.expect("unchanged");
    assert_eq!(again.outcome, Outcome::Unchanged);
    assert_eq!(again.generation, second.generation);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let bench = Bench::new().await;
    let component = Bytes::from(replies(201));
    let checked = bench
        .plugins
        .deploy("p", component, "test", true)
        .await
        .expect("checked");
    assert_eq!(
        (checked.outcome, checked.generation),
        (Outcome::Checked, None)
    );
    assert!(active(&bench.plugins).is_none());
    assert!(
        bench
            .plugins
            .get("p")
            .expect("a plugin")
            .versions
            .is_empty()
    );
}

#[tokio::test]
async fn a_rollback_is_a_new_generation_of_the_version_before() {
    let bench = Bench::new().await;
    let nothing = bench.plugins.rollback("p", "test", false).await;
    assert!(matches!(nothing, Err(DeployError::NothingToRollBack(_))));
    let first = bench.deploy(replies(201)).await.expect("a version");
    let second = bench.deploy(replies(202)).await.expect("a version");
    let back = bench
        .plugins
        .rollback("p", "test", false)
        .await
        .expect("a rollback");
    assert_eq!(
        (&back.digest, back.outcome),
        (&first.digest, Outcome::Swapped)
    );
    assert!(back.generation > second.generation);
    assert_eq!(bench.status(), 201);
    bench
        .plugins
        .rollback("p", "test", false)
        .await
        .expect("and forth");
    assert_eq!(bench.status(), 202);
}

#[tokio::test]
async fn what_is_refused_leaves_the_active_version() {
    let bench = Bench::with(|config| config.limits.init_deadline = Duration::from_millis(20)).await;
    bench.deploy(replies(201)).await.expect("a version");
    let guest = |data: &'static str, init: &'static str| {
        let guest = Guest {
            data,
            init,
            route: "",
        };
        guest.build()
    };
    let refused = r#"(data (i32.const 0) "\01\00\00\00\00\04\00\00\04\00\00\00") (data (i32.const 1024) "nope")"#;
    let ungranted = r#"(data (i32.const 20) "\60\00\00\00\01\00\00\00") (data (i32.const 96) "\00\04\00\00\04\00\00\00")
        (data (i32.const 1024) "nope")"#;
    let cases = [
        (b"text".to_vec(), "not a component"),
        (
            vec![0; (1 << 20) + 1],
            "expected at most 1MiB (admin.component_bytes_max)",
        ),
        (replies(201)[..500].to_vec(), "truncated"),
        (guest(PASS, "unreachable"), "init: trap"),
        (
            guest(PASS, "(loop $l (br $l))"),
            "init: deadline of 20ms exceeded",
        ),
        (guest(refused, ""), "it refused to start: nope"),
        (guest(ungranted, ""), "bucket \"nope\" is not granted"),
    ];
    for (component, expected) in cases {
        let error = bench
            .deploy(component)
            .await
            .expect_err(expected)
            .to_string();
        assert!(error.contains(expected), "{error}, expected {expected}");
        assert_eq!(bench.status(), 201);
    }
    assert_eq!(bench.plugins.get("p").expect("a plugin").versions.len(), 1);
    let unknown = bench.plugins.deploy("q", Bytes::new(), "test", false).await;
    assert!(matches!(unknown, Err(DeployError::NoSuchPlugin(_))));
}

#[tokio::test]
async fn the_active_version_survives_a_restart_and_so_does_the_rollback() {
    let bench = Bench::new().await;
    bench.deploy(replies(201)).await.expect("a version");
    bench.deploy(replies(202)).await.expect("a version");
    bench.plugins.close();
    let reopened = plugins(bench.dir.path(), &bench.store);
    reopened
        .apply(&[config()])
        .await
        .expect("the recorded version");
    assert_eq!(status(&reopened), 202);
    let unchanged = reopened
        .deploy("p", replies(202).into(), "test", false)
        .await;
    assert_eq!(unchanged.expect("unchanged").outcome, Outcome::Unchanged);
    reopened
        .rollback("p", "test", false)
        .await
        .expect("a rollback");
    assert_eq!(status(&reopened), 201);
}

#[tokio::test]
async fn compiled_code_of_what_is_only_tried_is_bounded_and_that_of_versions_stays() {
    let bench = Bench::new().await;
    let active = bench.deploy(replies(200)).await.expect("a version").digest;
    for status in 300..330 {
        let component = Bytes::from(replies(status));
        let tried = bench.plugins.deploy("p", component, "test", true).await;
        tried.expect("a version that would do");
    }
    let files = std::fs::read_dir(bench.dir.path().join("compiled")).expect("a directory");
    let names = files.map(|file| file.expect("an entry").file_name());
    let names: Vec<String> = names.map(|name| name.to_string_lossy().into()).collect();
    assert_eq!(names.len(), 1 + 16, "{names:?}");
    assert!(
        names.iter().any(|name| name.starts_with(&active)),
        "{names:?}"
    );
}

#[tokio::test]
async fn corrupt_compiled_code_is_compiled_again() {
    let bench = Bench::new().await;
    bench.deploy(replies(201)).await.expect("a version");
    bench.plugins.close();
    let compiled = std::fs::read_dir(bench.dir.path().join("compiled")).expect("a directory");
    let files: Vec<_> = compiled.map(|file| file.expect("a file").path()).collect();
    assert_eq!(files.len(), 1);
    for content in [&b"rubbish"[..], b""] {
        // A new file, since the old one is mapped.
        std::fs::remove_file(&files[0]).expect("removed");
        std::fs::write(&files[0], content).expect("written");
        let reopened = plugins(bench.dir.path(), &bench.store);
        reopened
            .apply(&[config()])
            .await
            .expect("the recorded version");
        assert_eq!(status(&reopened), 201);
        assert_ne!(std::fs::read(&files[0]).expect("read"), content);
    }
}

#[tokio::test]
async fn a_recorded_version_that_is_damaged_gives_way_to_the_one_before() {
    let bench = Bench::new().await;
    bench.deploy(replies(201)).await.expect("a version");
    let second = bench.deploy(replies(202)).await.expect("a version");
    bench.plugins.close();
    let path = bench
        .dir
        .path()
        .join(format!("plugins/p/{}.wasm", second.digest));
    std::fs::write(path, b"damaged").expect("written");
    let reopened = plugins(bench.dir.path(), &bench.store);
    reopened
        .apply(&[config()])
        .await
        .expect("the version before");
    assert_eq!(status(&reopened), 201);
}

#[tokio::test]
async fn a_source_file_starts_a_plugin_and_a_push_can_be_rolled_back_to_it() {
    let bench = Bench::new().await;
    let path = bench.dir.path().join("first.wasm");
    std::fs::write(&path, replies(201)).expect("written");
    let mut config = config();
    config.name = "q".into();
    config.source = Source::File(path);
    let both = [super::config(), config];
    bench.plugins.apply(&both).await.expect("the source");
    let deployed = bench
        .plugins
        .deploy("q", replies(202).into(), "test", false)
        .await;
    assert_eq!(deployed.expect("a version").outcome, Outcome::Swapped);
    bench
        .plugins
        .rollback("q", "test", false)
        .await
        .expect("back to the source");
    let slot = bench.plugins.slot("q").expect("a slot");
    let digest = artifact::digest(&replies(201));
    assert_eq!(
        *slot.active().as_ref().expect("active").label().digest,
        *digest
    );
}

#[tokio::test]
async fn a_changed_config_is_a_new_generation_of_the_same_version_and_a_bad_one_changes_nothing() {
    let bench = Bench::new().await;
    bench.deploy(replies(201)).await.expect("a version");
    let before = bench.active();
    let mut changed = config();
    changed.settings.insert("more".into(), "1".into());
    bench
        .plugins
        .apply(&[changed.clone()])
        .await
        .expect("applied");
    let after = bench.active();
    assert!(after.id() > before.id());
    assert_eq!(after.label().digest, before.label().digest);
    assert!(after.config().settings.contains_key("more"));

    let mut bad = changed.clone();
    bad.source = Source::File("nowhere.wasm".into());
    bad.name = "q".into();
    let (name, error) = bench
        .plugins
        .apply(&[config(), bad])
        .await
        .expect_err("no such file");
    assert_eq!(name, "q");
    assert!(error.to_string().contains("nowhere.wasm"), "{error}");
    assert_eq!(bench.active().id(), after.id());

    bench.plugins.apply(&[changed]).await.expect("applied");
    assert_eq!(
        bench.active().id(),
        after.id(),
        "the same config is no change"
    );
    bench.plugins.apply(&[]).await.expect("applied");
    assert!(bench.plugins.slot("p").is_none());
}

#[tokio::test]
async fn a_version_with_open_streams_is_draining_until_they_end_and_its_code_is_freed() {
    let bench = Bench::new().await;
    let first = bench.deploy(replies(201)).await.expect("a version");
    let generation = bench.active();
    let label = Arc::clone(generation.label());
    label.streams.fetch_add(1, Ordering::Relaxed);
    let second = bench.deploy(replies(202)).await.expect("a version");
    assert_eq!(second.streams_kept, 1);
    bench.deploy(replies(203)).await.expect("a version");
    let freed = Arc::downgrade(&generation);
    drop(generation);
    assert!(
        freed.upgrade().is_none(),
        "nobody holds the code but instances and the slot"
    );
    let state = || {
        let info = bench.plugins.get("p").expect("a plugin");
        let version = info
            .versions
            .into_iter()
            .find(|version| version.digest == first.digest);
        version.map(|version| (version.state, version.streams))
    };
    assert_eq!(state(), Some((VersionState::Draining, 1)));
    label.streams.fetch_sub(1, Ordering::Relaxed);
    assert_eq!(state(), Some((VersionState::Kept, 0)));
}

#[tokio::test]
async fn an_instance_is_orphaned_when_its_generation_is_neither_active_nor_previous() {
    let bench = Bench::new().await;
    bench.deploy(replies(201)).await.expect("a version");
    let instance = Instance::new(&bench.active()).expect("an instance");
    assert!(!instance.is_orphaned(), "active");
    bench.deploy(replies(202)).await.expect("a version");
    assert!(!instance.is_orphaned(), "what a fallback may use");
    bench.deploy(replies(203)).await.expect("a version");
    assert!(instance.is_orphaned());

    let instance = Instance::new(&bench.active()).expect("an instance");
    let slot = bench.plugins.slot("p").expect("a slot");
    bench.plugins.apply(&[]).await.expect("applied");
    assert!(!instance.is_orphaned(), "a route still holds the slot");
    drop(slot);
    assert!(instance.is_orphaned());
}

#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<String>>,
    refuse: std::sync::atomic::AtomicBool,
}

impl Crew for Recorder {
    fn warm(
        &self,
        generation: Arc<Generation>,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        self.events
            .lock()
            .expect("unpoisoned")
            .push(format!("warm {}", generation.id().0));
        let refuse = self.refuse.load(Ordering::Relaxed);
        Box::pin(async move {
            if refuse {
                Err("no room".into())
            } else {
                Ok(())
            }
        })
    }
    fn retire(&self, generation: GenerationId) {
        self.events
            .lock()
            .expect("unpoisoned")
            .push(format!("retire {}", generation.0));
    }
    fn drain(&self, _: &str, drained: &[String], active: &str, _: Duration) {
        self.events
            .lock()
            .expect("unpoisoned")
            .push(format!("drain {drained:?} beside {active}"));
    }
}

#[tokio::test]
async fn workers_are_warm_before_a_version_is_active_and_let_go_of_one_that_failed() {
    let bench = Bench::new().await;
    let crew = Arc::new(Recorder::default());
    bench.plugins.set_crew(crew.clone());
    bench.deploy(replies(201)).await.expect("a version");
    bench.deploy(replies(202)).await.expect("a version");
    crew.refuse.store(true, Ordering::Relaxed);
    let refused = bench.deploy(replies(203)).await;
    assert!(matches!(refused, Err(DeployError::Warm(reason)) if reason == "no room"));
    assert_eq!(bench.status(), 202);
    let events = crew.events.lock().expect("unpoisoned").clone();
    assert_eq!(
        events,
        ["warm 1", "warm 2", "retire 1", "warm 3", "retire 3"]
    );
}

#[tokio::test]
async fn one_deploy_of_a_plugin_runs_at_a_time() {
    let bench = Bench::new().await;
    let slot = bench.plugins.slot("p").expect("a slot");
    let turn = slot.take_turn().expect("nobody else");
    assert!(matches!(
        bench.deploy(replies(201)).await,
        Err(DeployError::Busy(_))
    ));
    drop(turn);
    bench.deploy(replies(201)).await.expect("a version");
}
