//! Following the log: one watch of everything below the prefix, so that all changes of one revision come together.

use super::connect::{Connection, Failure, answered, revision};
use super::{Inner, keys, leases, overdue};
use crate::store::shared::ended::Ended;
use crate::store::shared::pause::Pause;
use crate::store::shared::{Author, Event, Revision, SharedChange, SharedEntry};
use etcd_client::proto::PbEvent;
use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

/// The kind of an event that sets a key; the other deletes one.
const PUT: i32 = 0;

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        if failure.compacted() {
            Ended::Gap
        } else {
            Ended::Lost(failure.reason)
        }
    }
}

/// Follows until the receiver is gone or there is a gap.
pub(super) async fn follow(
    inner: &Inner,
    buckets: &[Box<str>],
    from: Revision,
    events: &mpsc::Sender<Event>,
) {
    let mut at = from;
    let mut pause = Pause::new();
    loop {
        let ended = tokio::select! {
            () = events.closed() => Ended::Left,
            ended = connected(inner, buckets, &mut at, &mut pause, events) => ended,
        };
        if !ended.goes_on(events, &mut pause).await {
            return;
        }
    }
}

/// Follows by one connection.
async fn connected(
    inner: &Inner,
    buckets: &[Box<str>],
    at: &mut Revision,
    pause: &mut Pause,
    events: &mpsc::Sender<Event>,
) -> Ended {
    // Of its own: loads and commits do not wait behind the log, and a lost log is another member's chance.
    let connection = match inner.connector.connect().await {
        Ok(connection) => connection,
        Err(error) => return Ended::Lost(error.to_string()),
    };
    let cluster = inner.cluster.load(Relaxed);
    if connection.revision < at.0 || (cluster != 0 && connection.cluster != cluster) {
        return Ended::Gap;
    }
    let stream = match watch(inner, &connection, *at).await {
        Ok(stream) => stream,
        Err(failure) => return failure.into(),
    };
    let watcher = Watcher {
        inner,
        buckets,
        connection: &connection,
        events,
        at,
        pause,
        group: None,
        current: Instant::now(),
        asked: None,
        written: None,
    };
    let ended = tokio::select! {
        ended = watcher.run(stream) => ended,
        never = inner.leases.run(inner, &connection) => match never {},
        never = overdue::run(inner, &connection) => match never {},
    };
    if let Ended::Lost(_) = ended {
        inner.connector.avoid(&connection);
    }
    ended
}

async fn watch(
    inner: &Inner,
    connection: &Connection,
    from: Revision,
) -> Result<WatchStream, Failure> {
    let prefix = inner.keys.prefix();
    let options = WatchOptions::new()
        .with_range(keys::end(prefix))
        .with_start_revision(super::signed(from.0).saturating_add(1))
        .with_fragment();
    let mut client = connection.watch();
    let begun = client.watch(prefix, Some(options));
    answered(&connection.endpoint, inner.settings.timeout, begun).await
}

/// How to learn that nothing is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heartbeat {
    /// By asking the server.
    Progress,
    /// By a write of our own, which comes back behind everything before it: older servers answer a question before they
    /// have sent what the answer says was sent (etcd-io/etcd issue 15220).
    Write,
}

impl Heartbeat {
    fn of(version: &str) -> Self {
        let mut parts = version
            .split(['.', '-', '+'])
            .map(|part| part.parse::<u32>().unwrap_or(0));
        let mut part = || parts.next().unwrap_or(0);
        let version = (part(), part(), part());
        match version {
            (3, 4, patch) if patch >= 25 => Heartbeat::Progress,
            (3, 5, patch) if patch >= 8 => Heartbeat::Progress,
            later if later >= (3, 6, 0) => Heartbeat::Progress,
            _ => Heartbeat::Write,
        }
    }
}

/// A write of our own, and the revision that it gets.
type Asking = Pin<Box<dyn Future<Output = Result<Revision, Failure>> + Send>>;

