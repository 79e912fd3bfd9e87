//! Following the log: a blocking read of the stream behind the last transaction, and from time to time a look at its end,
//! at which what has expired is removed, too.

use super::Inner;
use super::connect::{Connection, shown, takes_no_writes};
use super::load::{foreign, head};
use super::record::{self, Logged, Token};
use crate::store::shared::ended::Ended;
use crate::store::shared::pause::Pause;
use crate::store::shared::{Event, Revision};
use ::redis::{ErrorKind, RedisError, RedisResult, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Transactions asked for at once.
const PIECE_TRANSACTIONS: usize = 64;
/// Entries removed at once because they have expired: the server does nothing else meanwhile.
const EXPIRED_AT_ONCE: u64 = 1024;

/// Follows until the receiver is gone or there is a gap.
pub(super) async fn follow(
    inner: &Inner,
    buckets: &[Box<str>],
    from: Revision,
    events: &mpsc::Sender<Event>,
) {
    let mut pause = Pause::new();
    // Without its token it cannot be told whether the log is still the one it was.
    let mut at = inner.positions.token(from).map(|token| (from, token));
    loop {
        let ended = match &mut at {
            None => Ended::Gap,
            Some(at) => tokio::select! {
                () = events.closed() => Ended::Left,
                ended = connected(inner, buckets, at, &mut pause, events) => ended,
            },
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
    at: &mut (Revision, Token),
    pause: &mut Pause,
    events: &mpsc::Sender<Event>,
) -> Ended {
    let connection = match inner.connector.connect(inner.settings.heartbeat).await {
        Ok(connection) => connection,
        Err(error) => return Ended::Lost(error.to_string()),
    };
    let reader = Reader {
        inner,
        buckets,
        connection: &connection,
        events,
        at,
        pause,
    };
    match reader.run().await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

struct Reader<'a> {
    inner: &'a Inner,
    buckets: &'a [Box<str>],
    connection: &'a Connection,
    events: &'a mpsc::Sender<Event>,
    /// The last transaction that was told.
    at: &'a mut (Revision, Token),
    pause: &'a mut Pause,
}

impl Reader<'_> {
    async fn run(mut self) -> Result<std::convert::Infallible, Ended> {
        // The first look tells whether this is still the same log.
        let mut look_at = Instant::now();
        // The end of the log when it was last looked at, and when that was.
        let (mut end, mut looked_at) = (Revision(0), look_at);
        loop {
            if Instant::now() >= look_at {
                let more;
                (end, looked_at, more) = self.look().await?;
                look_at = Instant::now();
                // While there is more to remove, nobody waits between two pieces, and each is read before the next.
                if !more {
                    look_at += self.inner.settings.heartbeat;
                }
            }
            let missing = end > self.at.0;
            let read = self.read(look_at).await;
            let transactions = read.map_err(|error| self.lost(&error))?;
            if transactions.is_empty() && missing {
                // The log ends behind us, yet it has nothing behind us.
                return Err(Ended::Gap);
            }
            for logged in transactions {
                self.tell(logged).await?;
            }
            // Where something is written all the time, it is never at the end when it looks.
            if missing && self.at.0 >= end {
                self.current(looked_at).await?;
            }
        }
    }

    /// Removes some of what has expired, and looks whether the end of the log is ours. Returns that, when it was so, and
    /// whether there may be more to remove.
    async fn look(&mut self) -> Result<(Revision, Instant, bool), Ended> {
        let expired = match self.expire().await {
            // It can still be followed, and what has expired is removed later.
            Err(error) if takes_no_writes(&error) => 0,
            expired => expired.map_err(|error| self.lost(&error))?,
        };
        let looked_at = Instant::now();
        let end = head(self.inner, self.connection).await;
        let end = end.map_err(|error| self.lost(&error))?;
        let (at, token) = &*self.at;
        if end.revision < *at || (end.revision == *at && end.token != *token) {
            return Err(Ended::Gap);
        }
        if end.revision == *at {
            self.current(looked_at).await?;
        }
        Ok((end.revision, looked_at, expired >= EXPIRED_AT_ONCE))
    }

    /// Tells that it has everything there was when it looked.
    async fn current(&mut self, looked_at: Instant) -> Result<(), Ended> {
        self.pause.reset();
        self.send(Event::Current(self.at.0, looked_at.into_std()))
            .await
    }

    async fn expire(&self) -> RedisResult<u64> {
        let token = super::token().map_err(|error| {
            RedisError::from((ErrorKind::Client, "no token", error.to_string()))
        })?;
        let mut call = self.inner.expire.prepare_invoke();
        let names = || self.buckets.iter().map(|bucket| &**bucket);
        self.inner.begin(&mut call, &token, names());
        call.arg(EXPIRED_AT_ONCE);
        for name in names() {
            call.arg(name);
        }
        let mut redis = self.connection.redis.clone();
        call.invoke_async(&mut redis).await
    }

    /// The next transactions, or none if there are none until then.
    async fn read(&self, until: Instant) -> RedisResult<Vec<Logged>> {
        let block = super::millis(until.saturating_duration_since(Instant::now()));
        let mut command = ::redis::cmd("XREAD");
        command.arg("COUNT").arg(PIECE_TRANSACTIONS);
        // 0 would be for ever.
        command.arg("BLOCK").arg(block.max(1));
        command
            .arg("STREAMS")
            .arg(&self.inner.keys.log)
            .arg(format!("{}-0", self.at.0));
        let mut redis = self.connection.redis.clone();
        let answer: Value = command.query_async(&mut redis).await?;
        match record::only_stream(&answer) {
            None => Ok(Vec::new()),
            Some(entries) => record::transactions(entries).ok_or_else(|| foreign(self.inner)),
        }
    }

    async fn tell(&mut self, logged: Logged) -> Result<(), Ended> {
        let (at, token) = &*self.at;
        if logged.revision.0 != at.0 + 1 || logged.before != *token {
            return Err(Ended::Gap);
        }
        let revision = logged.revision;
        let mut changes = logged.changes;
        changes.retain(|change| self.buckets.contains(&change.bucket));
        *self.at = (revision, logged.token.clone());
        self.inner.positions.add(revision, logged.token);
        self.send(if changes.is_empty() {
            Event::Passed(revision)
        } else {
            Event::Changes {
                revision,
                changes,
                author: logged.author,
            }
        })
        .await
    }

    async fn send(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended::Left)
    }

    fn lost(&self, error: &RedisError) -> Ended {
        Ended::Lost(shown(&self.connection.address, error))
    }
}
