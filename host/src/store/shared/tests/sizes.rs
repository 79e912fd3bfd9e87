//! How much an engine takes in one transaction.

use super::*;

/// Of small entries and of large ones, beside what a bucket close to its limit is asked.
pub(super) async fn as_many_writes_as_it_tells_are_taken<S: Server>(server: S) {
    let engine = server.engine(&server.address(), "sizes");
    for bytes in [1, 100 << 10] {
        let most = engine.writes_max(ONE.len(), 5 + bytes);
        let many = |count: usize| -> Vec<_> {
            let key = |key| format!("{key:05}");
            (0..count)
                .map(|number| set(ONE, &key(number), vec![b'x'; bytes]))
                .collect()
        };
        let sized = Condition::Sized {
            bucket: ONE.into(),
            since: load(&engine).await.revision,
        };
        let done = commit(&engine, vec![sized], many(most)).await;
        assert!(matches!(done, Ok(Outcome::Applied(_))), "{most}: {done:?}");
        let error = commit(&engine, vec![], many(most + 1)).await;
        assert!(matches!(error, Err(EngineError::TooLarge(_))), "{error:?}");
    }
    // None has room.
    assert_eq!(engine.writes_max(ONE.len(), 5 << 20), 0);
}
