//! Pings of our own: where they go, whose pongs pass, and that they are no activity.

use super::super::frame::samples::{client_frame, server_frame};
use super::super::frame::{apply_mask, close_frame};
use super::*;

/// After every interval of these tests, and before twice of it.
const LATER: Duration = Duration::from_millis(1_200);

fn pinging() -> Config {
    Config {
        times: Times {
            ping_client: Some(Duration::from_secs(1)),
            ping_upstream: Some(Duration::from_secs(1)),
            ..Times::default()
        },
        ..Config::default()
    }
}

/// The payload of the ping that the client gets next.
async fn client_ping(ends: &mut Ends) -> [u8; 8] {
    let mut ping = [0; 10];
    ends.client.read_exact(&mut ping).await.expect("a ping");
    assert_eq!(ping[..2], [0x89, 8]);
    ping[2..].try_into().expect("eight bytes")
}

/// The payload of the ping that the endpoint gets next.
async fn endpoint_ping(ends: &mut Ends) -> [u8; 8] {
    let mut ping = [0; 14];
    ends.endpoint.read_exact(&mut ping).await.expect("a ping");
    assert_eq!(ping[..2], [0x89, 0x88]);
    let mask = ping[2..6].try_into().expect("four bytes");
    apply_mask(&mut ping[6..], mask, 0);
    ping[6..].try_into().expect("eight bytes")
}

/// Has bytes go both ways, so that whatever was sent before has arrived.
async fn echo(ends: &mut Ends) {
    send(&mut ends.client, &client_frame(0x81, b"up")).await;
    expect(&mut ends.endpoint, &client_frame(0x81, b"up")).await;
    send(&mut ends.endpoint, &server_frame(0x81, b"down")).await;
    expect(&mut ends.client, &server_frame(0x81, b"down")).await;
}

#[test]
fn both_ends_get_pings_and_only_our_own_pongs_end_here() {
    on_worker(pinging(), |worker| async move {
        let start = Instant::now();
        let mut ends = worker.open().await;
        worker.streams.sweep(start + LATER);
        let mark = client_ping(&mut ends).await;
        assert_eq!(endpoint_ping(&mut ends).await, mark);
        assert_eq!(worker.counted(|of| &of.stream_pings), 2);
        // Ours, byte by byte and in one piece with others.
        for byte in client_frame(0x8a, &mark) {
            send(&mut ends.client, &[byte]).await;
        }
        let mut mixed = client_frame(0x8a, &mark);
        mixed.extend(client_frame(0x8a, b"another's"));
        mixed.extend(client_frame(0x8a, &mark));
        mixed.extend(client_frame(0x8a, &[mark[0], 0, 0, 0, 0, 0, 0, 0]));
        send(&mut ends.client, &mixed).await;
        expect(&mut ends.endpoint, &client_frame(0x8a, b"another's")).await;
        let almost = client_frame(0x8a, &[mark[0], 0, 0, 0, 0, 0, 0, 0]);
        expect(&mut ends.endpoint, &almost).await;
        let mut mixed = server_frame(0x8a, &mark);
        mixed.extend(server_frame(0x8a, b""));
        send(&mut ends.endpoint, &mixed).await;
        expect(&mut ends.client, &server_frame(0x8a, b"")).await;
        echo(&mut ends).await;
        let [up, down] = worker.bytes();
        assert_eq!(
            (up, down),
            (15 + 14 + 8, 2 + 6),
            "pongs of ours are not counted"
        );
    });
}

#[test]
fn a_ping_goes_between_two_frames_and_never_into_one() {
    on_worker(pinging(), |worker| async move {
        let start = Instant::now();
        let mut ends = worker.open().await;
        // A message in two fragments, cut inside the first one.
        let (first, second) = (
            server_frame(0x02, &[7; 70_000]),
            server_frame(0x80, &[8; 500]),
        );
        send(&mut ends.endpoint, &first[..300]).await;
        expect(&mut ends.client, &first[..300]).await;
        worker.streams.sweep(start + LATER);
        // The other way was at a frame's end.
        endpoint_ping(&mut ends).await;
        assert_eq!(worker.counted(|of| &of.stream_pings), 1);
        let mut rest = first[300..].to_vec();
        rest.extend(&second);
        send(&mut ends.endpoint, &rest).await;
        expect(&mut ends.client, &first[300..]).await;
        client_ping(&mut ends).await;
        expect(&mut ends.client, &second).await;
        assert_eq!(worker.counted(|of| &of.stream_pings), 2);
    });
}

