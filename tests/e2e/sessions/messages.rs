//! Messages of streams with sessions: shown whole, judged in order, bounded, whatever an end sends.

use super::{ACCEPT, ASK, ask, proxy, proxy_to, raw, silent};
use crate::harness::websocket;
use crate::harness::{TestUpstream, noise, soon};
use futures_util::SinkExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

#[tokio::test]
async fn every_verdict_is_carried_out_both_ways() {
    let (proxy, _upstream, mut closes) = proxy("").await;
    for way in ["", "down:"] {
        let mut socket = websocket::open(proxy.address, &[]).await;
        let order = |text: &str| Message::text(format!("{way}{text}"));
        socket.send(order("hello")).await;
        assert_eq!(socket.next().await, order("hello"));
        socket.send(order("replace another")).await;
        assert_eq!(socket.next().await, Message::text("another"));
        socket.send(order("drop")).await;
        socket.send(order("back hither")).await;
        // The echo sends back what was sent back to it.
        assert_eq!(socket.next().await, Message::text("hither"));
        let binary = Message::binary(&b"drop"[..]);
        socket.send(binary.clone()).await;
        assert_eq!(socket.next().await, binary);
        socket.send(order("close 4001")).await;
        assert_eq!(socket.close_code().await, Some(4001));
        assert_eq!(
            soon("the close upstream", closes.recv()).await,
            Some(Some(4001))
        );
    }
    let closed = proxy
        .access_line("the first end", |line| line["kind"] == "stream-close")
        .await;
    assert_eq!(
        (&closed["reason"], &closed["session"]),
        (&"plugin".into(), &"ok".into())
    );
}

#[tokio::test]
async fn control_frames_pass_and_either_end_may_close() {
    let (proxy, _upstream, mut closes) = proxy("").await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.send(Message::Ping("there?".into())).await;
    assert_eq!(socket.next().await, Message::Pong("there?".into()));
    socket.close().await;
    soon("the close upstream", closes.recv()).await;
    proxy.admin().streams_are(0).await;
}

#[tokio::test]
async fn messages_are_shown_whole_however_they_are_cut() {
    let (proxy, _upstream, _closes) = proxy("").await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    let pieces = ["repl", "ace a", "ll of it"];
    for (number, piece) in pieces.into_iter().enumerate() {
        let opcode = match number {
            0 => Data::Text,
            _ => Data::Continue,
        };
        let last = number + 1 == pieces.len();
        let frame = Frame::message(piece.as_bytes().to_vec(), OpCode::Data(opcode), last);
        let sent = socket.0.send(Message::Frame(frame));
        soon("a fragment sent", sent).await.expect("sent");
        if !last {
            socket.send(Message::Ping("between".into())).await;
            assert_eq!(socket.next().await, Message::Pong("between".into()));
        }
    }
    assert_eq!(socket.next().await, Message::text("all of it"));
    let large = Message::binary(noise(3, 1 << 20));
    socket.send(large.clone()).await;
    assert!(socket.next().await == large, "1 MiB came back whole");
    socket.send(Message::text("replace-many 1000000")).await;
    assert_eq!(socket.next().await.len(), 1_000_000);

    let mut raw = raw(&proxy, "").await;
    // A text of "who", masked with zeros, byte by byte.
    for byte in b"\x81\x83\0\0\0\0who" {
        raw.send([*byte]).await;
    }
    let answer = raw.exactly(2 + 5).await.expect("a frame");
    assert_eq!(answer, b"\x81\x05a 2 1");
}

