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

/// Started again, it finds what the process before it has told, and does not see yet what it has told itself.
#[tokio::test]
async fn a_process_that_sees_itself_late_is_no_other_one_and_can_leave() {
    let (backend, shelf) = Backend::on_a_shelf();
    let still = async || {
        let dir = tempfile::tempdir().expect("a directory");
        backend.still("a", dir, plugin()).await
    };
    let before = still().await;
    before.fleet.tell_once().await;
    until("it is told of", || before.fleet.row().nodes == 1).await;
    shelf.be_silent(true);
    let node = still().await;
    for _ in 0..3 {
        node.fleet.tell_once().await;
        assert_eq!(node.fleet.status()["name_taken"], false);
    }
    // It leaves as soon as it sees what it has told.
    tokio::join!(node.fleet.leave(), async { shelf.be_silent(false) });
    until("it has left", || node.fleet.row().nodes == 0).await;
    // It is the other way round for who was there before.
    let other = still().await;
    other.fleet.tell_once().await;
    until("the other is told of", || node.fleet.row().nodes == 1).await;
    before.fleet.tell_once().await;
    assert_eq!(before.fleet.status()["name_taken"], true);
}
