//! What records are, and what is refused.

use super::*;
use crate::store::{Value, ValueKind};
use proptest::prelude::*;

fn parsed(text: &str) -> Arc<TypedRecord> {
    TypedRecord::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn a_record_has_one_form_that_parses_to_itself() {
    for (text, form) in [
        (
            r#" {"addresses": ["LOCALHOST:80"], "scheme": "http", "policy": "round-robin", "tags": {}}"#,
            r#"{"addresses":["localhost:80"]}"#,
        ),
        (
            r#"{"tags": ["b", "a"], "addresses": [{"address": "::1"}, {"weight": 3, "address": "unix:/run/a.sock"}]}"#,
            r#"{"addresses":["::1",{"address":"unix:/run/a.sock","weight":3}],"tags":["a","b"]}"#,
        ),
        (
            r#"{"addresses": ["10.0.0.1"], "on_change": {"drain": {"over_ms": 5}}, "tags": {"z": "", "a": "b"},
                "policy": "hash"}"#,
            r#"{"addresses":["10.0.0.1"],"on_change":{"drain":{"after_ms":0,"over_ms":5}},"policy":"hash","tags":{"a":"b","z":""}}"#,
        ),
        (
            r#"{"addresses": ["10.0.0.1"], "sni": "App.internal", "scheme": "https"}"#,
            r#"{"addresses":["10.0.0.1"],"scheme":"https","sni":"app.internal"}"#,
        ),
        (
            r#"{"addresses": ["10.0.0.1"], "on_change": "keep"}"#,
            r#"{"addresses":["10.0.0.1"],"on_change":"keep"}"#,
        ),
    ] {
        let record = parsed(text);
        assert_eq!(record.text(), form);
        assert_eq!(parsed(form), record);
        let value = Value::parse(ValueKind::Endpoint, text.as_bytes()).unwrap();
        assert_eq!(value.text().unwrap(), form);
        assert_eq!(
            (value.len(), &*value.to_bytes()),
            (form.len(), form.as_bytes())
        );
        assert_eq!(value.clone().into_bytes(), form.as_bytes().into());
    }
}

proptest! {
    #[test]
    fn any_text_is_refused_or_has_one_form(
        text in "\\{(\"(addresses|tags|policy|sni|a)\": ?(\\[?(\"(a|b:1|eu|hash)\",?){0,3}\\]?|1|null|\\{\\}),?){0,4}\\}",
        any in "\\PC{0,60}",
    ) {
        for text in [text, any] {
            if let Ok(record) = TypedRecord::parse(&text) {
                let again = TypedRecord::parse(record.text());
                prop_assert_eq!(again, Ok(record));
            }
        }
    }
}