/// A raw WebSocket, upgraded.
#[tokio::test]
async fn what_is_no_websocket_message_or_too_large_closes_the_stream() {
    let (upstream, mut closes) = websocket::echo().await;
    let proxy = proxy_to(&upstream, "", "message_bytes_max = \"1KiB\"").await;
    let text = |length: usize| {
        let mut frame = vec![0x81, 0xfe];
        frame.extend_from_slice(&(length as u16).to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.resize(8 + length, b'x');
        frame
    };
    let cases: [(Vec<u8>, u16); 6] = [
        (b"\xc1\x81\0\0\0\0x".to_vec(), 1002),
        (b"\x81\x01x".to_vec(), 1002),
        (b"\x80\x81\0\0\0\0x".to_vec(), 1002),
        (b"\x83\x81\0\0\0\0x".to_vec(), 1002),
        (b"\x81\x81\0\0\0\0\xff".to_vec(), 1007),
        (text(1025), 1009),
    ];
    for (frame, code) in cases {
        let mut client = raw(&proxy, "").await;
        client.send(&frame).await;
        let close = client.exactly(4).await.expect("a close frame");
        assert_eq!(close[0], 0x88, "{frame:x?}");
        assert_eq!(u16::from_be_bytes([close[2], close[3]]), code, "{frame:x?}");
        drop(client);
        assert_eq!(
            soon("the close upstream", closes.recv()).await,
            Some(Some(code))
        );
    }
    let mut client = raw(&proxy, "").await;
    client.send(text(1024)).await;
    assert_eq!(
        client.exactly(4).await.expect("the echo"),
        b"\x81\x7e\x04\0"
    );
    proxy
        .access_line("the end", |line| line["reason"] == "bad-frames")
        .await;
}

#[tokio::test]
async fn compression_is_not_offered_for_streams_with_sessions() {
    let (seen, mut heads) = tokio::sync::mpsc::unbounded_channel();
    let upstream = TestUpstream::raw(move |mut stream, connection| {
        let seen = seen.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap_or(b'\n'));
            }
            let _ = seen.send(String::from_utf8_lossy(&head).to_lowercase());
            let accept = match connection {
                // One that accepts what it was not offered.
                2 => ACCEPT.replace(
                    "Connection:",
                    "Sec-WebSocket-Extensions: permessage-deflate\r\nConnection:",
                ),
                _ => ACCEPT.to_owned(),
            };
            let _ = stream.write_all(accept.as_bytes()).await;
            std::future::pending::<()>().await;
        }
    })
    .await;
    let proxy = proxy_to(&upstream, "", "").await;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let _hooked = raw(&proxy, offer).await;
    let head = soon("the head", heads.recv()).await.expect("a head");
    assert!(!head.contains("sec-websocket-extensions"), "{head}");
    let _plain = raw(&proxy, &format!("X-Plain: 1\r\n{offer}")).await;
    let head = soon("the head", heads.recv()).await.expect("a head");
    assert!(head.contains("permessage-deflate"), "{head}");
    let mut client = proxy.raw().await;
    let response = client.ask(format!("{ASK}{offer}\r\n")).await;
    assert_eq!(response.status, 502);
}

#[tokio::test]
async fn verdicts_that_make_much_of_little_cost_little_memory() {
    let upstream = silent().await;
    let proxy = proxy_to(&upstream, "", "").await;
    let mut client = raw(&proxy, "").await;
    let before = proxy.rss_kib();
    let order = b"replace-many 100000";
    let mut frame = vec![0x81, 0x80 | order.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(order);
    // Two gigabytes, if all of it were made at once; what the client sends for it, the kernel's buffers hold.
    client.send(frame.repeat(20_000)).await;
    // Another stream of the same worker gets its turn once the worker has looked at that.
    let (echo, _closes) = websocket::echo().await;
    let address = echo.address.to_string();
    let mut beside = websocket::open(proxy.address, &[("x-address", &address)]).await;
    ask(&mut beside, "who", "a 2 1").await;
    let grown = proxy.rss_kib().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB");
}

#[tokio::test]
async fn what_waits_for_an_end_is_judged_in_order_once_it_reads_again() {
    const MESSAGES: usize = 200;
    // A masked frame whose length takes eight bytes.
    const FRAME_BYTES: usize = 14 + 100_000;
    let (go, wait) = tokio::sync::watch::channel(false);
    let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let upstream = TestUpstream::raw(move |mut stream, _| {
        let (mut wait, told) = (wait.clone(), told.clone());
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap_or(b'\n'));
            }
            let _ = stream.write_all(ACCEPT.as_bytes()).await;
            let _ = wait.wait_for(|go| *go).await;
            let mut all = vec![0; MESSAGES * FRAME_BYTES + 6 + 3];
            let _ = stream.read_exact(&mut all).await;
            let _ = told.send(all);
        }
    })
    .await;
    let proxy = proxy_to(&upstream, "", "").await;
    let mut client = raw(&proxy, "").await;
    let order = b"\x81\x93\0\0\0\0replace-many 100000";
    client.send(order.repeat(MESSAGES)).await;
    client.send(b"\x81\x8b\0\0\0\0replace end").await;
    go.send_replace(true);
    let all = soon("all of it upstream", seen.recv())
        .await
        .expect("bytes");
    for (number, frame) in all.chunks(FRAME_BYTES).enumerate() {
        let expected: &[u8] = match number {
            MESSAGES => &[0x81, 0x83],
            _ => &[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0x86, 0xa0],
        };
        assert!(frame.starts_with(expected), "frame {number}");
    }
}
