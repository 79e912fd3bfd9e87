//! Streams of frames, cut anywhere.

use super::*;
use crate::stream::frame::samples::{client_frame, server_frame};
use proptest::prelude::*;

const MAX: usize = 70_000;
const FIN: u8 = 0x80;

/// What a part is, without what it was lent from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whole {
    Message(Kind, Vec<u8>, bool),
    Control(Vec<u8>),
    Close(Option<u16>),
}

fn own(part: &Part<'_>) -> Whole {
    match part {
        Part::Message { kind, payload, raw } => {
            Whole::Message(*kind, payload.to_vec(), raw.is_some())
        }
        Part::Control { raw } => Whole::Control(raw.to_vec()),
        Part::Close { code, .. } => Whole::Close(*code),
    }
}

/// Feeds pieces; what came out, and the violation that ended it.
fn feed(masked: bool, pieces: &[&[u8]]) -> (Vec<Whole>, Option<Violation>, Assembler) {
    let (mut assembler, mut plain, mut parts) = (Assembler::new(masked), Vec::new(), Vec::new());
    for piece in pieces {
        let mut input = *piece;
        loop {
            match assembler.next(&mut input, MAX, &mut plain) {
                Ok(Some(part)) => parts.push(own(&part)),
                Ok(None) => break,
                Err(violation) => return (parts, Some(violation), assembler),
            }
        }
        assert!(input.is_empty(), "all of it is taken");
    }
    (parts, None, assembler)
}

fn text(text: &str, one_frame: bool) -> Whole {
    Whole::Message(Kind::Text, text.as_bytes().to_vec(), one_frame)
}

/// Messages of each length class, in one frame and in fragments with a ping between, and a close frame.
fn conversation() -> (Vec<u8>, Vec<Whole>) {
    let large = vec![b'l'; 65_536];
    let ping = client_frame(FIN | opcode::PING, b"ping");
    let bytes = [
        client_frame(FIN | opcode::TEXT, b""),
        client_frame(FIN | opcode::TEXT, "grüße".as_bytes()),
        client_frame(FIN | opcode::BINARY, &[0xff; 126]),
        client_frame(opcode::TEXT, "zwei g".as_bytes()),
        ping.clone(),
        // Cut within a character.
        client_frame(opcode::CONTINUATION, &"rü".as_bytes()[..2]),
        client_frame(opcode::CONTINUATION, b""),
        client_frame(FIN | opcode::CONTINUATION, &"ü".as_bytes()[1..]),
        client_frame(FIN | opcode::BINARY, &large),
        client_frame(FIN | opcode::CLOSE, b"\x0f\xa1done"),
        client_frame(FIN | opcode::TEXT, b"too late"),
    ]
    .concat();
    let parts = vec![
        text("", true),
        text("grüße", true),
        Whole::Message(Kind::Binary, vec![0xff; 126], true),
        Whole::Control(ping),
        text("zwei grü", false),
        Whole::Message(Kind::Binary, large, true),
        Whole::Close(Some(4001)),
    ];
    (bytes, parts)
}

#[test]
fn messages_come_out_whole_and_in_order() {
    let (bytes, parts) = conversation();
    let (found, violation, _) = feed(true, &[&bytes]);
    assert_eq!((found, violation), (parts, None));
}

