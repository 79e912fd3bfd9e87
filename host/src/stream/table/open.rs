//! How a stream comes into the table.

use super::{Entry, Streams, add, slot, ticks, timeout_ticks};
use crate::stream::entry::{Followed, Keepalive, Label, Timeouts};
use crate::stream::hook::Hooked;
use crate::stream::{NewStream, Refused, StreamEvent, StreamId};
use bytes::Bytes;
use socket2::{Domain, Socket, TcpKeepalive};
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A silent peer is probed after this time: one that is gone for good would hold its stream for ever.
const KEEPALIVE: Duration = Duration::from_secs(60);

impl Streams {
    /// Begins to relay between two sockets.
    ///
    /// # Errors
    /// [`Refused`]; nothing was counted or logged then, and both sockets are closed.
    pub fn open(&self, mut new: NewStream) -> Result<StreamId, Refused> {
        let on_close = new.on_close.take();
        let opened = self.insert(new);
        match opened {
            Ok((id, index, read_ahead)) => {
                // Before the first bytes move, so that a stream that ends at once has its two events in order.
                self.table.borrow_mut().entries[index].set_on_close(on_close);
                (self.on_event)(StreamEvent::Opened(
                    self.table.borrow().entries[index].facts(),
                ));
                self.apply(index, |entry| entry.start(&read_ahead.0, &read_ahead.1));
                self.settle_lost();
                Ok(id)
            }
            Err(refused) => {
                if let Some(on_close) = on_close {
                    on_close();
                }
                Err(refused)
            }
        }
    }

    fn insert(&self, new: NewStream) -> Result<(StreamId, usize, (Bytes, Bytes)), Refused> {
        let config = self.config.borrow();
        let mut table = self.table.borrow_mut();
        if table.entries.len() >= config.streams_max {
            return Err(Refused::Full {
                worker: self.worker,
                max: config.streams_max,
            });
        }
        for socket in [&new.downstream, &new.upstream] {
            prepare(socket).map_err(Refused::Socket)?;
        }
        let opened = self.start.elapsed();
        let tick = ticks(opened).max(self.tick.get());
        self.tick.set(tick);
        let hooked = new.hook.map(|hook| {
            let interval = timeout_ticks(hook.tick);
            let buffers = Rc::clone(&self.buffers);
            let bytes_max = config.message_bytes_max;
            Box::new(Hooked::new(
                hook.session,
                buffers,
                bytes_max,
                interval,
                tick,
            ))
        });
        let id = StreamId((table.counter + 1) << 8 | self.worker as u64);
        let intervals = [new.times.ping_client, new.times.ping_upstream].map(timeout_ticks);
        let keepalive = Keepalive::new(intervals, id, tick).map_err(Refused::Socket)?;
        let age = timeout_ticks(new.times.age_max);
        let (followed, is_current) = match new.follow {
            Some(follow) => (Some(Followed::new(follow.entry)), Some(follow.is_current)),
            None => (None, None),
        };
        let mut entry = Entry::new(
            new.downstream,
            new.upstream,
            Label {
                id,
                route: new.route,
                label: new.label,
                key: new.key,
                client: new.client,
                endpoint: new.endpoint,
                upstream: new.upstream_name,
                opened,
                started_ms: unix_ms(),
                tick,
                timeouts: Timeouts {
                    idle: timeout_ticks(new.times.idle_timeout),
                    age: jittered(age, id, config.age_jitter),
                },
                keepalive,
                followed,
                hooked,
            },
        );
        let index = table.entries.vacant_key();
        entry
            .watch(self.epoll.get_ref().as_fd(), slot(index))
            .map_err(Refused::Socket)?;
        table.counter += 1;
        table.due = table.due.min(entry.due());
        if entry.tick_due() > 0 {
            table.session_ticks.insert((entry.tick_due(), index));
        }
        table.entries.insert(entry);
        if let Some(is_current) = is_current {
            self.begin_to_follow(&mut table, index);
            if table.entries[index]
                .follow()
                .is_some_and(|entry| !is_current(entry))
            {
                self.outdate(&mut table, index, id.fraction());
            }
        }
        add(&self.counted().streams_opened, 1);
        Ok((
            id,
            index,
            (new.downstream_read_ahead, new.upstream_read_ahead),
        ))
    }
}

/// Makes a socket fit for a long life of small messages.
fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // Of an endpoint by a Unix socket, or behind TLS.
    if socket.domain()? == Domain::UNIX {
        return Ok(());
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE / 4),
    )
}

/// An age in ticks, shortened by the stream's own part of `jitter`; 0 for none.
fn jittered(age: u32, id: StreamId, jitter: f64) -> u32 {
    // Between 0 and the age, by the bounds of `jitter`.
    let earlier = id.share((f64::from(age) * jitter) as u32);
    if age == 0 { 0 } else { (age - earlier).max(1) }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