struct Watcher<'a> {
    inner: &'a Inner,
    buckets: &'a [Box<str>],
    connection: &'a Connection,
    events: &'a mpsc::Sender<Event>,
    at: &'a mut Revision,
    pause: &'a mut Pause,
    /// The revision that is being received, and what of it is in the followed buckets.
    group: Option<(Revision, Vec<SharedChange>, Option<Author>)>,
    /// The last moment of which it is known that nothing before it is missing.
    current: Instant,
    /// When the first of the questions was asked that have no answer yet.
    asked: Option<Instant>,
    /// The write that is this question, if that did not come back yet.
    written: Option<Revision>,
}

impl Watcher<'_> {
    async fn run(mut self, mut stream: WatchStream) -> Ended {
        let limit = self.inner.settings.timeout;
        let heartbeat = match timeout(limit, self.connection.version()).await {
            Ok(Ok(version)) => Heartbeat::of(&version),
            // Who may not ask for it can still write.
            Ok(Err(_)) => Heartbeat::Write,
            Err(_) => return self.silent(),
        };
        #[cfg(test)]
        let heartbeat = if self.inner.asks {
            Heartbeat::Progress
        } else {
            heartbeat
        };
        let mut asking: Option<Asking> = None;
        // When an answer is late.
        let mut late: Option<Instant> = None;
        // The first question is whether everything before the watch has come.
        let mut ask_at = Instant::now();
        loop {
            tokio::select! {
                // What has come counts before what is late.
                biased;
                message = stream.message() => {
                    late = None;
                    let response = match message {
                        Ok(Some(response)) => response,
                        Ok(None) => return Ended::Lost(self.named("ended the watch")),
                        Err(error) => return self.connection_failed(&error),
                    };
                    if let Err(ended) = self.received(response).await {
                        return ended;
                    }
                    if asking.is_none() {
                        ask_at = ask_at.max(self.current + self.inner.settings.heartbeat);
                    }
                }
                answer = async { asking.as_mut().expect("checked before it is polled").await },
                    if asking.is_some() =>
                {
                    asking = None;
                    match answer {
                        Ok(written) => drop(self.written.get_or_insert(written)),
                        Err(failure) => return failure.into(),
                    }
                    // It may have come back before its answer.
                    if let Err(ended) = self.look_for_written().await {
                        return ended;
                    }
                }
                () = sleep_until(ask_at), if asking.is_none() => {
                    let now = Instant::now();
                    self.asked.get_or_insert(now);
                    ask_at = now + self.inner.settings.heartbeat;
                    late = late.or(Some(now + limit));
                    match heartbeat {
                        Heartbeat::Write => asking = Some(self.write()),
                        Heartbeat::Progress => {
                            if let Err(error) = stream.request_progress().await {
                                return self.connection_failed(&error);
                            }
                        }
                    }
                }
                () = sleep_until(late.unwrap_or(ask_at)), if late.is_some() => return self.silent(),
            }
        }
    }

    /// A write that every follower sees.
    fn write(&self) -> Asking {
        let mut kv = self.connection.kv();
        let key = self.inner.keys.prefix().to_owned();
        let endpoint = self.connection.endpoint.clone();
        let limit = self.inner.settings.timeout;
        Box::pin(async move {
            let put = async move { kv.put(key, "", None).await };
            let answer = answered(&endpoint, limit, put).await?;
            let at = answer.header().map_or(0, |header| header.revision());
            Ok(Revision(revision(at)))
        })
    }

    async fn received(&mut self, response: WatchResponse) -> Result<(), Ended> {
        let response = response.0;
        if response.canceled {
            if response.compact_revision > 0 || response.cancel_reason.contains("compacted") {
                return Err(Ended::Gap);
            }
            let reason = format!("ended the watch: {}", response.cancel_reason);
            return Err(Ended::Lost(self.named(&reason)));
        }
        if response.created {
            return Ok(());
        }
        if response.events.is_empty() && !response.fragment {
            // An answer to the question how far the log has come.
            let at = response
                .header
                .map_or(0, |header| revision(header.revision));
            return self.current(Revision(at).max(*self.at)).await;
        }
        for event in response.events {
            self.event(event).await?;
        }
        // A piece may end in the middle of a revision.
        if response.fragment {
            return Ok(());
        }
        self.flush().await
    }

    async fn event(&mut self, event: PbEvent) -> Result<(), Ended> {
        let Some(pair) = event.kv else {
            return Ok(());
        };
        let of = Revision(revision(pair.mod_revision));
        if of <= *self.at {
            return Ok(());
        }
        if self
            .group
            .as_ref()
            .is_some_and(|(revision, ..)| *revision != of)
        {
            self.flush().await?;
        }
        let (_, changes, author) = self.group.get_or_insert_with(|| (of, Vec::new(), None));
        let Some((bucket, key)) = self.inner.keys.parse(&pair.key) else {
            let marked = self.inner.keys.marked(&pair.key);
            if marked.is_some_and(|bucket| self.buckets.iter().any(|it| **it == *bucket)) {
                *author = Author::parse(&pair.value);
            }
            return Ok(());
        };
        if !self.buckets.iter().any(|followed| **followed == *bucket) {
            return Ok(());
        }
        let put = event.r#type == PUT;
        let lease = if put { pair.lease } else { 0 };
        self.inner.leases.learn(&pair.key, lease);
        let (bucket, key): (Box<str>, Box<str>) = (bucket.into(), key.into());
        let after = put.then(|| SharedEntry {
            bucket: bucket.clone(),
            key: key.clone(),
            value: pair.value.into(),
            revision: of,
            expires_at_ms: leases::end_ms(lease),
        });
        changes.push(SharedChange { bucket, key, after });
        Ok(())
    }

    /// Tells of the revision that was received.
    async fn flush(&mut self) -> Result<(), Ended> {
        let Some((revision, changes, author)) = self.group.take() else {
            return Ok(());
        };
        *self.at = revision;
        self.tell(match changes.is_empty() {
            true => Event::Passed(revision),
            false => Event::Changes {
                revision,
                changes,
                author,
            },
        })
        .await?;
        self.look_for_written().await
    }

    /// Tells that nothing is missing, if the write of our own has come back: it was not there before it was made.
    async fn look_for_written(&mut self) -> Result<(), Ended> {
        match self.written.take_if(|written| *written <= *self.at) {
            Some(_) => self.current(*self.at).await,
            None => Ok(()),
        }
    }

    async fn current(&mut self, revision: Revision) -> Result<(), Ended> {
        *self.at = revision;
        // What was asked then is answered now, however long that waited to be read.
        self.current = self.asked.take().unwrap_or(self.current);
        self.pause.reset();
        let event = Event::Current(revision, self.current.into_std());
        self.tell(event).await
    }

    async fn tell(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended::Left)
    }

    fn named(&self, reason: &str) -> String {
        format!("etcd {}: {reason}", self.connection.endpoint)
    }

    fn silent(&self) -> Ended {
        let limit = self.inner.settings.timeout;
        Ended::Lost(self.named(&format!("no answer within {limit:?}")))
    }

    fn connection_failed(&self, error: &etcd_client::Error) -> Ended {
        Failure::new(&self.connection.endpoint, error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_not_asked_how_far_the_log_has_come() {
        for (version, heartbeat) in [
            ("3.4.23", Heartbeat::Write),
            ("3.4.25", Heartbeat::Progress),
            ("3.5.7", Heartbeat::Write),
            ("3.5.16", Heartbeat::Progress),
            ("3.6.0-rc.1", Heartbeat::Progress),
            ("4.0", Heartbeat::Progress),
            ("3.3.25+git", Heartbeat::Write),
            ("", Heartbeat::Write),
        ] {
            assert_eq!(Heartbeat::of(version), heartbeat, "{version}");
        }
    }
}
