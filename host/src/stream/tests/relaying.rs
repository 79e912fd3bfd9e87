//! Bytes: both ways, half-closed, held back, cut off.

use super::super::entry::Progress;
use super::super::table::SCRATCH_BYTES;
use super::super::token::Side;
use super::*;
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::ErrorKind;

#[test]
fn bytes_go_both_ways_and_are_counted() {
    on_worker(Config::default(), |mut worker| async move {
        let mut ends = worker.open().await;
        for round in 0..100_u32 {
            send(&mut ends.client, &round.to_be_bytes()).await;
            expect(&mut ends.endpoint, &round.to_be_bytes()).await;
            send(&mut ends.endpoint, b"to you").await;
            expect(&mut ends.client, b"to you").await;
        }
        let listed = worker.streams.list(&StreamFilter::default(), 10);
        assert_eq!((listed[0].bytes_up, listed[0].bytes_down), (400, 600));
        drop(ends.client);
        expect_end(&mut ends.endpoint).await;
        drop(ends.endpoint);
        let closed = Closed {
            id: ends.id,
            bytes_up: 400,
            bytes_down: 600,
            reason: CloseReason::ClientClosed,
        };
        assert_eq!(worker.next_closed().await, closed);
        assert_eq!(worker.counted(|of| &of.stream_bytes_up), 400);
        assert_eq!(worker.counted(|of| &of.stream_bytes_down), 600);
    });
}

#[test]
fn what_was_read_ahead_is_sent_first() {
    on_worker(Config::default(), |worker| async move {
        let mut ends = worker
            .open_as(|new| {
                new.downstream_read_ahead = Bytes::from_static(b"early ");
                new.upstream_read_ahead = Bytes::from_static(b"welcome ");
            })
            .await;
        send(&mut ends.client, b"later").await;
        send(&mut ends.endpoint, b"friend").await;
        expect(&mut ends.endpoint, b"early later").await;
        expect(&mut ends.client, b"welcome friend").await;
    });
}

#[test]
fn half_close_is_relayed_and_the_other_way_stays_open() {
    for client_first in [true, false] {
        on_worker(Config::default(), |mut worker| async move {
            let ends = worker.open().await;
            let (mut first, mut second, reason) = if client_first {
                (ends.client, ends.endpoint, CloseReason::ClientClosed)
            } else {
                (ends.endpoint, ends.client, CloseReason::UpstreamClosed)
            };
            send(&mut first, b"last words").await;
            first.shutdown().await.expect("shut");
            expect(&mut second, b"last words").await;
            expect_end(&mut second).await;
            for _ in 0..3 {
                send(&mut second, b"still talking").await;
                expect(&mut first, b"still talking").await;
            }
            assert_eq!(worker.streams.len(), 1);
            second.shutdown().await.expect("shut");
            expect_end(&mut first).await;
            assert_eq!(worker.next_closed().await.reason, reason);
        });
    }
}

/// Bytes that tell where they stand.
fn pattern() -> Vec<u8> {
    (0..65_521_u32).map(|at| (at ^ at >> 8) as u8).collect()
}

