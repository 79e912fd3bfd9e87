//! What every engine promises, whatever happens to its server or the way there.

use super::follower::{Follower, state};
use super::relay::Relay;
use super::*;
use std::time::Instant;
use tokio::task::JoinSet;

const PREFIX: &str = "suite";

fn engine<S: Server>(server: &S) -> S::Engine {
    server.engine(&server.address(), PREFIX)
}

pub(super) async fn followers_see_the_same_transactions_of_many_writers<S: Server>(server: S) {
    let mut followers = Vec::new();
    for _ in 0..3 {
        followers.push(Follower::start(&engine(&server)).await);
    }
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let engine = engine(&server);
        writers.spawn(async move {
            let mut newest = Revision(0);
            for round in 0..25 {
                let key = format!("{}", round % 5);
                let value = format!("{writer}.{round}");
                newest = match round % 4 {
                    3 => write(&engine, vec![delete(ONE, &key), set(TWO, &key, &value)]).await,
                    _ => {
                        write(
                            &engine,
                            vec![set(ONE, &key, &value), set(TWO, "all", &value)],
                        )
                        .await
                    }
                };
            }
            newest
        });
    }
    let newest = writers
        .join_all()
        .await
        .into_iter()
        .max()
        .expect("there are writers");
    for follower in &mut followers {
        follower.reaches(newest).await;
    }
    let [first, others @ ..] = &followers[..] else {
        panic!("there are three");
    };
    assert_eq!(first.told.len(), 100);
    for other in others {
        assert_eq!(other.told, first.told);
    }
    assert_eq!(state(&load(&engine(&server)).await), first.state);
}

pub(super) async fn exactly_one_of_two_racing_writers_wins<S: Server>(server: S) {
    let engines = [engine(&server), engine(&server)];
    let mut expected = None;
    for round in 0..50 {
        let race = |who: usize| {
            let (engine, conditions) = (&engines[who], vec![at(ONE, "k", expected)]);
            commit(
                engine,
                conditions,
                vec![set(ONE, "k", format!("{round}.{who}"))],
            )
        };
        let (first, second) = tokio::join!(race(0), race(1));
        let (winner, revision) = match (first.expect("it answers"), second.expect("it answers")) {
            (Outcome::Applied(revision), Outcome::Conflict(_)) => (0, revision),
            (Outcome::Conflict(_), Outcome::Applied(revision)) => (1, revision),
            both => panic!("round {round}: {both:?}"),
        };
        let loaded = load(&engines[0]).await;
        let entry = &loaded.entries[0];
        assert_eq!(*entry.value, *format!("{round}.{winner}").as_bytes());
        assert_eq!(entry.revision, revision);
        expected = Some(revision);
    }
}

pub(super) async fn a_deleted_key_is_a_change_of_its_bucket<S: Server>(server: S) {
    let engine = engine(&server);
    write(
        &engine,
        vec![set(ONE, "a", "1"), set(ONE, "b", "1"), set(TWO, "a", "1")],
    )
    .await;
    let since = load(&engine).await.revision;
    write(&engine, vec![delete(ONE, "a")]).await;
    let unchanged = |bucket: &str| Condition::Unchanged {
        bucket: bucket.into(),
        since,
    };
    let one = commit(&engine, vec![unchanged(ONE)], vec![set(ONE, "c", "1")]).await;
    assert!(matches!(one, Ok(Outcome::Conflict(_))), "{one:?}");
    let two = commit(&engine, vec![unchanged(TWO)], vec![set(ONE, "c", "1")]).await;
    assert!(matches!(two, Ok(Outcome::Applied(_))), "{two:?}");
}

