//! What the store is told of an entry that came with writes, from its arrival until its version is published.

use super::*;
use crate::fleet::entry::PluginEntry;
use crate::plugin::{Agreement, Crew, Generation, GenerationId};
use crate::store::Passage;
use std::pin::Pin;

/// What another node agreed on.
fn entry(status: u16) -> PluginEntry {
    let agreement = Agreement {
        active: version(status),
        canary: None,
        failing: None,
        force: false,
        back: false,
    };
    PluginEntry {
        with_writes: true,
        ..PluginEntry::new(agreement, "ada", "other", 7)
    }
}

/// Two versions that were agreed on, 201 and 202, and a node that has the first one and stands by.
async fn behind(backend: &Backend, plugin: PluginConfig) -> (Node, Node) {
    let one = backend.node("a").await;
    one.push(201).await.expect("a version");
    let dir = tempfile::tempdir().expect("a directory");
    let mut behind = backend.still("b", dir, plugin).await;
    behind.fleet.settle().await;
    one.push(202).await.expect("a version");
    let stands_by = Arc::clone(&behind.fleet).stand_by();
    behind.tasks.push(tokio::spawn(stands_by));
    (one, behind)
}

impl Node {
    fn asked(&self, entry: &PluginEntry, anew: bool) -> Passage {
        let value = serde_json::to_vec(entry).expect("JSON");
        self.fleet.arrives("plugin/p", &value, anew)
    }

    fn waits(&self, entry: &PluginEntry) -> bool {
        matches!(self.asked(entry, false), Passage::Wait(_))
    }

    fn passes(&self, entry: &PluginEntry) -> bool {
        matches!(self.asked(entry, false), Passage::Open)
    }

    /// Ends its tasks.
    async fn ends(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            assert!(task.await.is_err_and(|error| error.is_cancelled()));
        }
    }

    /// Waits until its version is on stage, and tells it from which state on it decides.
    async fn shows(&self, entry: &PluginEntry, from: Revision) {
        let is_told = || match self.asked(entry, false) {
            Passage::Noting(notes) => {
                assert_eq!(notes.len(), 2);
                for note in notes {
                    note.store(from.0, SeqCst);
                }
                true
            }
            Passage::Wait(_) => false,
            Passage::Open => panic!("it passes alone"),
        };
        until("it is on stage", is_told).await;
    }
}

/// Workers whose instances are warm unless they are told to let go of them.
#[derive(Default)]
struct Workers {
    retired: Mutex<Vec<GenerationId>>,
}

impl Crew for Workers {
    fn warm(
        &self,
        _: Arc<Generation>,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async { Ok(()) })
    }

    fn retire(&self, generation: GenerationId) {
        locked(&self.retired).push(generation);
    }

    fn drain(&self, _: &str, _: &[String], _: &str, _: Duration) {}
}

#[tokio::test]
async fn what_came_with_writes_waits_and_nothing_else_does() {
    let backend = Backend::new();
    let dir = tempfile::tempdir().expect("a directory");
    let node = backend.still("a", dir, plugin()).await;
    node.push(201).await.expect("a version");
    let alone = PluginEntry {
        with_writes: false,
        ..entry(202)
    };
    assert!(node.passes(&alone));
    let gate = &node.fleet;
    for (key, value) in [
        ("node/b", &b"{}"[..]),
        ("plugin/p", b"{"),
        ("artifact/x", b""),
    ] {
        assert!(matches!(gate.arrives(key, value, true), Passage::Open));
    }
    let value = serde_json::to_vec(&entry(202)).expect("JSON");
    let unknown = gate.arrives("plugin/not-here", &value, false);
    assert!(matches!(unknown, Passage::Open), "no request asks it");
    assert!(node.passes(&entry(201)), "it is active");
    assert!(node.waits(&entry(202)) && node.waits(&entry(202)));
    // By then the other one may be active.
    assert!(node.waits(&entry(201)));

    // Of what is loaded anew nobody knows what came on the way.
    let dir = tempfile::tempdir().expect("a directory");
    let node = backend.still("b", dir, plugin()).await;
    assert!(matches!(node.asked(&alone, true), Passage::Wait(_)));
}

#[tokio::test]
async fn a_version_decides_from_the_state_on_that_it_came_with_and_is_published_then() {
    let backend = Backend::new();
    let (_one, behind) = behind(&backend, plugin()).await;
    let workers = Arc::new(Workers::default());
    behind
        .plugins
        .set_crew(Arc::clone(&workers) as Arc<dyn Crew>);
    let id = || {
        behind
            .plugins
            .slot("p")
            .expect("a slot")
            .active()
            .as_ref()
            .map(|it| it.id())
    };
    let old = id().expect("active");
    assert!(behind.waits(&entry(202)));
    let newest = backend.store.snapshot().revision();
    behind.shows(&entry(202), newest).await;
    let Passage::Noting(notes) = behind.asked(&entry(202), false) else {
        panic!("it is on stage");
    };
    assert!(notes.is_empty(), "it decides already");
    let before = Revision(newest.0 - 1);
    assert!(behind.fleet.moments.due("p", before).is_none());
    assert!(behind.fleet.moments.due("q", newest).is_none());
    assert_eq!(behind.active(), Some(version(201)));
    behind.fleet.settle().await;
    assert_eq!(behind.active(), Some(version(202)));
    assert!(behind.passes(&entry(202)));
    assert_eq!(*locked(&workers.retired), [old], "the new one is warm");
    // It was fetched, and is as if it were pushed here.
    assert!(behind.plugins.keeps("p", &version(202)));
    assert_eq!(behind.told()["state"], "ok");
}

