//! Components in an engine, in pieces.

use super::*;
use crate::store::shared::artifacts::{Artifacts, Depot};
use bytes::Bytes;

const PLACE: &str = "0123-45";

fn depot<S: Server>(server: &S) -> Artifacts<S::Engine> {
    Artifacts::new(server.engine(&server.address(), "artifacts"))
}

/// Bytes of several pieces, the last one not full.
fn component() -> Bytes {
    (0..1_300_000_u32).map(|at| (at / 7) as u8).collect()
}

pub(super) async fn a_component_is_read_as_it_was_kept_until_it_is_removed<S: Server>(server: S) {
    let (one, other) = (depot(&server), depot(&server));
    let component = component();
    one.put(PLACE, component.clone()).await.expect("it is kept");
    let small = Bytes::from_static(b"small");
    let bytes = component.len() as u64;
    other.put("other", small.clone()).await.expect("it is kept");
    assert_eq!(
        other.get(PLACE, bytes).await.expect("it is there"),
        component
    );
    other.remove(PLACE, bytes).await.expect("it is removed");
    assert_eq!(
        one.get(PLACE, bytes).await.expect("an answer"),
        Bytes::new()
    );
    assert_eq!(one.get("other", 5).await.expect("it is there"), small);
    // Nothing of it is in the buckets of the store.
    let engine = server.engine(&server.address(), "artifacts");
    assert_eq!(load(&engine).await.entries, []);
}

pub(super) async fn an_artifact_without_a_piece_is_not_read<S: Server>(server: S) {
    let depot = depot(&server);
    depot.put(PLACE, component()).await.expect("it is kept");
    let engine = server.engine(&server.address(), "artifacts");
    write(
        &engine,
        vec![delete(&format!("throwbar:artifact:{PLACE}"), "000001")],
    )
    .await;
    let error = depot
        .get(PLACE, u64::MAX)
        .await
        .expect_err("a piece is missing");
    assert!(error.0.contains("piece 000001 is missing"), "{error}");
}

/// What says how large it is can be written by whoever can write to the engine.
pub(super) async fn no_size_that_is_told_makes_endless_work<S: Server>(server: S) {
    let depot = depot(&server);
    depot.put(PLACE, component()).await.expect("it is kept");
    let error = depot.get(PLACE, 100_000).await.expect_err("it is more");
    let expected = "holds more than was expected, at most 624288 bytes";
    assert!(error.0.contains(expected), "{error}");
    let removed = timeout(SOON, depot.remove(PLACE, u64::MAX)).await;
    removed.expect("it ends").expect("it is removed");
    let nothing = depot.get(PLACE, 0).await.expect("an answer");
    assert_eq!(nothing, Bytes::new());
}