pub(super) async fn what_counts_for_a_limit_is_noticed_by_who_asks<S: Server>(server: S) {
    let engine = engine(&server);
    let guarded = async |since, writes: Vec<SharedWrite>| {
        let guard = Condition::Sized {
            bucket: ONE.into(),
            since,
        };
        let transaction = Transaction {
            conditions: vec![guard],
            sized: writes.iter().map(|write| write.bucket.clone()).collect(),
            writes,
            author: None,
        };
        commit_whole(&engine, transaction).await
    };
    let first = write(&engine, vec![set(ONE, "a", "1"), set(ONE, "b", "1")]).await;
    // Who does not say that it counts is not noticed, and neither is what is elsewhere.
    write(&engine, vec![set(ONE, "a", "2"), set(TWO, "a", "1")]).await;
    write(&engine, vec![delete(TWO, "a")]).await;
    let Ok(Outcome::Applied(second)) = guarded(first, vec![set(ONE, "c", "1")]).await else {
        panic!("nothing that counts has changed");
    };
    let late = guarded(first, vec![set(ONE, "d", "1")]).await;
    assert!(
        matches!(late, Ok(Outcome::Conflict(at)) if at >= second),
        "{late:?}"
    );
    let next = guarded(second, vec![]).await;
    assert!(matches!(next, Ok(Outcome::Applied(_))), "{next:?}");
    write(&engine, vec![delete(ONE, "a")]).await;
    let late = guarded(second, vec![set(ONE, "d", "1")]).await;
    assert!(matches!(late, Ok(Outcome::Conflict(_))), "{late:?}");
    let keys = load(&engine).await.entries.len();
    assert_eq!(keys, 2);
}

pub(super) async fn an_entry_is_gone_for_everybody_soon_after_its_time<S: Server>(server: S) {
    let engines = [engine(&server), engine(&server)];
    let mut followers = [
        Follower::start(&engines[0]).await,
        Follower::start(&engines[1]).await,
    ];
    let ttl = Duration::from_secs(2);
    let begun = Instant::now();
    let gone = |key| set_for(ONE, key, "v", ttl);
    let stays = set(ONE, "stays", "v");
    let written = write(&engines[0], vec![gone("a"), gone("b"), stays]).await;
    // Written again without an end, and with a later one.
    write(&engines[0], vec![gone("kept"), gone("later")]).await;
    let later = Duration::from_secs(600);
    write(
        &engines[1],
        vec![set(ONE, "kept", "w"), set_for(ONE, "later", "w", later)],
    )
    .await;
    let loaded = load(&engines[1]).await;
    let end_of = |key: &str| {
        let entry = loaded.entries.iter().find(|entry| *entry.key == *key);
        entry.expect("it is there").expires_at_ms
    };
    assert_eq!((end_of("stays"), end_of("kept")), (None, None));
    let (soon, late) = (
        end_of("a").expect("it ends"),
        end_of("later").expect("it ends"),
    );
    assert!((590_000..610_000).contains(&(late - soon)), "{soon} {late}");
    for follower in &mut followers {
        follower.reaches(written).await;
        assert_eq!(follower.value(ONE, "a"), Some(&b"v"[..]));
        while follower.value(ONE, "a").is_some() || follower.value(ONE, "b").is_some() {
            assert!(follower.next().await, "a gap instead of an end");
        }
        let after = begun.elapsed();
        assert!(after >= ttl, "gone after {after:?}");
        // Servers look for it once in half a second, and this machine may be busy.
        assert!(after < ttl + Duration::from_secs(2), "gone after {after:?}");
        assert_eq!(follower.value(ONE, "stays"), Some(&b"v"[..]));
        assert_eq!(follower.value(ONE, "kept"), Some(&b"w"[..]));
        assert_eq!(follower.value(ONE, "later"), Some(&b"w"[..]));
    }
    let [first, second] = &followers;
    assert_eq!(first.told, second.told);
    assert_eq!(state(&load(&engines[0]).await), first.state);
    // It can be made as if it had never been there.
    let made = commit(
        &engines[1],
        vec![at(ONE, "a", None)],
        vec![set(ONE, "a", "w")],
    )
    .await;
    assert!(matches!(made, Ok(Outcome::Applied(_))), "{made:?}");
}

