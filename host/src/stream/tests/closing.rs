//! Ends that we bring about: close frames, timeouts, drains.

use super::super::frame::samples::{client_frame, server_frame};
use super::super::frame::{apply_mask, close_frame};
use super::*;

/// A second and more: every closing handshake is over then.
const LONG: Duration = Duration::from_secs(2);

/// Asserts that a masked close frame comes next.
async fn expect_masked_close(socket: &mut Socket, code: u16, reason: &str) {
    let plain = close_frame(code, reason, None);
    let mut received = vec![0; plain.len() + 4];
    socket.read_exact(&mut received).await.expect("received");
    assert_eq!(received[..2], [plain[0], plain[1] | 0x80]);
    let mask = received[2..6].try_into().expect("four bytes");
    let mut payload = received.split_off(6);
    apply_mask(&mut payload, mask, 0);
    assert_eq!(payload, plain[2..]);
}

#[test]
fn close_tells_both_ends_and_waits_for_their_answers() {
    on_worker(Config::default(), |mut worker| async move {
        let mut ends = worker.open().await;
        assert!(worker.streams.close(ends.id, 1001, "bye"));
        assert!(
            worker.streams.close(ends.id, 1002, "again"),
            "it is there still"
        );
        expect(&mut ends.client, &close_frame(1001, "bye", None)).await;
        expect_masked_close(&mut ends.endpoint, 1001, "bye").await;
        // Data after our close frame goes nowhere.
        send(&mut ends.client, &client_frame(0x81, b"too late")).await;
        send(&mut ends.client, &client_frame(0x88, &[0x03, 0xe9])).await;
        assert_eq!(worker.streams.len(), 1);
        send(&mut ends.endpoint, &server_frame(0x88, &[0x03, 0xe9])).await;
        expect_end(&mut ends.client).await;
        expect_end(&mut ends.endpoint).await;
        let closed = worker.next_closed().await;
        assert_eq!((closed.reason, closed.bytes_up), (CloseReason::Admin, 0));
        assert!(!worker.streams.close(ends.id, 1001, "bye"));
    });
}

#[test]
fn a_frame_under_way_is_finished_before_the_close_frame() {
    on_worker(Config::default(), |mut worker| async move {
        let mut ends = worker.open().await;
        let whole = server_frame(0x82, &[7; 1_000]);
        send(&mut ends.endpoint, &whole[..300]).await;
        expect(&mut ends.client, &whole[..300]).await;
        assert!(worker.streams.close(ends.id, 1012, "restart"));
        // The other way was at a frame's end.
        expect_masked_close(&mut ends.endpoint, 1012, "restart").await;
        send(&mut ends.endpoint, &whole[300..600]).await;
        expect(&mut ends.client, &whole[300..600]).await;
        let mut rest = whole[600..].to_vec();
        rest.extend(server_frame(0x81, b"never arrives"));
        rest.extend(server_frame(0x88, &[0x03, 0xf4]));
        send(&mut ends.endpoint, &rest).await;
        expect(&mut ends.client, &whole[600..]).await;
        expect(&mut ends.client, &close_frame(1012, "restart", None)).await;
        ends.client.shutdown().await.expect("shut");
        expect_end(&mut ends.client).await;
        let closed = worker.next_closed().await;
        assert_eq!(
            (closed.reason, closed.bytes_down),
            (CloseReason::Admin, 1_004)
        );
    });
}

#[test]
fn a_frame_that_never_ends_and_ends_that_never_answer_are_given_a_second() {
    on_worker(Config::default(), |mut worker| async move {
        let mut ends = worker.open().await;
        send(&mut ends.endpoint, &[0x82, 100, 1]).await;
        expect(&mut ends.client, &[0x82, 100, 1]).await;
        let now = Instant::now();
        worker.streams.sweep(now);
        worker.streams.close(ends.id, 1001, "");
        worker.streams.sweep(now + Duration::from_millis(800));
        assert_eq!(worker.streams.len(), 1);
        worker.streams.sweep(now + Duration::from_millis(1_200));
        assert!(worker.streams.is_empty());
        assert_eq!(worker.next_closed().await.reason, CloseReason::Admin);
        expect_end(&mut ends.client).await;
        expect_masked_close(&mut ends.endpoint, 1001, "").await;
        expect_end(&mut ends.endpoint).await;
    });
}

#[test]
fn an_end_that_had_a_close_frame_gets_no_second_one() {
    on_worker(Config::default(), |mut worker| async move {
        let mut ends = worker.open().await;
        let own = client_frame(0x88, &[0x03, 0xe8]);
        send(&mut ends.client, &own).await;
        expect(&mut ends.endpoint, &own).await;
        worker.streams.close(ends.id, 1001, "");
        expect(&mut ends.client, &close_frame(1001, "", None)).await;
        drop(ends.client);
        send(&mut ends.endpoint, &server_frame(0x88, &[0x03, 0xe8])).await;
        expect_end(&mut ends.endpoint).await;
        assert_eq!(worker.next_closed().await.reason, CloseReason::Admin);
    });
}

