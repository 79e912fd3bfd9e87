//! Where sessions live, and for how long.

use super::*;
use crate::plugin::verdict::{Direction, Kind, Verdict};
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// A worker's sessions of the built-in chat-filter.
struct Chats {
    bench: Bench,
    sessions: Rc<Sessions>,
}

impl Chats {
    async fn new(change: impl FnOnce(&mut PluginConfig)) -> Self {
        let bench = Bench::with(|config| {
            let settings = [("upstream", "chat"), ("deny", "heck")];
            config.settings = settings
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
            config.limits.deadline = std::time::Duration::from_secs(1);
            change(config);
        })
        .await;
        let component = builtin::component("chat-filter").expect("it is built in");
        bench.deploy(component.to_vec()).await.expect("a version");
        let sessions = Sessions::new(0, bench.store.reader());
        Self { bench, sessions }
    }

    fn open(&self) -> Result<Session, SessionError> {
        let opened = self
            .sessions
            .open(&self.bench.active(), &mut Some(head()))?;
        match opened {
            Opened::Taken { session, .. } => Ok(session),
            Opened::Refused { reply, .. } => panic!("refused: {reply:?}"),
        }
    }
}

fn say(session: &mut Session, text: &str) -> Verdict {
    let verdict = session.message(Direction::Up, Kind::Text, text.as_bytes());
    verdict.expect("a verdict")
}

#[tokio::test]
async fn an_instance_goes_with_its_last_session_once_something_else_is_active() {
    let chats = Chats::new(|_| {}).await;
    let (mut first, second) = (chats.open().expect("one"), chats.open().expect("another"));
    let old = Arc::downgrade(&chats.bench.active().sandbox);
    let label = chats.bench.active().label().clone();
    drop(second);
    assert_eq!(label.sessions.load(Ordering::Relaxed), 1);
    // Two pushes: neither the active nor the last good version is the old one.
    for status in [200, 201] {
        let deployed = chats.bench.deploy(guest::replies(status)).await;
        deployed.expect("a version");
        chats.sessions.sweep();
    }
    assert_eq!(say(&mut first, "hello"), Verdict::Pass);
    assert!(matches!(say(&mut first, "heck"), Verdict::SendBack(_)));
    assert!(old.upgrade().is_some());
    drop(first);
    assert!(
        old.upgrade().is_none(),
        "nothing of the old version is left"
    );
    assert_eq!(label.sessions.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn so_many_sessions_share_an_instance_and_more_get_another() {
    let chats = Chats::new(|config| config.sessions.per_instance_max = 2).await;
    let sessions: Vec<Session> = (0..5).map(|_| chats.open().expect("a session")).collect();
    assert_eq!(chats.sessions.instances(), 3);
    drop(sessions);
    // The version is active: the next stream finds them warm.
    assert_eq!(chats.sessions.instances(), 3);
}

#[tokio::test]
async fn an_instance_that_has_done_its_share_takes_no_new_session() {
    let chats = Chats::new(|config| config.limits.calls_max = 3).await;
    let mut first = chats.open().expect("a session");
    let second = chats.open().expect("a session");
    assert_eq!(chats.sessions.instances(), 1);
    assert_eq!(say(&mut first, "hello"), Verdict::Pass);
    let _third = chats.open().expect("a session");
    assert_eq!(chats.sessions.instances(), 2);
    // Those it has are not disturbed.
    assert_eq!(say(&mut first, "hello"), Verdict::Pass);
    drop((first, second));
    assert_eq!(chats.sessions.instances(), 1);
}

#[tokio::test]
async fn isolated_sessions_have_an_instance_each_up_to_their_bound() {
    let chats = Chats::new(|config| {
        config.sessions.isolated = true;
        config.sessions.isolated_max = 2;
    })
    .await;
    let first = chats.open().expect("one");
    let _second = chats.open().expect("another");
    let refused = chats.open().err().expect("no third");
    assert!(
        matches!(refused, SessionError::IsolatedFull(2)),
        "{refused}"
    );
    drop(first);
    assert_eq!(chats.sessions.instances(), 1);
    assert!(chats.open().is_ok());
}

#[tokio::test]
async fn sessions_leave_nothing_in_their_instance() {
    let chats = Chats::new(|_| {}).await;
    // More than the engine's table of handles would hold, if any stayed.
    for _ in 0..3_000 {
        let mut session = chats.open().expect("a session");
        assert_eq!(say(&mut session, "hello"), Verdict::Pass);
    }
    assert_eq!(chats.sessions.instances(), 1);
}