#[test]
fn messages_cut_anywhere_come_out_the_same() {
    let (bytes, parts) = conversation();
    for cut in (0..400).chain(bytes.len() - 200..bytes.len()) {
        let (found, violation, _) = feed(true, &[&bytes[..cut], &bytes[cut..]]);
        assert_eq!((found, violation), (parts.clone(), None), "cut at {cut}");
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(feed(true, &single).0, parts);
}

#[test]
fn nothing_is_kept_between_messages() {
    let bytes = [
        server_frame(opcode::TEXT, b"a"),
        server_frame(FIN | opcode::CONTINUATION, b"b"),
        server_frame(FIN | opcode::BINARY, &[0; 5_000]),
    ]
    .concat();
    let pieces: Vec<&[u8]> = bytes.chunks(7).collect();
    let (found, _, mut assembler) = feed(false, &pieces);
    assert_eq!(found.len(), 2);
    assembler.release();
    assert_eq!(assembler.partial.capacity(), 0);
    assert!(assembler.fragments.is_none());
}

#[test]
fn what_the_protocol_forbids_is_named() {
    let cases = [
        (client_frame(0xc1, b"x"), 1002, "reserved"),
        (client_frame(FIN | 3, b"x"), 1002, "opcode"),
        (client_frame(FIN | 11, b"x"), 1002, "opcode"),
        (server_frame(FIN | opcode::TEXT, b"x"), 1002, "not masked"),
        (client_frame(opcode::PING, b"x"), 1002, "control"),
        (
            client_frame(FIN | opcode::PING, &[b'x'; 126]),
            1002,
            "control",
        ),
        (client_frame(FIN, b"x"), 1002, "no message"),
        (
            [client_frame(opcode::TEXT, b"x"), client_frame(0x82, b"x")].concat(),
            1002,
            "within",
        ),
        (client_frame(FIN | opcode::TEXT, b"\xff"), 1007, "UTF-8"),
        (
            [client_frame(opcode::TEXT, b"\xc3"), client_frame(FIN, b"x")].concat(),
            1007,
            "UTF-8",
        ),
        (client_frame(FIN | opcode::CLOSE, b"x"), 1002, "half"),
        (
            client_frame(FIN | opcode::CLOSE, b"\x03\xed"),
            1002,
            "close code",
        ),
        (
            client_frame(FIN | opcode::CLOSE, b"\x03\xe8\xff"),
            1007,
            "UTF-8",
        ),
        (
            [
                client_frame(opcode::BINARY, &vec![0; MAX]),
                client_frame(FIN, b"x"),
            ]
            .concat(),
            1009,
            "large",
        ),
    ];
    for (bytes, code, reason) in cases {
        let violation = feed(true, &[&bytes]).1.expect(reason);
        assert_eq!(violation.code, code, "{violation:?}");
        assert!(violation.reason.contains(reason), "{violation:?}");
    }
    let masked = client_frame(FIN | opcode::TEXT, b"x");
    assert_eq!(feed(false, &[&masked]).1.expect("masked").code, 1002);
}

#[test]
fn a_frame_that_is_too_large_is_refused_by_its_header_alone() {
    let header = [0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let mask = [1, 2, 3, 4];
    let (_, violation, assembler) = feed(true, &[&header, &mask]);
    assert_eq!(violation, Some(TOO_LARGE));
    assert!(assembler.partial.len() <= 14);
}

#[test]
fn what_is_not_whole_is_given_up_so_that_the_rest_continues_it() {
    let bytes = [
        server_frame(opcode::TEXT, b"begun "),
        server_frame(FIN | opcode::CONTINUATION, b"and ended"),
    ]
    .concat();
    for cut in 1..bytes.len() {
        let (whole, _, mut assembler) = feed(false, &[&bytes[..cut]]);
        assert!(whole.is_empty());
        let mut out = Vec::new();
        assembler.give_up(&mut out).expect("no mask is needed");
        out.extend_from_slice(&bytes[cut..]);
        assert_eq!(feed(false, &[&out]).0, [text("begun and ended", false)]);
    }
}

proptest! {
    #[test]
    fn pieces_do_not_matter(cuts in proptest::collection::vec(0_usize..66_500, 0..12)) {
        let (bytes, parts) = conversation();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut at = 0;
        for cut in cuts {
            pieces.push(&bytes[at..cut]);
            at = cut;
        }
        pieces.push(&bytes[at..]);
        prop_assert_eq!(feed(true, &pieces).0, parts);
    }

    #[test]
    fn garbage_does_no_harm(garbage in proptest::collection::vec(any::<u8>(), 0..300), masked in any::<bool>()) {
        let single: Vec<&[u8]> = garbage.chunks(3).collect();
        let pieces = feed(masked, &single);
        let whole = feed(masked, &[&garbage]);
        prop_assert_eq!((pieces.0, pieces.1), (whole.0, whole.1));
    }
}
