//! The table: ids, labels, lists, bounds, slots used again.

use super::super::entry::Progress;
use super::super::token::{Side, Token};
use super::*;
use rustix::event::epoll::EventFlags;
use std::cell::Cell;

#[test]
fn an_event_of_an_earlier_stream_in_the_slot_is_ignored() {
    on_worker(Config::default(), |mut worker| async move {
        let first = worker.open().await;
        let stale = Token::of(0, first.id, Side::Upstream);
        drop((first.client, first.endpoint));
        worker.next_closed().await;
        let mut second = worker.open().await;
        second.endpoint.shutdown().await.expect("shut");
        expect_end(&mut second.client).await;
        // What a failure looks like on a side that has ended and waits for nothing.
        let flags = EventFlags::ERR | EventFlags::HUP;
        assert_eq!(worker.streams.event(stale, flags), Progress::Idle);
        send(&mut second.client, b"alive").await;
        expect(&mut second.endpoint, b"alive").await;
        // Of the stream itself it would have been believed, so it was the token that told them apart.
        let current = Token::of(0, second.id, Side::Upstream);
        let ended = Progress::Ended(CloseReason::UpstreamClosed);
        assert_eq!(worker.streams.event(current, flags), ended);
        assert_eq!(worker.next_closed().await.id, second.id);
        assert_eq!(worker.streams.event(current, flags), Progress::Idle);
    });
}

#[test]
fn a_thousand_streams_leave_nothing() {
    on_worker(Config::default(), |mut worker| async move {
        let label = label("by-header", "abcdef0123456789", 1);
        let calls = Rc::new(Cell::new(0));
        for _ in 0..20 {
            let mut batch = Vec::new();
            for _ in 0..50 {
                let (label, calls) = (label.clone(), calls.clone());
                let ends = worker.open_as(|new| {
                    new.label = Some(label);
                    new.on_close = Some(Box::new(move || calls.set(calls.get() + 1)));
                });
                batch.push(ends.await);
            }
            assert_eq!(label.streams.load(Ordering::Relaxed), 50);
            for (at, mut ends) in batch.into_iter().enumerate() {
                match at % 4 {
                    0 => drop(ends),
                    1 => reset(ends.client),
                    2 => assert!(worker.streams.close(ends.id, 1000, "")),
                    _ => {
                        send(&mut ends.client, b"bye").await;
                        expect(&mut ends.endpoint, b"bye").await;
                    }
                }
            }
            worker.streams.drained().await;
        }
        for _ in 0..1_000 {
            worker.next_closed().await;
        }
        assert!(worker.closed.try_recv().is_err(), "one end for each");
        assert_eq!(worker.opened.borrow().len(), 1_000);
        assert_eq!(calls.get(), 1_000);
        assert_eq!(label.streams.load(Ordering::Relaxed), 0);
        assert_eq!(Arc::strong_count(&label), 1);
        assert_eq!(worker.counted(|of| &of.streams_opened), 1_000);
        assert_eq!(worker.counted(|of| &of.streams_closed), 1_000);
        assert_eq!(worker.streams.table.borrow().entries.capacity(), 0);
    });
}

#[test]
fn streams_over_the_bound_are_refused_and_not_counted() {
    let config = Config {
        streams_max: 1,
        ..Config::default()
    };
    on_worker(config, |worker| async move {
        assert!(!worker.streams.is_full());
        let _first = worker.open().await;
        assert!(worker.streams.is_full());
        let label = label("by-header", "abcdef0123456789", 1);
        let called = Rc::new(Cell::new(false));
        let (mut client, downstream) = connection().await;
        let (mut endpoint, upstream) = connection().await;
        let mut new = new_stream(downstream, upstream);
        new.label = Some(label.clone());
        new.on_close = Some(Box::new({
            let called = called.clone();
            move || called.set(true)
        }));
        let refused = worker.streams.open(new).expect_err("no room");
        let message = "worker 3 has 1 streams, as many as streams.streams_max allows";
        assert_eq!(refused.to_string(), message);
        assert!(called.get());
        expect_end(&mut client).await;
        expect_end(&mut endpoint).await;
        assert_eq!(label.streams.load(Ordering::Relaxed), 0);
        assert_eq!(worker.counted(|of| &of.streams_opened), 1);
        worker.streams.configure(Config::default());
        assert!(!worker.streams.is_full());
    });
}

#[test]
fn lists_are_filtered_and_oldest_first() {
    on_worker(Config::default(), |mut worker| async move {
        let one = label("by-header", "aaaa00001111222233", 7);
        let two = label("by-header", "bbbb00001111222233", 8);
        let first = worker.open_as(|new| new.label = Some(one.clone())).await;
        let second = worker
            .open_as(|new| {
                new.label = Some(two.clone());
                new.key = Some("id1".into());
            })
            .await;
        drop((first.client, first.endpoint));
        worker.next_closed().await;
        // Takes the first one's slot, and is the youngest all the same.
        let third = worker
            .open_as(|new| {
                new.label = Some(one.clone());
                new.key = Some("id1".into());
                new.route = "feed".into();
            })
            .await;
        let ids = |filter: StreamFilter, limit| -> Vec<StreamId> {
            let listed = worker.streams.list(&filter, limit);
            listed.iter().map(|stream| stream.id).collect()
        };
        let filter = StreamFilter::default;
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(ids(filter(), 10), [second.id, third.id]);
        assert_eq!(ids(filter(), 1), [second.id]);
        let key = text("id1");
        assert_eq!(ids(StreamFilter { key, ..filter() }, 10).len(), 2);
        let version = text("aaaa");
        assert_eq!(
            ids(
                StreamFilter {
                    version,
                    ..filter()
                },
                10
            ),
            [third.id]
        );
        let route = text("chat");
        assert_eq!(ids(StreamFilter { route, ..filter() }, 10), [second.id]);
        let plugin = text("by-path");
        assert!(ids(StreamFilter { plugin, ..filter() }, 10).is_empty());
        let (key, version) = (text("id1"), text("cc"));
        let neither = StreamFilter {
            key,
            version,
            ..filter()
        };
        assert!(ids(neither, 10).is_empty());

        let listed = &worker.streams.list(&filter(), 1)[0];
        assert_eq!(listed.id.worker(), 3);
        assert_eq!(listed.plugin.as_deref(), Some("by-header"));
        assert_eq!(listed.version.as_deref(), Some("bbbb00001111222233"));
        assert_eq!(listed.generation, Some(8));
        assert_eq!(
            listed.client,
            second.client.local_addr().expect("its address")
        );
        assert_eq!(
            listed.endpoint,
            second.endpoint.local_addr().expect("its address").into()
        );
        assert!(listed.started_ms > 1_600_000_000_000);
    });
}

#[test]
fn dropping_the_table_closes_and_reports_its_streams() {
    on_worker(Config::default(), |_| async {
        // Not relayed by anyone, so nobody else holds its table.
        let mut worker = Worker::new(Config::default());
        let label = label("by-header", "abcdef0123456789", 1);
        let mut ends = worker.open_as(|new| new.label = Some(label.clone())).await;
        let Worker {
            streams, closed, ..
        } = &mut worker;
        let streams = std::mem::replace(streams, Worker::new(Config::default()).streams);
        assert_eq!(Rc::strong_count(&streams), 1);
        drop(streams);
        let reason = closed.recv().await.map(|closed| closed.reason);
        assert_eq!(reason, Some(CloseReason::Shutdown));
        expect_end(&mut ends.client).await;
        assert_eq!(label.streams.load(Ordering::Relaxed), 0);
    });
}
