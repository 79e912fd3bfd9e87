//! What is plainly framed passes, however it is cut; what is not is refused with its status.

use super::*;

const LIMITS: HeadLimits = HeadLimits {
    bytes_max: 4096,
    fields_max: 20,
    target_bytes_max: 1024,
};

/// Feeds the bytes whole, and again cut at every place: the outcome must be the same.
fn feed(bytes: &[u8]) -> Result<Place, Violation> {
    let run = |parts: &[&[u8]]| {
        let mut framing = Framing::new(LIMITS);
        parts
            .iter()
            .try_for_each(|part| framing.feed(part))
            .map(|()| framing.place())
    };
    let whole = run(&[bytes]);
    for cut in 0..bytes.len() {
        assert_eq!(run(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(run(&single), whole, "byte by byte");
    whole
}

fn status(bytes: &[u8]) -> u16 {
    feed(bytes).expect_err("refused").status
}

#[test]
fn whole_messages_end_between() {
    for message in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.0\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\ncontent-LENGTH:0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nt: v\r\n\r\n",
    ] {
        assert_eq!(feed(message.as_bytes()), Ok(Place::Between), "{message:?}");
    }
}

#[test]
fn ambiguous_framing_is_refused() {
    let head =
        |fields: &str| status(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").as_bytes());
    assert_eq!(head("Content-Length: 5\r\nTransfer-Encoding: chunked"), 400);
    assert_eq!(head("Transfer-Encoding: chunked\r\nContent-Length: 5"), 400);
    assert_eq!(head("Content-Length: 5\r\nContent-Length: 5"), 400);
    assert_eq!(head("Content-Length: 5, 5"), 400);
    assert_eq!(head("Content-Length: +5"), 400);
    assert_eq!(head("Content-Length: 0x5"), 400);
    assert_eq!(head("Content-Length:"), 400);
    assert_eq!(head("Content-Length: 99999999999999999999"), 400);
    assert_eq!(head("Transfer-Encoding: gzip, chunked"), 501);
    assert_eq!(head("Transfer-Encoding: identity"), 501);
    assert_eq!(
        head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        400
    );
    assert_eq!(head("X: a\r\n folded"), 400);
    assert_eq!(head("X: a\n\r\n"), 400);
    assert_eq!(
        status(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        400
    );
}

#[test]
fn bad_chunks_are_refused() {
    let body = |chunks: &str| {
        status(format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").as_bytes())
    };
    assert_eq!(body("3\nabc\r\n"), 400);
    assert_eq!(body("3\r\nabcd\r\n"), 400);
    assert_eq!(body("0x3\r\nabc\r\n"), 400);
    assert_eq!(body(" 3\r\nabc\r\n"), 400);
    assert_eq!(body("-1\r\n"), 400);
    assert_eq!(body("fffffffffffffffff\r\n"), 400);
    assert_eq!(body("ffffffffffffffff\r\n"), 400);
    assert_eq!(
        body(&format!("1;{}\r\n", "x".repeat(CHUNK_EXTENSION_BYTES_MAX))),
        400
    );
    assert_eq!(
        body(&format!(
            "0\r\n{}\r\n",
            "t: v\r\n".repeat(TRAILER_FIELDS_MAX + 1)
        )),
        431
    );
}

#[test]
fn any_number_of_plain_chunks_is_fine() {
    let mut framing = Framing::new(LIMITS);
    framing
        .feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        .expect("head");
    for _ in 0..CHUNK_EXTENSION_BYTES_MAX {
        framing.feed(b"1\r\nx\r\n").expect("chunk");
    }
    assert_eq!(framing.place(), Place::Body);
}

#[test]
fn large_heads_and_odd_versions_are_refused() {
    assert_eq!(
        status(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1030)).as_bytes()),
        414
    );
    assert_eq!(status(format!("GET /{}", "a".repeat(2000)).as_bytes()), 414);
    assert_eq!(
        status(format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(5000)).as_bytes()),
        431
    );
    assert_eq!(
        status(format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(21)).as_bytes()),
        431
    );
    assert_eq!(status(b"GET / HTTP/2.0\r\n\r\n"), 505);
    assert_eq!(status(b"GET /\r\n\r\n"), 400);
    assert_eq!(status(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"), 400);
}

#[test]
fn after_a_request_to_upgrade_nothing_is_http_until_it_was_refused() {
    let ask = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(feed(ask), Ok(Place::Raw));
    let mut framing = Framing::new(LIMITS);
    framing.feed(ask).expect("head");
    framing.not_upgraded().expect("nothing was sent");
    assert_eq!(framing.place(), Place::Between);
    framing.feed(ask).expect("head");
    framing.feed(b"\x81\x00").expect("not looked at");
    assert_eq!(framing.not_upgraded().map_err(|v| v.status), Err(400));
}