pub(super) async fn a_cut_connection_loses_nothing<S: Server>(server: S) {
    let relay = Relay::start(server.address()).await;
    let behind = server.engine(&relay.address(), PREFIX);
    let direct = engine(&server);
    let mut follower = Follower::start(&behind).await;
    let mut expected = Vec::new();
    for round in 0..3 {
        let key = format!("{round}");
        expected.push(write(&behind, vec![set(ONE, &key, "before"), set(TWO, &key, "1")]).await);
        follower.reaches(expected[expected.len() - 1]).await;
        relay.cut();
        follower.is_lost().await;
        let away = commit(&behind, vec![], vec![set(ONE, &key, "lost")]).await;
        assert!(
            matches!(
                away,
                Err(EngineError::Unavailable(_) | EngineError::Unknown(_))
            ),
            "{away:?}"
        );
        // Once it is known to be away, nothing is sent.
        let away = commit(&behind, vec![], vec![set(ONE, &key, "lost")]).await;
        assert!(matches!(away, Err(EngineError::Unavailable(_))), "{away:?}");
        expected.push(write(&direct, vec![set(ONE, &key, "away")]).await);
        expected.push(write(&direct, vec![delete(TWO, &key)]).await);
        relay.restore();
        follower.reaches(expected[expected.len() - 1]).await;
        follower.is_current().await;
        assert_eq!(follower.value(ONE, &key), Some(&b"away"[..]));
        assert_eq!(follower.value(TWO, &key), None);
    }
    let told: Vec<_> = follower
        .told
        .iter()
        .map(|(revision, _)| Revision(*revision))
        .collect();
    assert_eq!(told, expected);
    assert_eq!(state(&load(&behind).await), follower.state);
}

pub(super) async fn a_silent_network_is_noticed<S: Server>(server: S) {
    let relay = Relay::start(server.address()).await;
    let behind = server.engine(&relay.address(), PREFIX);
    let mut follower = Follower::start(&behind).await;
    write(&behind, vec![set(ONE, "a", "1")]).await;
    relay.silence();
    let unknown = commit(&behind, vec![], vec![set(ONE, "a", "2")]).await;
    assert!(
        matches!(unknown, Err(EngineError::Unknown(_))),
        "{unknown:?}"
    );
    follower.is_lost().await;
    let newest = write(&engine(&server), vec![set(ONE, "a", "3")]).await;
    relay.restore();
    follower.reaches(newest).await;
    assert_eq!(follower.value(ONE, "a"), Some(&b"3"[..]));
}

pub(super) async fn a_server_killed_and_restarted_has_every_acknowledged_write<S: Server>(
    mut server: S,
) {
    let engine = engine(&server);
    let mut follower = Follower::start(&engine).await;
    write(&engine, vec![set(ONE, "deleted", "v")]).await;
    for round in 0..3 {
        let key = format!("{round}");
        let before =
            write_when_back(&engine, vec![set(ONE, &key, "v"), delete(ONE, "deleted")]).await;
        server.kill();
        follower.is_lost().await;
        let down = commit(&engine, vec![], vec![set(ONE, "down", "v")]).await;
        assert!(down.is_err(), "{down:?}");
        server.start_again().await;
        let after = write_when_back(&engine, vec![set(TWO, &key, "v")]).await;
        assert!(after > before);
        follower.reaches(after).await;
        assert_eq!(follower.value(ONE, &key), Some(&b"v"[..]));
        assert_eq!(follower.value(ONE, "deleted"), None);
    }
    let loaded = load(&engine).await;
    assert_eq!(state(&loaded), follower.state);
}

pub(super) async fn what_is_no_longer_in_the_log_is_a_gap<S: Server>(server: S) {
    let relay = Relay::start(server.address()).await;
    let behind = server.engine(&relay.address(), PREFIX);
    let direct = engine(&server);
    write(
        &direct,
        vec![set(ONE, "deleted", "v"), set(ONE, "kept", "v")],
    )
    .await;
    let mut follower = Follower::start(&behind).await;
    follower.is_current().await;
    relay.cut();
    follower.is_lost().await;
    write(&direct, vec![delete(ONE, "deleted")]).await;
    for round in 0..10 {
        write(&direct, vec![set(ONE, "new", format!("{round}"))]).await;
    }
    server.forget_log(PREFIX).await;
    write(&direct, vec![set(ONE, "new", "newest")]).await;
    relay.restore();
    follower.has_gap().await;
    let mut follower = Follower::start(&behind).await;
    assert_eq!(follower.value(ONE, "deleted"), None);
    assert_eq!(follower.value(ONE, "kept"), Some(&b"v"[..]));
    assert_eq!(follower.value(ONE, "new"), Some(&b"newest"[..]));
    let newest = write(&direct, vec![set(ONE, "new", "last")]).await;
    follower.reaches(newest).await;
    assert_eq!(follower.value(ONE, "new"), Some(&b"last"[..]));
}

