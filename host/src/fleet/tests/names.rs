//! Nodes that come and go, and names that two have.

use super::*;

#[tokio::test]
async fn a_node_that_is_gone_vanishes() {
    let backend = Backend::new();
    let one = backend.node("a").await;
    let nodes = || one.fleet.row().nodes;
    let other = backend.node("b").await;
    until("both are told of", || nodes() == 2).await;
    other.fleet.leave().await;
    until("it left", || nodes() == 1).await;
    let third = backend.node("c").await;
    until("both are told of", || nodes() == 2).await;
    // As by kill -9.
    drop(third);
    until("its time is over", || nodes() == 1).await;
}

#[tokio::test]
async fn two_processes_of_one_name_are_told_apart() {
    let backend = Backend::new();
    let (one, other) = (backend.node("a").await, backend.node("a").await);
    until("one of them notices", || {
        let taken = |node: &Node| node.fleet.status()["name_taken"] == true;
        taken(&one) || taken(&other)
    })
    .await;
}

#[tokio::test]
async fn who_leaves_takes_nobody_elses_name_away() {
    let backend = Backend::new();
    let (old, observer) = (backend.node("a").await, backend.node("b").await);
    let nodes = || observer.fleet.row().nodes;
    until("both are told of", || nodes() == 2).await;
    // It was started to take over before the other had ended.
    let new = backend.still("a", tempfile::tempdir().expect("a directory"), plugin());
    let new = new.await;
    new.fleet.tell_once().await;
    old.tasks.iter().for_each(JoinHandle::abort);
    old.fleet.leave().await;
    assert_eq!(nodes(), 2);
    new.fleet.leave().await;
    assert_eq!(nodes(), 1);
}