#[tokio::test]
async fn what_cannot_be_loaded_passes_without_its_version_and_is_not_waited_for_again() {
    let backend = Backend::new();
    let (_one, behind) = behind(&backend, plugin_without_its_bucket()).await;
    let Passage::Wait(at_most) = behind.asked(&entry(202), false) else {
        panic!("nobody knows yet");
    };
    until("it passes", || behind.passes(&entry(202))).await;
    assert!(Instant::now() < at_most, "nobody waits for what cannot be");
    assert!(behind.passes(&entry(202)));
}

#[tokio::test]
async fn what_is_not_ready_in_time_passes_without_its_version() {
    let backend = Backend::new();
    let dir = tempfile::tempdir().expect("a directory");
    let node = backend.still("a", dir, plugin()).await;
    assert!(node.waits(&entry(202)));
    node.fleet.moments.end_all();
    assert!(node.passes(&entry(202)) && node.passes(&entry(202)));
    // What comes next is another one.
    assert!(node.waits(&entry(203)));
}

#[tokio::test]
async fn while_the_component_cannot_be_fetched_it_is_waited_for() {
    let backend = Backend::new();
    let (_one, behind) = behind(&backend, plugin()).await;
    backend.depot.is_away.store(true, SeqCst);
    assert!(behind.waits(&entry(202)));
    let failed = || behind.fleet.row().fetch_errors > 0;
    until("it was tried", failed).await;
    assert!(behind.waits(&entry(202)));
    backend.depot.is_away.store(false, SeqCst);
    let newest = backend.store.snapshot().revision();
    behind.shows(&entry(202), newest).await;
}

#[tokio::test]
async fn a_kept_version_that_is_damaged_is_fetched_before_it_is_shown() {
    let backend = Backend::new();
    let (_one, mut behind) = behind(&backend, plugin()).await;
    behind.fleet.settle().await;
    assert_eq!(behind.active(), Some(version(202)));
    behind.ends().await;
    behind.plugins.close();
    let dir = std::mem::replace(&mut behind.dir, tempfile::tempdir().expect("a directory"));
    drop(behind);
    let kept = agreeing::file_named(dir.path(), &format!("{}.wasm", version(201)));
    std::fs::write(&kept, component(203)).expect("written");
    let mut behind = backend.still("b", dir, plugin()).await;
    let stands_by = Arc::clone(&behind.fleet).stand_by();
    behind.tasks.push(tokio::spawn(stands_by));
    assert!(behind.waits(&entry(201)));
    let newest = backend.store.snapshot().revision();
    behind.shows(&entry(201), newest).await;
    assert!(behind.fleet.row().fetches > 0);
}

#[tokio::test]
async fn a_version_that_failed_here_is_shown_only_by_force() {
    let backend = Backend::new();
    let (_one, behind) = behind(&backend, plugin()).await;
    let mark = crate::plugin::Step::Mark {
        version: version(202),
        reason: "5 traps".to_owned(),
    };
    let marked = behind.plugins.take_step("p", mark, None, ORDER, false);
    marked.await.expect("marked");
    assert!(behind.waits(&entry(202)));
    until("it passes", || behind.passes(&entry(202))).await;
    let forced = PluginEntry {
        force: true,
        ..entry(202)
    };
    let newest = backend.store.snapshot().revision();
    behind.shows(&forced, newest).await;
}

/// Its instances would have the limits and settings of before.
#[tokio::test]
async fn what_was_made_ready_for_another_config_does_not_take_over() {
    let backend = Backend::new();
    let (_one, behind) = behind(&backend, plugin()).await;
    let newest = backend.store.snapshot().revision();
    assert!(behind.waits(&entry(202)));
    behind.shows(&entry(202), newest).await;
    let mut other = plugin();
    other.limits.deadline += Duration::from_millis(7);
    behind.plugins.apply(&[other]).await.expect("applied");
    let (_, ahead) = behind.fleet.moments.due("p", newest).expect("on stage");
    let taken = behind.plugins.take_over(ahead, ORDER).await;
    assert!(matches!(taken, Err(DeployError::Busy(_))), "{taken:?}");
    assert_eq!(behind.active(), Some(version(201)));
    // It is taken like any other.
    behind.fleet.settle().await;
    assert_eq!(behind.active(), Some(version(202)));
}