pub(super) async fn large_transactions_are_told_whole_after_an_absence<S: Server>(server: S) {
    let relay = Relay::start(server.address()).await;
    let behind = server.engine(&relay.address(), PREFIX);
    let direct = engine(&server);
    let mut follower = Follower::start(&behind).await;
    follower.is_current().await;
    relay.cut();
    follower.is_lost().await;
    let mut newest = Revision(0);
    for round in 0..12_u8 {
        let value = vec![round; 10_000];
        let writes = (0..100).map(|key| set(ONE, &format!("{key}"), &value));
        newest = write(&direct, writes.collect()).await;
    }
    relay.restore();
    follower.reaches(newest).await;
    assert_eq!(follower.told.len(), 12);
    for ((_, changes), round) in follower.told.iter().zip(0..) {
        assert_eq!(changes.len(), 100);
        let whole = vec![round; 10_000];
        assert!(
            changes
                .iter()
                .all(|(.., value)| value.as_ref() == Some(&whole))
        );
    }
    assert_eq!(state(&load(&behind).await), follower.state);
}

pub(super) async fn what_is_loaded_while_others_write_is_a_state_that_was<S: Server>(server: S) {
    let engine = engine(&server);
    // Each transaction moves one token, so there is always exactly one, and enough else to make a load take a while.
    for piece in 0..30 {
        let writes = (0..100).map(|key| set(ONE, &format!("{piece}.{key}"), "filler"));
        write(&engine, writes.collect()).await;
    }
    write(&engine, vec![set(ONE, "0", "token")]).await;
    let mover = {
        let engine = engine.clone();
        tokio::spawn(async move {
            let mut newest = Revision(0);
            for round in 0..400_u32 {
                let (from, to) = (round.to_string(), (round + 1).to_string());
                newest = write(&engine, vec![delete(ONE, &from), set(ONE, &to, "token")]).await;
            }
            newest
        })
    };
    let mut followers = Vec::new();
    while !mover.is_finished() {
        let loaded = load(&engine).await;
        let tokens = loaded
            .entries
            .iter()
            .filter(|entry| *entry.value == *b"token");
        assert_eq!((tokens.count(), state(&loaded).len()), (1, 3001));
        if followers.len() < 5 {
            followers.push(Follower::from(&engine, &buckets(), &loaded));
        }
    }
    let newest = mover.await.expect("every move is applied");
    assert!(!followers.is_empty());
    let last = state(&load(&engine).await);
    for mut follower in followers {
        // What it was told fits what was loaded: nothing is missing in between, and nothing is in both.
        follower.reaches(newest).await;
        assert_eq!(follower.state, last);
    }
}

pub(super) async fn a_follower_is_told_that_it_has_everything_while_others_write<S: Server>(
    server: S,
) {
    let mut follower = Follower::start(&engine(&server)).await;
    let writing = engine(&server);
    let writer = tokio::spawn(async move {
        for round in 0_u64.. {
            write(&writing, vec![set(ONE, "k", round.to_be_bytes())]).await;
        }
    });
    for _ in 0..3 {
        follower.is_current().await;
    }
    assert!(!writer.is_finished());
    writer.abort();
    assert!(!follower.told.is_empty());
}

