//! What the thread of an engine does: it asks the engine, and delivers what the log tells.

use super::*;

/// Tells whoever waits what became of a transaction that was sent: dropped before, that nobody knows.
struct Answer(Option<oneshot::Sender<Result<Outcome, EngineError>>>);

impl Answer {
    fn send(mut self, answer: Result<Outcome, EngineError>) {
        if let Some(done) = self.0.take() {
            // Whoever no longer waits does not need an answer.
            let _ = done.send(answer);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            let reason = "store was closed before there was an answer".into();
            let _ = done.send(Err(EngineError::Unknown(reason)));
        }
    }
}

/// Does what is asked for, until it is to close or nobody can ask any more.
pub(super) async fn answer<E: Engine>(
    engine: E,
    mut asked: mpsc::UnboundedReceiver<Ask>,
    shared: Arc<Shared>,
) {
    // Bounded by their places.
    let (in_order, mut next) =
        mpsc::unbounded_channel::<Pin<Box<dyn Future<Output = ()> + Send>>>();
    tokio::spawn(async move {
        while let Some(work) = next.recv().await {
            work.await;
        }
    });
    while let Some(ask) = asked.recv().await {
        let engine = engine.clone();
        // Whoever no longer waits does not need an answer.
        match ask {
            Ask::Load(buckets, done) => drop(tokio::spawn(async move {
                let _ = done.send(engine.load(&buckets).await);
            })),
            // Its place is taken until the engine has answered, even if nobody waits for that.
            Ask::Commit(transaction, done, place) => drop(tokio::spawn(async move {
                let answer = Answer(Some(done));
                answer.send(engine.commit(&transaction).await);
                drop(place);
            })),
            Ask::Left(entries) => {
                let shared = Arc::clone(&shared);
                drop(tokio::spawn(async move {
                    let mut entries = entries;
                    while !entries.is_empty() {
                        let left = engine.left(&entries).await;
                        entries = shared.left(entries, left);
                    }
                }));
            }
            Ask::Free(large) => drop(tokio::task::spawn_blocking(move || drop(large))),
            Ask::InOrder(work) => drop(in_order.send(work)),
            Ask::Close => return,
        }
    }
}

/// Follows what is wanted, from where it is known, until nobody wants anything any more.
pub(super) async fn follow<E: Engine>(
    engine: E,
    mut wanted: watch::Receiver<Vec<Wanted>>,
    shared: &Shared,
) {
    let mut pause = Pause::new();
    // What of each bucket was delivered; nothing is delivered twice.
    let mut have: HashMap<Box<str>, Revision> = HashMap::new();
    // Up to where all of them were.
    let mut at: Option<Revision> = None;
    // What follows is not what was: what others loaded before is of no use.
    let mut anew = false;
    loop {
        let now = wanted.borrow_and_update().clone();
        let names: Vec<Box<str>> = now.iter().map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        }
        if let Some(at) = at {
            have.values_mut()
                .for_each(|known| *known = (*known).max(at));
        }
        for (name, loaded) in &now {
            if let Some(loaded) = loaded {
                have.entry(name.clone()).or_insert(*loaded);
            }
        }
        let known = names.iter().map(|name| have.get(name).copied());
        at = known.min().flatten().filter(|_| !anew);
        let from = match at {
            Some(from) => from,
            None => match (Instant::now(), engine.load(&names).await) {
                (asked, Ok(loaded)) => {
                    let revision = loaded.revision;
                    have = names.iter().map(|name| (name.clone(), revision)).collect();
                    let content = shared.made_ready(names.clone(), loaded).await;
                    let content = Incoming::Content(content);
                    shared.deliver(content, Some(asked)).await;
                    anew = false;
                    revision
                }
                (_, Err(error)) => {
                    shared.lost(error.to_string());
                    tokio::select! {
                        () = tokio::time::sleep(pause.next()) => {}
                        changed = wanted.changed() => if changed.is_err() { return },
                    }
                    continue;
                }
            },
        };
        at = Some(from);
        let (events, mut told) = mpsc::channel(EVENTS_MAX);
        let following = engine.follow(names, from, events);
        tokio::pin!(following);
        let mut follows = true;
        loop {
            let event = tokio::select! {
                biased;
                event = told.recv() => event,
                changed = wanted.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = &mut following, if follows => {
                    follows = false;
                    continue;
                }
            };
            match event {
                Some(Event::Changes {
                    revision,
                    mut changes,
                    author,
                }) => {
                    changes.retain(|change| {
                        have.get(&change.bucket)
                            .is_none_or(|known| *known < revision)
                    });
                    at = at.max(Some(revision));
                    let incoming = Incoming::Changes {
                        revision,
                        changes,
                        author,
                    };
                    shared.deliver(incoming, None).await;
                }
                Some(Event::Passed(revision)) => {
                    at = at.max(Some(revision));
                    shared.deliver(Incoming::Current(revision), None).await;
                }
                Some(Event::Current(revision, then)) => {
                    at = at.max(Some(revision));
                    pause.reset();
                    let incoming = Incoming::Current(revision);
                    shared.deliver(incoming, Some(then)).await;
                }
                Some(Event::Lost(reason)) => shared.lost(reason),
                // What is next is not what follows: everything is loaded anew.
                Some(Event::Gap) | None => {
                    anew = true;
                    tokio::time::sleep(pause.next()).await;
                    break;
                }
            }
        }
    }
}