#[test]
fn pings_do_not_keep_an_idle_stream_open() {
    let config = Config {
        times: Times {
            idle_timeout: Some(Duration::from_secs(3)),
            ..pinging().times
        },
        ..Config::default()
    };
    on_worker(config, |mut worker| async move {
        let start = Instant::now();
        let mut ends = worker.open().await;
        for second in 1..=2 {
            worker.streams.sweep(start + LATER * second);
            let mark = client_ping(&mut ends).await;
            endpoint_ping(&mut ends).await;
            send(&mut ends.client, &client_frame(0x8a, &mark)).await;
            // The pong is read at the latest when a byte of another stream, sent after it, is.
            let mut other = worker.open().await;
            send(&mut other.client, b"x").await;
            expect(&mut other.endpoint, b"x").await;
            reset(other.client);
            worker.next_closed().await;
        }
        worker.streams.sweep(start + Duration::from_millis(3_300));
        expect(&mut ends.client, &close_frame(1001, "idle timeout", None)).await;
        drop(ends);
        assert_eq!(worker.next_closed().await.reason, CloseReason::IdleTimeout);
    });
}

#[test]
fn after_a_close_frame_or_a_half_close_there_are_no_pings() {
    on_worker(pinging(), |worker| async move {
        let start = Instant::now();
        let mut ends = worker.open().await;
        let close = client_frame(0x88, &[0x03, 0xe8]);
        send(&mut ends.client, &close).await;
        expect(&mut ends.endpoint, &close).await;
        let mut half = worker.open().await;
        half.endpoint.shutdown().await.expect("shut");
        expect_end(&mut half.client).await;
        worker.streams.sweep(start + LATER);
        assert_eq!(worker.counted(|of| &of.stream_pings), 0);
        send(&mut ends.endpoint, &server_frame(0x88, &[0x03, 0xe8])).await;
        expect(&mut ends.client, &server_frame(0x88, &[0x03, 0xe8])).await;
    });
}

#[test]
fn what_looked_like_a_pong_of_ours_is_passed_on_when_its_end_comes() {
    on_worker(pinging(), |worker| async move {
        let mut ends = worker.open().await;
        send(&mut ends.client, &[0x8a, 0x88, 1, 2]).await;
        ends.client.shutdown().await.expect("shut");
        expect(&mut ends.endpoint, &[0x8a, 0x88, 1, 2]).await;
        expect_end(&mut ends.endpoint).await;
        drop(worker);
    });
}

#[test]
fn a_peer_that_takes_nothing_gets_its_ping_when_it_reads_again() {
    on_worker(pinging(), |worker| async move {
        let start = Instant::now();
        let mut ends = worker.open().await;
        // More than the sockets on the way hold, as one frame.
        let whole = server_frame(0x82, &vec![7; 16 << 20]);
        let mut endpoint = ends.endpoint;
        let length = whole.len();
        let sending = tokio::task::spawn_local(async move {
            send(&mut endpoint, &whole).await;
            send(&mut endpoint, &server_frame(0x81, b"next")).await;
            endpoint
        });
        while worker.leftover_bytes() == 0 {
            tokio::task::yield_now().await;
        }
        worker.streams.sweep(start + LATER);
        assert_eq!(worker.counted(|of| &of.stream_pings), 1, "the endpoint's");
        let mut received = vec![0; length];
        ends.client
            .read_exact(&mut received)
            .await
            .expect("received");
        ends.endpoint = sending.await.expect("sent");
        client_ping(&mut ends).await;
        expect(&mut ends.client, &server_frame(0x81, b"next")).await;
    });
}

#[test]
fn without_pings_pongs_are_like_any_frame() {
    on_worker(Config::default(), |worker| async move {
        let mut ends = worker.open().await;
        send(&mut ends.client, &[0x8a]).await;
        expect(&mut ends.endpoint, &[0x8a]).await;
        worker
            .streams
            .sweep(Instant::now() + Duration::from_secs(100_000));
        assert_eq!(worker.counted(|of| &of.stream_pings), 0);
    });
}
