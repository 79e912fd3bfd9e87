//! Which batches take long to judge, and what is asked of keys that stay.

use super::*;
use crate::store::{BucketConfig, LookupKinds, Store, ValueKind};

#[test]
fn what_compiles_regular_expressions_takes_long() {
    let config = |name, kinds| BucketConfig {
        lookup: LookupKinds::of(kinds),
        ..BucketConfig::new(name, BackendKind::Memory, ValueKind::Bytes)
    };
    let kinds = [LookupKind::Prefix, LookupKind::Regex];
    let store = Store::scratch(&[config("plain", &kinds[..1]), config("regexes", &kinds)]);
    let snapshot = store.expect("a store").snapshot();
    let id = |name| snapshot.bucket_id(name).expect("it is there");
    let is_long = |replace: &[BucketId], write| {
        let batch = WriteBatch {
            writes: vec![write],
            replace: replace.to_vec(),
            ..WriteBatch::default()
        };
        is_long(&snapshot, &batch)
    };
    let (plain, regexes) = (id("plain"), id("regexes"));
    assert!(is_long(&[], Write::put(regexes, "re:^/v1/", *b"1")));
    assert!(is_long(&[], Write::delete(regexes, "re:^/v1/")));
    assert!(is_long(&[regexes], Write::put(plain, "k", *b"1")));
    assert!(!is_long(&[], Write::put(regexes, "/v1/*", *b"1")));
    assert!(!is_long(&[plain], Write::put(plain, "/v1/*", *b"1")));
}

#[tokio::test]
async fn keys_that_stay_are_asked_of_each_or_of_their_bucket() {
    let config = BucketConfig::new("b", BackendKind::Memory, ValueKind::Bytes);
    let store = Store::scratch(&[config]).expect("a store");
    let b = store.snapshot().bucket_id("b").expect("it is there");
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let now = since_1970.expect("the clock is right").as_millis() as u64;
    let until = Deadline::from_millis(now + 3_600_000);
    let batch = |value: u8| {
        let ends = Write {
            until,
            ..Write::put(b, "ends", *b"1")
        };
        let changes = Write::put(b, "changes", [value]);
        WriteBatch {
            writes: vec![
                Write::put(b, "stays", *b"1"),
                ends,
                Write::put(b, "required", *b"1"),
                changes,
                Write::delete(b, "none"),
            ],
            ..WriteBatch::default()
        }
    };
    let made = store.commit(batch(b'1')).await;
    let revision = made.expect("made").revision;
    let snapshot = store.snapshot();
    let conditions = |most: usize| {
        let mut batch = batch(b'2');
        batch.writes[2].expect = Expect::Present;
        let backend = (BackendKind::Memory, revision);
        let plan = Plan::new(&snapshot, backend, &batch, now);
        let mut plan = plan.expect("it asks");
        plan.fit(|transaction| transaction.conditions.len() <= most);
        let mut conditions = plan.transaction.conditions;
        conditions.sort_by_key(|it| format!("{it:?}"));
        conditions
    };
    let at = |key: &str, revision| SharedCondition::At {
        bucket: "b".into(),
        key: key.into(),
        revision,
    };
    let [ends, required] = ["ends", "required"].map(|key| at(key, Some(revision)));
    let each = [
        ends.clone(),
        at("none", None),
        required.clone(),
        at("stays", Some(revision)),
    ];
    // Beside them it may be asked what the bucket holds.
    assert_eq!(conditions(5), each);
    let whole = SharedCondition::Unchanged {
        bucket: "b".into(),
        since: revision,
    };
    // What ends, and what is required, is asked of itself.
    assert_eq!(conditions(4), [ends, required, whole]);
}