#[test]
fn an_idle_stream_is_closed_and_a_busy_one_is_not() {
    let config = Config {
        times: Times {
            idle_timeout: Some(Duration::from_secs(5)),
            ..Times::default()
        },
        ..Config::default()
    };
    on_worker(config, |mut worker| async move {
        let start = Instant::now();
        let mut idle = worker.open().await;
        let mut busy = worker.open().await;
        let mut patient = worker
            .open_as(|new| new.times.idle_timeout = Some(Duration::from_secs(60)))
            .await;
        worker.streams.sweep(start + Duration::from_secs(3));
        send(&mut busy.client, b"x").await;
        expect(&mut busy.endpoint, b"x").await;
        worker.streams.sweep(start + Duration::from_millis(4_900));
        assert_eq!(worker.streams.len(), 3);
        worker.streams.sweep(start + Duration::from_millis(5_300));
        expect(&mut idle.client, &close_frame(1001, "idle timeout", None)).await;
        expect_masked_close(&mut idle.endpoint, 1001, "idle timeout").await;
        worker
            .streams
            .sweep(start + Duration::from_millis(5_300) + LONG);
        let closed = worker.next_closed().await;
        assert_eq!(
            (closed.id, closed.reason),
            (idle.id, CloseReason::IdleTimeout)
        );
        for ends in [&mut busy, &mut patient] {
            send(&mut ends.client, b"y").await;
            expect(&mut ends.endpoint, b"y").await;
        }
        assert_eq!(worker.streams.len(), 2);
    });
}

#[test]
fn a_stream_is_closed_at_its_age_however_busy() {
    let config = Config {
        age_jitter: 0.0,
        ..Config::default()
    };
    on_worker(config, |mut worker| async move {
        let start = Instant::now();
        let mut ends = worker
            .open_as(|new| new.times.age_max = Some(Duration::from_secs(3_600)))
            .await;
        worker.streams.sweep(start + Duration::from_secs(3_599));
        send(&mut ends.client, b"x").await;
        expect(&mut ends.endpoint, b"x").await;
        let late = start + Duration::from_secs(3_601);
        worker.streams.sweep(late);
        // The client's byte was no whole frame, so only it is told.
        expect(&mut ends.client, &close_frame(1001, "maximum age", None)).await;
        worker.streams.sweep(late + LONG);
        assert_eq!(worker.next_closed().await.reason, CloseReason::AgeMax);
    });
}

#[test]
fn streams_opened_together_do_not_grow_too_old_together() {
    let config = Config {
        times: Times {
            age_max: Some(Duration::from_secs(1_000)),
            ..Times::default()
        },
        age_jitter: 0.5,
        ..Config::default()
    };
    on_worker(config, |mut worker| async move {
        let start = Instant::now();
        let mut all = Vec::new();
        for _ in 0..100 {
            all.push(worker.open().await);
        }
        let mut left = vec![100];
        for second in [499, 625, 750, 875, 1_001] {
            let now = start + Duration::from_secs(second);
            worker.streams.sweep(now);
            worker.streams.sweep(now + LONG);
            left.push(worker.streams.len());
        }
        assert_eq!((left[1], left[5]), (100, 0), "{left:?}");
        for pair in left[1..].windows(2) {
            let ended = pair[0] - pair[1];
            assert!((10..=40).contains(&ended), "a quarter each: {left:?}");
        }
        for _ in 0..100 {
            assert_eq!(worker.next_closed().await.reason, CloseReason::AgeMax);
        }
    });
}

#[test]
fn close_all_ends_every_stream_and_drained_tells() {
    on_worker(Config::default(), |mut worker| async move {
        let mut all = Vec::new();
        for _ in 0..20 {
            all.push(worker.open().await);
        }
        let streams = worker.streams.clone();
        let drained = tokio::task::spawn_local(async move { streams.drained().await });
        tokio::task::yield_now().await;
        assert!(!drained.is_finished());
        worker.streams.close_all(1001, "going away");
        for ends in &mut all {
            expect(&mut ends.client, &close_frame(1001, "going away", None)).await;
            expect_masked_close(&mut ends.endpoint, 1001, "going away").await;
        }
        drop(all);
        drained.await.expect("drained");
        for _ in 0..20 {
            assert_eq!(worker.next_closed().await.reason, CloseReason::Shutdown);
        }
    });
}
