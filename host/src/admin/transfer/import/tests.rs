//! Imports as they are read, by themselves.

use super::*;
use crate::store::Deadline;
use http::{HeaderValue, header};

const BUCKET: BucketId = BucketId(3);

fn write(key: &str, value: &[u8]) -> Write {
    Write::put(BUCKET, key, value)
}

fn import(body: &[u8], format: Format) -> Result<Vec<Write>, Problem> {
    let mut whole = Intake::new(format, BUCKET, ValueKind::Bytes, None);
    whole.feed(body);
    whole.end();
    let whole = whole.batch();
    // However it is cut, it is read as the same.
    let mut cut = Intake::new(format, BUCKET, ValueKind::Bytes, None);
    for byte in body {
        cut.feed(&[*byte]);
    }
    cut.end();
    assert_eq!(cut.batch(), whole);
    whole.map(|(batch, _)| batch.writes)
}

#[test]
fn imports_are_read_as_lines_of_text_or_json() {
    let text = b"# the map\nid1 127.0.0.2\r\n\nid2\t  127.0.0.3";
    let json = b"{\"key\":\"id1\",\"value\":\"127.0.0.2\",\"revision\":4}\n{\"key\":\"id2\",\"value\":\"127.0.0.3\"}\n";
    let expected = [write("id1", b"127.0.0.2"), write("id2", b"127.0.0.3")];
    assert_eq!(import(text, Format::Text).unwrap(), expected);
    assert_eq!(import(json, Format::Json).unwrap(), expected);
}

#[test]
fn a_mark_of_the_byte_order_is_no_part_of_the_first_key() {
    let expected = [write("id1", b"a"), write("id2", b"b")];
    for (text, format) in [
        ("\u{feff}id1 a\nid2 b\n", Format::Text),
        ("\u{feff}\"key\",\"value\"\nid1,a\nid2,b\n", Format::Csv),
        (
            "\u{feff}{\"key\":\"id1\",\"value\":\"a\"}\n{\"key\":\"id2\",\"value\":\"b\"}",
            Format::Json,
        ),
    ] {
        assert_eq!(import(text.as_bytes(), format).unwrap(), expected, "{text}");
    }
    assert_eq!(
        import("\u{feff}# a\n".as_bytes(), Format::Text).unwrap(),
        []
    );
}

#[test]
fn a_bad_line_of_json_is_told_with_its_number_and_with_no_other() {
    let said = |line: &str| {
        let problem = import(line.as_bytes(), Format::Json).unwrap_err();
        problem.errors[0]["message"].as_str().unwrap().to_owned()
    };
    let unknown = said("{\"key\":\"a\",\"value\":\"b\",\"x\":1}");
    assert!(
        unknown.starts_with("unknown field `x`, expected one of"),
        "{unknown}"
    );
    assert!(unknown.ends_with('`'), "{unknown}");
    let ttl = said("{\"key\":\"a\",\"value\":\"b\",\"ttl\":\"30s\"}");
    assert!(ttl.ends_with("in `expires_at`"), "{ttl}");
    assert_eq!(said("  x"), "expected value at column 1");
}

#[test]
fn every_bad_line_is_told_with_its_number() {
    let problem = import(b"id1 a\nid2\n\n\xff b\nid3 c", Format::Text).unwrap_err();
    assert_eq!(problem.status, 422);
    assert_eq!(problem.detail, "2 bad line(s), nothing was imported");
    assert_eq!(problem.errors[0]["line"], 2);
    assert_eq!(
        problem.errors[1],
        json!({ "line": 4, "message": "not UTF-8" })
    );
}

#[test]
fn at_most_a_hundred_bad_lines_are_told_one_by_one() {
    let problem = import("x\n".repeat(250).as_bytes(), Format::Json).unwrap_err();
    assert_eq!(problem.errors.len(), ERRORS_MAX);
    assert!(problem.detail.starts_with("250 "));
}

#[test]
fn the_format_of_an_import_is_its_media_type() {
    let of = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
        Format::of(&headers).map_err(|problem| problem.status.as_u16())
    };
    assert_eq!(of("text/plain; charset=utf-8"), Ok(Format::Text));
    assert_eq!(of("Application/X-NDJSON"), Ok(Format::Json));
    assert_eq!(of("application/x-www-form-urlencoded"), Err(415));
}