#[test]
fn a_record_says_what_it_says() {
    let record = parsed(
        r#"{"addresses": ["10.0.0.1:80", {"address": "10.0.0.2:80", "weight": 1000}], "policy": "least-requests",
            "tags": {"zone": "eu", "gold": ""}, "on_change": "close"}"#,
    );
    let weights: Vec<u16> = record.addresses.iter().map(|one| one.weight).collect();
    assert_eq!(weights, [1, 1000]);
    assert_eq!(record.policy, Policy::LeastRequests);
    assert_eq!(record.tag("zone"), Some("eu"));
    assert_eq!((record.tag("gold"), record.tag("go")), (Some(""), None));
    assert_eq!(record.on_change, Some(OnChange::Close));
    assert!(!record.needs_port);
    assert!(parsed(r#"{"addresses": ["a:1", "b"]}"#).needs_port);
    assert!(!parsed(r#"{"addresses": ["a:1", "unix:/b"]}"#).needs_port);
}

#[test]
fn what_is_wrong_with_a_record_is_said_with_field_value_and_what_was_expected() {
    let many = format!(
        r#"{{"addresses": [{}]}}"#,
        (1..=257)
            .map(|n| format!("\"h{n}\""))
            .collect::<Vec<_>>()
            .join(",")
    );
    let path = format!(r#"{{"addresses": ["unix:/{}"]}}"#, "a".repeat(107));
    for (text, said) in [
        ("{", "is no JSON: EOF while parsing"),
        (
            "{}",
            "addresses is missing, expected a list of at least one",
        ),
        (
            r#"{"addresses": []}"#,
            "addresses has 0 items, expected 1 to 256",
        ),
        (&*many, "addresses has 257 items, expected 1 to 256"),
        (
            r#"{"addresses": "a:1"}"#,
            "addresses is \"a:1\", expected a list",
        ),
        (
            r#"{"addresses": [5]}"#,
            "addresses[0] is 5, expected an address",
        ),
        (
            r#"{"addresses": ["a b"]}"#,
            "addresses[0]: \"a b\" is not an address",
        ),
        (
            r#"{"addresses": ["a", {"address": "A"}]}"#,
            "addresses[1] is a, which is there already",
        ),
        (
            r#"{"addresses": [{"weight": 1}]}"#,
            "addresses[0].address is missing",
        ),
        (
            r#"{"addresses": [{"address": "a", "weight": 0}]}"#,
            "addresses[0].weight is 0, expected a whole number from 1 to 1000",
        ),
        (
            r#"{"addresses": [{"address": "a", "weight": 1.5}]}"#,
            "addresses[0].weight is 1.5, expected a whole number",
        ),
        (
            r#"{"addresses": [{"address": "a", "port": 1}]}"#,
            "addresses[0] has the unknown field \"port\", expected \"address\" or \"weight\"",
        ),
        (&*path, "it is longer than 107 bytes"),
        (
            r#"{"addresses": ["unix:a"]}"#,
            "the path of the socket does not begin with /",
        ),
        (
            r#"{"addresses": ["a"], "polcy": "hash"}"#,
            "the record has the unknown field \"polcy\", expected \"addresses\", \"policy\"",
        ),
        (
            r#"{"addresses": ["a"], "policy": "random"}"#,
            "policy is \"random\", expected \"round-robin\", \"least-requests\" or \"hash\"",
        ),
        (
            r#"{"addresses": ["a"], "addresses": ["b"]}"#,
            "the field \"addresses\" twice",
        ),
        (
            r#"{"addresses": ["a"], "scheme": "ftp"}"#,
            "scheme is \"ftp\", expected \"http\"",
        ),
        (
            r#"{"addresses": ["a"], "sni": "b"}"#,
            "sni is there, expected scheme \"https\"",
        ),
        (
            r#"{"addresses": ["a"], "scheme": "https", "sni": "10.0.0.1"}"#,
            "sni is \"10.0.0.1\", expected the name of a host",
        ),
        (
            r#"{"addresses": ["a", "unix:/b"], "scheme": "https"}"#,
            "addresses[1] is a Unix socket, expected hosts",
        ),
        (
            r#"{"addresses": ["a"], "tags": 1}"#,
            "tags is 1, expected an object of strings",
        ),
        (
            r#"{"addresses": ["a"], "tags": {"a": 1}}"#,
            "tags.\"a\" is 1, expected a string",
        ),
        (
            r#"{"addresses": ["a"], "tags": {"": "b"}}"#,
            "tag \"\" is no name of one",
        ),
        (
            r#"{"addresses": ["a"], "tags": ["x", "x"]}"#,
            "tag \"x\" is there twice",
        ),
        (
            r#"{"addresses": ["a"], "tags": {"x": "a\nb"}}"#,
            "without control characters",
        ),
        (
            r#"{"addresses": ["a"], "on_change": "drop"}"#,
            "on_change is \"drop\", expected \"keep\" or \"close\"",
        ),
        (
            r#"{"addresses": ["a"], "on_change": {"drain": {"after_ms": 86400001}}}"#,
            "on_change.drain.after_ms is 86400001, expected a whole number from 0 to 86400000",
        ),
        (
            r#"{"addresses": ["a"], "on_change": {}}"#,
            "on_change.drain is missing",
        ),
    ] {
        let error = Value::parse(ValueKind::Endpoint, text.as_bytes()).expect_err(text);
        assert!(error.0.starts_with("typed record: "), "{error}");
        assert!(error.0.contains(said), "{text}: {error}");
        assert!(!error.0.contains('\n') && error.0.len() < 700, "{error}");
    }
}