impl Shared {
    /// What was loaded of these buckets, compared with what readers see of them: on a thread of its own, for others wait for
    /// this one and for the writer's.
    async fn made_ready(&self, names: Vec<Box<str>>, loaded: Loaded) -> Content {
        let (snapshot, kind) = (self.wake.snapshot(), self.wake.kind());
        let ready = move || Content::new(&snapshot, kind, &names, loaded);
        let ready = tokio::task::spawn_blocking(ready).await;
        ready.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Delivers what arrived, and with it the moment at which it was all that there was, if it was. What the log tells after
    /// an absence is of the past until it says that it is all.
    async fn deliver(&self, incoming: Incoming, current_at: Option<Instant>) {
        loop {
            let room = self.room.notified();
            if locked(&self.inbox).arrivals.len() < INBOX_MAX {
                break;
            }
            room.await;
        }
        self.notes.until_answered(&incoming).await;
        let revision = match &incoming {
            Incoming::Changes { revision, .. } | Incoming::Current(revision) => *revision,
            Incoming::Content(content) => content.revision,
            // It says nothing of how far the log has come.
            Incoming::Left(..) => return,
        };
        locked(&self.health).there(revision);
        let mut inbox = locked(&self.inbox);
        inbox.current_at = current_at.or(inbox.current_at);
        inbox.arrivals.push_back(incoming);
        drop(inbox);
        self.wake.wake();
    }

    /// Delivers how long the first of these entries live. Returns those that are yet to be asked for.
    fn left(&self, mut entries: Vec<Ending>, left: Result<Vec<Left>, EngineError>) -> Vec<Ending> {
        let mut others = Vec::new();
        match left {
            // The pieces of one answer at most wait beside what the log tells: the next is asked for when the writer has them.
            Ok(left) => {
                if !left.is_empty() {
                    others = entries.split_off(left.len().min(entries.len()));
                }
                let answers = entries.into_iter().zip(left).collect();
                locked(&self.inbox)
                    .arrivals
                    .push_back(Incoming::Left(answers, others.is_empty()));
            }
            Err(error) => {
                tracing::debug!(%error, "how long entries live was not answered");
                self.asks_left.store(false, Ordering::Release);
            }
        }
        self.wake.wake();
        others
    }

    fn lost(&self, reason: String) {
        locked(&self.health).lost(reason);
    }
}
