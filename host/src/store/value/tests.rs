//! Values as they are written, read and counted.

use super::*;

#[test]
fn addresses_parse_and_display_in_canonical_form() {
    for (text, canonical) in [
        ("127.0.0.2", "127.0.0.2"),
        ("127.0.0.2:80", "127.0.0.2:80"),
        ("0.10.99.100:9", "0.10.99.100:9"),
        ("9.255.1.20:65535", "9.255.1.20:65535"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[::1]:80", "[::1]:80"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("Agent-1.Internal", "agent-1.internal"),
        ("agent-1.internal:8080", "agent-1.internal:8080"),
        ("localhost:65535", "localhost:65535"),
        ("1a", "1a"),
        ("3com.com", "3com.com"),
        ("unix:/run/Agent.sock", "unix:/run/Agent.sock"),
    ] {
        let target = Target::parse(text).unwrap();
        assert_eq!(target.to_string(), canonical, "{text}");
        assert_eq!(Target::parse(canonical).unwrap(), target, "{text}");
        let value = Value::Target(target);
        assert_eq!(*value.to_bytes(), *canonical.as_bytes(), "{text}");
        assert_eq!(value.len(), canonical.len(), "{text}");
    }
}

#[test]
fn ports_are_read_as_the_fake_host_of_the_sdk_reads_them() {
    for (text, port) in include!("../../../../guest-sdk/tests/tables/ports.rs") {
        assert_eq!(parse_port(text), port, "{text:?}");
        let target = Target::parse(&format!("127.0.0.1:{text}"));
        assert_eq!(target.ok().and_then(|t| t.port()), port, "{text:?}");
    }
}

#[test]
fn what_is_no_address_is_refused_with_the_value_and_what_was_expected() {
    let long_label = format!("{}.internal", "a".repeat(64));
    let long_name = "a.".repeat(126) + "ab";
    let long_path = format!("unix:/{}", "a".repeat(107));
    for text in [
        "",
        " ",
        " 127.0.0.1",
        "127.0.0.1 ",
        "127.0.0.300",
        "1.2.3",
        "123",
        "127.1",
        "0x7f.1",
        "a.0x1",
        "127.0.0.01",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:+80",
        "127.0.0.1:080",
        ":80",
        "http://127.0.0.1",
        "host/path",
        "user@host",
        "user:pw@host",
        "host\r\nx: y",
        "host\0",
        "host.",
        ".host",
        "a..b",
        "-a",
        "a-",
        "a_b",
        "é.example",
        "[::1",
        "::1]",
        "[::1]80",
        "[::1]:",
        "[127.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "fe80::1%eth0",
        "1:2:3",
        "a:1:2",
        "::1:80:x",
        "*",
        "unix:",
        "unix:run/a",
        "unix:/",
        "unix:/run//a",
        "unix:/run/../a",
        "unix:/run/a/",
        "unix:/run/\na",
        &long_path,
        &long_label,
        &long_name,
    ] {
        let message = Target::parse(text).expect_err(text).to_string();
        assert!(message.contains("expected an IP address"), "{message}");
        assert!(!message.contains(['\r', '\n', '\0']), "{message}");
        assert!(message.len() < 500, "{message}");
    }
    let message = Target::parse("127.0.0.300").unwrap_err().to_string();
    assert!(
        message.starts_with("\"127.0.0.300\" is not an address: it looks like"),
        "{message}"
    );
}

#[test]
fn numbers_are_counted_up_and_down_within_64_bits() {
    let add = |value: &str, by| {
        let value = Value::Bytes(value.as_bytes().into());
        Value::increment(ValueKind::Bytes, Some(&value), by).map(|(number, value)| {
            assert_eq!(value.text().unwrap(), number.to_string());
            number
        })
    };
    assert_eq!(add("41", 1), Ok(42));
    assert_eq!(add("0", -5), Ok(-5));
    assert_eq!(add("-9223372036854775808", 0), Ok(i64::MIN));
    let absent = Value::increment(ValueKind::Bytes, None, 3).unwrap();
    assert_eq!(absent, (3, Value::Bytes(b"3"[..].into())));
    for bad in [
        "",
        " 1",
        "1 ",
        "+1",
        "007",
        "-0",
        "1.5",
        "0x1",
        "9223372036854775808",
    ] {
        let reason = add(bad, 1).unwrap_err().0;
        assert!(reason.contains("expected a decimal number"), "{reason}");
    }
    for (value, by) in [("9223372036854775807", 1), ("-2", i64::MIN)] {
        let reason = add(value, by).unwrap_err().0;
        assert!(
            reason.contains(value) && reason.contains("64 bits"),
            "{reason}"
        );
    }
    assert!(Value::increment(ValueKind::Endpoint, None, 1).is_err());
}

#[test]
fn values_are_checked_against_the_kind_of_their_bucket() {
    assert!(Value::parse(ValueKind::Endpoint, b"\xff").is_err());
    assert_eq!(
        Value::parse(ValueKind::Bytes, b"\xff")
            .unwrap()
            .to_bytes()
            .as_ref(),
        b"\xff"
    );
    assert!(Value::parse(ValueKind::Bytes, &vec![0; VALUE_BYTES_MAX]).is_ok());
    let error = Value::parse(ValueKind::Bytes, &vec![0; VALUE_BYTES_MAX + 1]).unwrap_err();
    assert!(error.0.contains("1048577 bytes"), "{error}");
}