/// What is not followed is no reason to take the past for the present.
pub(super) async fn who_catches_up_is_told_that_it_has_everything_when_it_has<S: Server>(
    server: S,
) {
    let engine = engine(&server);
    let loaded = load(&engine).await;
    let mut newest = loaded.revision;
    for round in 0..20 {
        let key = format!("{round}");
        newest = write(&engine, vec![set("elsewhere", &key, "v")]).await;
        newest = newest.max(write(&engine, vec![set(ONE, &key, "v")]).await);
        newest = newest.max(write(&engine, vec![set("elsewhere", &key, "w")]).await);
    }
    let mut follower = Follower::from(&engine, &buckets(), &loaded);
    follower.is_current().await;
    assert!(follower.at >= newest, "{} of {newest}", follower.at);
    assert_eq!(follower.told.len(), 20);
}

pub(super) async fn a_follower_leaves_when_nobody_listens<S: Server>(server: S) {
    let engine = engine(&server);
    let from = load(&engine).await.revision;
    let (sender, receiver) = mpsc::channel(1);
    let following = engine.follow(buckets(), from, sender);
    drop(receiver);
    timeout(SOON, following).await.expect("it leaves");
}

pub(super) async fn what_is_wrong_with_a_request_is_said<S: Server>(mut server: S) {
    let engine = engine(&server);
    let many = (0..20_000)
        .map(|key| set(ONE, &key.to_string(), "v"))
        .collect();
    let error = commit(&engine, vec![], many).await;
    assert!(
        matches!(&error, Err(EngineError::TooLarge(reason)) if reason.contains("expected at most")),
        "{error:?}"
    );
    let large = set(ONE, "large", vec![b'x'; 5 << 20]);
    let error = commit(&engine, vec![], vec![large]).await;
    assert!(
        matches!(&error, Err(EngineError::TooLarge(reason)) if reason.contains("expected at most")),
        "{error:?}"
    );
    let long = set_for(ONE, "long", "v", TTL_MAX + Duration::from_secs(1));
    let error = commit(&engine, vec![], vec![long]).await;
    assert!(
        matches!(&error, Err(EngineError::Refused(reason)) if reason.contains("time to live")),
        "{error:?}"
    );
    assert_eq!(load(&engine).await.entries, []);
    server.kill();
    let error = commit(&self::engine(&server), vec![], vec![set(ONE, "a", "v")]).await;
    let address = server.address();
    assert!(
        matches!(&error, Err(EngineError::Unavailable(reason)) if reason.contains(&address)),
        "{error:?}"
    );
}

/// The suite as tests of one engine.
macro_rules! conformance {
    ($server:ty) => {
        $crate::store::shared::tests::suite::conformance! { $server:
            model::any_transactions_are_as_in_a_plain_model,
            suite::followers_see_the_same_transactions_of_many_writers,
            suite::exactly_one_of_two_racing_writers_wins,
            suite::a_deleted_key_is_a_change_of_its_bucket,
            suite::what_counts_for_a_limit_is_noticed_by_who_asks,
            suite::an_entry_is_gone_for_everybody_soon_after_its_time,
            suite::a_cut_connection_loses_nothing,
            suite::a_silent_network_is_noticed,
            suite::a_server_killed_and_restarted_has_every_acknowledged_write,
            suite::what_is_no_longer_in_the_log_is_a_gap,
            suite::large_transactions_are_told_whole_after_an_absence,
            suite::what_is_loaded_while_others_write_is_a_state_that_was,
            suite::a_follower_is_told_that_it_has_everything_while_others_write,
            suite::who_catches_up_is_told_that_it_has_everything_when_it_has,
            suite::a_follower_leaves_when_nobody_listens,
            sizes::as_many_writes_as_it_tells_are_taken,
            suite::what_is_wrong_with_a_request_is_said,
            artifacts::a_component_is_read_as_it_was_kept_until_it_is_removed,
            artifacts::an_artifact_without_a_piece_is_not_read,
            artifacts::no_size_that_is_told_makes_endless_work,
        }
    };
    ($server:ty: $($module:ident::$test:ident,)*) => {
        $(
            #[test]
            fn $test() {
                $crate::store::shared::tests::with_server::<$server>(
                    $crate::store::shared::tests::$module::$test,
                );
            }
        )*
    };
}
pub(super) use conformance;