#[test]
fn a_peer_that_does_not_read_holds_its_sender_back_at_the_price_of_one_buffer() {
    const TOTAL: usize = 32 << 20;
    on_worker(Config::default(), |mut worker| async move {
        let mut ends = worker
            .open_as(|new| {
                for socket in [&new.downstream, &new.upstream] {
                    small_buffers(&socket2::SockRef::from(socket));
                }
            })
            .await;
        for socket in [&ends.client, &ends.endpoint] {
            small_buffers(&socket2::SockRef::from(socket));
        }
        let pattern = pattern();
        let mut sent = 0;
        // Until the stream keeps a leftover, so reads no more, and the kernel takes no more from the sender either.
        loop {
            let at = sent % pattern.len();
            match ends.endpoint.try_write(&pattern[at..]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if leftover_bytes(&worker) > 0 {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(leftover_bytes(&worker) <= SCRATCH_BYTES);
        assert!(sent < 4 << 20, "{sent} bytes are on their way");
        // The other way is not held back.
        send(&mut ends.client, b"up").await;
        expect(&mut ends.endpoint, b"up").await;

        let (mut client, _still_open) = ends.client.split();
        let sending = async {
            while sent < TOTAL {
                let at = sent % pattern.len();
                let end = pattern.len().min(at + TOTAL - sent);
                sent += ends.endpoint.write(&pattern[at..end]).await.expect("sent");
                assert!(leftover_bytes(&worker) <= SCRATCH_BYTES);
            }
            ends.endpoint.shutdown().await.expect("shut");
        };
        let reading = async {
            let mut received = 0;
            let mut chunk = vec![0; 50_000];
            loop {
                let read = client.read(&mut chunk).await.expect("received");
                if read == 0 {
                    return received;
                }
                for byte in &chunk[..read] {
                    assert_eq!(*byte, pattern[received % pattern.len()], "at {received}");
                    received += 1;
                }
            }
        };
        let ((), received) = tokio::join!(sending, reading);
        assert_eq!(received, TOTAL);
        assert_eq!(leftover_bytes(&worker), 0);
        drop(ends.client);
        let closed = worker.next_closed().await;
        assert_eq!((closed.bytes_up, closed.bytes_down), (2, TOTAL as u64));
    });
}

fn small_buffers(socket: &socket2::SockRef<'_>) {
    socket.set_send_buffer_size(64 << 10).expect("an option");
    socket.set_recv_buffer_size(64 << 10).expect("an option");
}

fn leftover_bytes(worker: &Worker) -> usize {
    let table = worker.streams.table.borrow();
    table
        .entries
        .iter()
        .map(|(_, entry)| entry.leftover_bytes())
        .sum()
}

#[test]
fn many_streams_at_once_lose_nothing() {
    on_worker(Config::default(), |worker| async move {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..100_u8 {
            let mut ends = worker.open().await;
            tasks.spawn(async move {
                let message = vec![number; 1 + usize::from(number) * 700];
                for _ in 0..30 {
                    let (mut from, mut to) = (&mut ends.client, &mut ends.endpoint);
                    for _ in 0..2 {
                        tokio::join!(send(from, &message), expect(to, &message));
                        (from, to) = (to, from);
                    }
                }
                // In one piece with the end, which must not be forgotten after the bytes before it.
                send(&mut ends.client, &message).await;
                ends.client.shutdown().await.expect("shut");
                expect(&mut ends.endpoint, &message).await;
                expect_end(&mut ends.endpoint).await;
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("nothing lost");
        }
        worker.streams.drained().await;
    });
}

#[test]
fn more_events_than_one_batch_holds_are_all_handled() {
    on_worker(Config::default(), |worker| async move {
        let mut all = Vec::new();
        for _ in 0..200 {
            all.push(worker.open().await);
        }
        // All at once: the relay gets its turn at the first await.
        for ends in &mut all {
            assert_eq!(ends.client.try_write(b"x").expect("sent"), 1);
        }
        for ends in &mut all {
            expect(&mut ends.endpoint, b"x").await;
        }
    });
}

#[test]
fn a_stream_with_much_to_say_lets_others_have_their_turn() {
    on_worker(Config::default(), |_| async {
        // Nothing relays here but the calls below.
        let worker = Worker::new(Config::default());
        let mut near = None;
        let mut ends = worker
            .open_as(|new| near = Some(new.upstream.try_clone().expect("a descriptor")))
            .await;
        let near = near.expect("the upstream socket");
        send(&mut ends.endpoint, &[7; 100]).await;
        let mut readable = [PollFd::new(&near, PollFlags::IN)];
        poll(&mut readable, None).expect("readable");
        let turn = || {
            let mut table = worker.streams.table.borrow_mut();
            let scratch = &mut [0; 16];
            table.entries[0].handle(Side::Upstream, EventFlags::IN, scratch, 0)
        };
        assert_eq!(turn(), Progress::More);
        expect(&mut ends.client, &[7; 64]).await;
        assert_eq!(turn(), Progress::Idle);
        expect(&mut ends.client, &[7; 36]).await;
    });
}

#[test]
fn a_reset_ends_the_stream() {
    for client_first in [true, false] {
        on_worker(Config::default(), |mut worker| async move {
            let ends = worker.open().await;
            let (first, mut second) = if client_first {
                (ends.client, ends.endpoint)
            } else {
                (ends.endpoint, ends.client)
            };
            reset(first);
            expect_end(&mut second).await;
            assert_eq!(worker.next_closed().await.reason, CloseReason::Error);
        });
    }
}

#[test]
fn a_reset_after_a_half_close_ends_the_stream() {
    on_worker(Config::default(), |mut worker| async move {
        let mut ends = worker.open().await;
        ends.client.shutdown().await.expect("shut");
        expect_end(&mut ends.endpoint).await;
        reset(ends.client);
        assert_eq!(worker.next_closed().await.reason, CloseReason::ClientClosed);
        expect_end(&mut ends.endpoint).await;
    });
}

#[test]
fn a_held_back_sender_that_resets_ends_the_stream() {
    on_worker(Config::default(), |mut worker| async move {
        let ends = worker.open().await;
        let block = vec![0; 1 << 20];
        while leftover_bytes(&worker) == 0 {
            let _full = ends.endpoint.try_write(&block);
            tokio::task::yield_now().await;
        }
        reset(ends.endpoint);
        assert_eq!(worker.next_closed().await.reason, CloseReason::Error);
        assert!(worker.streams.is_empty());
    });
}