#[test]
fn a_table_names_its_columns_and_may_quote_them() {
    let csv = b"\xef\xbb\xbfValue,note, KEY\r\n127.0.0.2,first,id1\r\n\"a, \"\"b\"\"\nc\",,id2\n";
    let expected = [write("id1", b"127.0.0.2"), write("id2", b"a, \"b\"\nc")];
    assert_eq!(import(csv, Format::Csv).unwrap(), expected);
    assert!(import(b"key,value\n", Format::Csv).unwrap().is_empty());
    for none in [&b"id1,127.0.0.2\n"[..], b"", b"\n"] {
        let error = import(none, Format::Csv).unwrap_err().errors[0].to_string();
        assert!(error.contains("names of columns"), "{error}");
    }
    let problem = import(b"key,value\na,1\nb\n\xff,2\n", Format::Csv).unwrap_err();
    assert_eq!(problem.errors[0]["line"], 3);
    assert_eq!(problem.errors[1]["line"], 4);
}

#[test]
fn entries_take_their_deadline_along_unless_it_has_come() {
    let json = b"{\"key\":\"a\",\"value\":\"1\",\"expires_at\":\"2001-02-03T04:05:06.789Z\"}
        {\"key\":\"b\",\"value\":\"2\",\"expires_at\":\"2999-02-03T04:05:06.789Z\"}
        {\"key\":\"c\",\"value\":\"3\",\"expires_at\":null}";
    let csv =
        b"key,value,expires_at\na,1,2001-02-03T04:05:06.789Z\nb,2,2999-02-03T04:05:06.789Z\nc,3,\n";
    let until = Deadline::from_millis(32_475_009_906_789);
    let ends = Write {
        until,
        ..write("b", b"2")
    };
    for (body, format) in [(&json[..], Format::Json), (csv, Format::Csv)] {
        let mut intake = Intake::new(format, BUCKET, ValueKind::Bytes, None);
        intake.feed(body);
        intake.end();
        let (batch, ended) = intake.batch().unwrap();
        assert_eq!(batch.writes, [ends.clone(), write("c", b"3")]);
        assert_eq!(ended, 1);
    }
    let bad = import(b"key,value,expires_at\na,1,soon\n", Format::Csv).unwrap_err();
    let message = bad.errors[0]["message"].as_str().unwrap();
    assert!(
        message.contains("expires_at \"soon\": expected a time"),
        "{message}"
    );
}

#[test]
fn a_row_without_end_is_refused_with_its_line_and_not_kept() {
    let mut intake = Intake::new(Format::Text, BUCKET, ValueKind::Bytes, None);
    intake.feed(b"a 1\nb ");
    for _ in 0..=(ROW_BYTES_MAX >> 20) {
        intake.feed(&[b'x'; 1 << 20]);
        assert!(intake.pending.len() <= ROW_BYTES_MAX);
    }
    intake.feed(b"\nc 3\n");
    intake.end();
    let problem = intake.batch().unwrap_err();
    assert_eq!(problem.errors[0]["line"], 2);
    assert!(
        problem.errors[0]["message"]
            .as_str()
            .unwrap()
            .contains("longer than")
    );
}

#[test]
fn chunks_come_together_row_by_row_and_stop_at_the_first_bad_one() {
    let mut intake = Intake::new(Format::Text, BUCKET, ValueKind::Bytes, Some(2));
    intake.feed(b"a 1\n# no row\nb 2\nc 3\n");
    let ready = intake.take_ready();
    assert_eq!((ready.len(), ready[0].line), (1, 3));
    assert_eq!(ready[0].writes, [write("a", b"1"), write("b", b"2")]);
    intake.feed(b"d 4\ne 5\nbad\nf 6\ng 7\nh 8\n");
    let ready = intake.take_ready();
    assert_eq!((ready.len(), ready[0].line), (1, 5));
    intake.feed(b"i 9\nj 10\n");
    intake.end();
    assert!(intake.take_ready().is_empty());
    let problem = intake.problem("stopped").unwrap();
    assert_eq!(
        (problem.errors.len(), &problem.errors[0]["line"]),
        (1, &json!(7))
    );
    let mut intake = Intake::new(Format::Text, BUCKET, ValueKind::Bytes, Some(100));
    let large = [b" ", &[b'x'; 1 << 20][..], b"\n"].concat();
    for key in 0..(CHUNK_BYTES_MAX >> 20) {
        intake.feed(key.to_string().as_bytes());
        intake.feed(&large);
    }
    assert_eq!(intake.take_ready().len(), 1, "bytes close a chunk, too");
}
