//! Leases: what has the same one, and when one is given back.

use super::*;
use etcd_client::{GetOptions, LeaseTimeToLiveOptions};

const HOUR: Duration = Duration::from_secs(3600);

/// The lease that a key has; 0 is none.
async fn lease_of(client: &mut Client, key: &str) -> i64 {
    let found = client.get(key, None).await.expect("it answers");
    found.kvs()[0].lease()
}

/// The keys that have a lease, in order.
async fn keys_of(client: &mut Client, lease: i64) -> Vec<String> {
    let question = LeaseTimeToLiveOptions::new().with_keys();
    let answer = client.lease_time_to_live(lease, Some(question)).await;
    let keys = answer.expect("it answers").keys().to_vec();
    let keys = keys.into_iter().map(String::from_utf8);
    let mut keys: Vec<_> = keys.map(|key| key.expect("keys are text")).collect();
    keys.sort();
    keys
}

async fn leases(client: &mut Client) -> Vec<i64> {
    let answer = client.leases().await.expect("it answers");
    answer.leases().iter().map(|lease| lease.id()).collect()
}

async fn until_given_back(client: &mut Client, lease: i64) {
    let given_back = async {
        while leases(client).await.contains(&lease) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let given_back = timeout(SOON, given_back).await;
    given_back.expect("it is given back");
}

/// Waits until a lease of several entries was given back whose entries were replaced now, and so everything that was to be given
/// back before.
async fn until_others_are_given_back(
    engine: &Etcd,
    follower: &mut Follower,
    client: &mut Client,
    prefix: &str,
) {
    let keys = ["later-a", "later-b"];
    let writes = keys.map(|key| set_for(ONE, key, "v", HOUR));
    let at = write(engine, writes.into()).await;
    follower.reaches(at).await;
    let lease = lease_of(client, &format!("{prefix}/{ONE}/later-a")).await;
    let at = write(engine, keys.map(|key| delete(ONE, key)).into()).await;
    follower.reaches(at).await;
    until_given_back(client, lease).await;
}

#[test]
fn entries_of_a_transaction_share_a_lease_if_they_live_as_long() {
    with_server(async |server: EtcdServer| {
        let engine = server.engine(&server.address(), "share");
        let mut client = server.client(None).await;
        let ms = Duration::from_millis(1);
        let writes = vec![
            set_for(ONE, "a", "v", HOUR),
            set_for(TWO, "b", "v", HOUR),
            // Whole seconds are granted.
            set_for(ONE, "c", "v", HOUR - ms),
            set_for(ONE, "d", "v", HOUR + ms),
            set_for(TWO, "e", "v", HOUR + 2 * ms),
            set_for(ONE, "alone", "v", 2 * HOUR),
            set(ONE, "stays", "v"),
        ];
        write(&engine, writes).await;
        let mut shared = Vec::new();
        for lease in leases(&mut client).await {
            shared.push(keys_of(&mut client, lease).await);
        }
        shared.sort();
        let expected: [&[&str]; 3] = [
            &["share/one/a", "share/one/c", "share/two/b"],
            &["share/one/alone"],
            &["share/one/d", "share/two/e"],
        ];
        assert_eq!(shared, expected);
        // No transaction takes the lease of another.
        write(&engine, vec![set_for(ONE, "later", "v", HOUR)]).await;
        assert_eq!(leases(&mut client).await.len(), 4);
        let loaded = load(&engine).await;
        let ending = loaded.entries.iter().filter_map(|it| it.expires_at_ms);
        assert_eq!(ending.count(), 7);
    });
}

/// To revoke a lease deletes all that has it.
#[test]
fn what_is_written_anew_takes_nothing_with_it_that_had_the_same_lease() {
    with_server(async |server: EtcdServer| {
        only_the_last_takes_its_lease_with_it(&server).await;
    });
}

/// What has a lease, only the leader tells.
#[test]
fn a_lease_of_several_is_given_back_through_a_member_that_does_not_lead() {
    run(async {
        let Some(program) = program("etcd") else {
            return;
        };
        let members = members::cluster(&program).await;
        let other = (members::leader(&members).await + 1) % members.len();
        only_the_last_takes_its_lease_with_it(&members[other]).await;
    });
}

async fn only_the_last_takes_its_lease_with_it(server: &EtcdServer) {
    let engine = server.engine(&server.address(), "anew");
    let mut follower = Follower::start(&engine).await;
    let mut client = server.client(None).await;
    let three = ["a", "b", "c"].map(|key| set_for(ONE, key, "v", HOUR));
    let at = write(&engine, three.into()).await;
    follower.reaches(at).await;
    let lease = lease_of(&mut client, "anew/one/a").await;
    for _ in 0..2 {
        let at = write(&engine, vec![set_for(ONE, "a", "anew", HOUR)]).await;
        follower.reaches(at).await;
    }
    until_others_are_given_back(&engine, &mut follower, &mut client, "anew").await;
    assert_eq!(load(&engine).await.entries.len(), 3);
    assert_eq!(
        keys_of(&mut client, lease).await,
        ["anew/one/b", "anew/one/c"]
    );
    write(&engine, vec![set(ONE, "b", "anew")]).await;
    write(&engine, vec![delete(ONE, "c")]).await;
    until_given_back(&mut client, lease).await;
    let loaded = load(&engine).await.entries;
    let keys: Vec<_> = loaded.iter().map(|entry| &*entry.key).collect();
    assert_eq!(keys, ["a", "b"]);
    // Of what it was asked with, nothing stays.
    let below = GetOptions::new().with_prefix().with_keys_only();
    let marks = client.get("anew//", Some(below)).await.expect("it answers");
    assert_eq!(marks.count(), 0);
}

/// Its own are all that a proxy knows of what a transaction has written.
#[test]
fn who_replaces_all_it_knows_of_a_lease_takes_nothing_from_a_bucket_it_does_not_follow() {
    with_server(async |server: EtcdServer| {
        let author = server.engine(&server.address(), "two");
        let mut client = server.client(None).await;
        let writes = [(ONE, "a"), (ONE, "b"), (TWO, "c")];
        let writes = writes.map(|(bucket, key)| set_for(bucket, key, "v", HOUR));
        write(&author, writes.into()).await;
        let lease = lease_of(&mut client, "two/two/c").await;
        let engine = server.engine(&server.address(), "two");
        let followed: [Box<str>; 1] = [ONE.into()];
        let loaded = engine.load(&followed).await.expect("it is loaded");
        let mut follower = Follower::from(&engine, &followed, &loaded);
        let anew = ["a", "b"].map(|key| set_for(ONE, key, "anew", HOUR));
        let at = write(&engine, anew.into()).await;
        follower.reaches(at).await;
        assert_eq!(keys_of(&mut client, lease).await, ["two/two/c"]);
        until_others_are_given_back(&engine, &mut follower, &mut client, "two").await;
        assert_eq!(load(&author).await.entries.len(), 3);
        assert_eq!(keys_of(&mut client, lease).await, ["two/two/c"]);
        // Who replaces that one gives it back.
        let other = server.engine(&server.address(), "two");
        let _follower = Follower::start(&other).await;
        write(&other, vec![delete(TWO, "c")]).await;
        until_given_back(&mut client, lease).await;
        assert_eq!(load(&author).await.entries.len(), 2);
    });
}

#[test]
fn a_lease_is_given_back_when_its_entry_is_written_anew() {
    with_server(async |server: EtcdServer| {
        let engine = server.engine(&server.address(), "leases");
        let mut follower = Follower::start(&engine).await;
        let mut client = server.client(None).await;
        for round in 0..4 {
            let at = write(
                &engine,
                vec![
                    set_for(ONE, "touched", &format!("{round}"), 2 * HOUR),
                    set_for(ONE, &format!("{round}"), "v", HOUR),
                ],
            )
            .await;
            follower.reaches(at).await;
        }
        let refused = commit(
            &engine,
            vec![at(ONE, "0", None)],
            vec![set_for(ONE, "0", "v", HOUR)],
        )
        .await;
        assert!(matches!(refused, Ok(Outcome::Conflict(_))), "{refused:?}");
        write(&engine, vec![delete(ONE, "1"), set(ONE, "2", "stays")]).await;
        // `touched`, `0` and `3` have one each.
        let given_back = async {
            while client.leases().await.expect("it answers").leases().len() != 3 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, given_back)
            .await
            .expect("they are given back");
        assert_eq!(load(&engine).await.entries.len(), 4);
    });
}

/// As a proxy loads at its start, and at a reload that adds a bucket.
#[test]
fn to_load_one_bucket_forgets_no_lease_of_another() {
    with_server(async |server: EtcdServer| {
        let engine = server.engine(&server.address(), "apart");
        let writes = [ONE, TWO].map(|bucket| set_for(bucket, "k", "v", HOUR));
        write(&engine, writes.into()).await;
        let loading = server.engine(&server.address(), "apart");
        let mut endings = Vec::new();
        for bucket in buckets() {
            let loaded = loading.load(std::slice::from_ref(&bucket)).await;
            let entries = loaded.expect("it is loaded").entries;
            endings.extend(entries.into_iter().map(|entry| Ending {
                bucket: entry.bucket,
                key: entry.key,
                revision: entry.revision,
                expires_at_ms: entry.expires_at_ms.expect("it ends"),
            }));
        }
        let left = loading.left(&endings).await.expect("it answers");
        let are_known = left.iter().all(|left| matches!(left, Left::Longer(_)));
        assert!(left.len() == 2 && are_known, "{left:?}");
    });
}

/// As after a reload that failed: what it loaded is followed by nobody, so the log tells of no end.
#[test]
fn a_lease_that_is_gone_is_forgotten_though_nobody_follows_its_entry() {
    with_server(async |server: EtcdServer| {
        let writing = server.engine(&server.address(), "gone");
        let short = Duration::from_secs(5);
        let writes = [set_for(ONE, "k", "v", short), set(TWO, "k", "v")];
        write(&writing, writes.into()).await;
        let engine = server.engine(&server.address(), "gone");
        let loaded = load(&engine).await;
        assert_eq!((loaded.entries.len(), engine.known_leases()), (2, 1));
        let mut follower = Follower::from(&engine, &[TWO.into()], &loaded);
        let forgotten = async {
            while engine.known_leases() > 0 {
                assert!(follower.next().await, "a gap instead of an end");
            }
        };
        timeout(SOON, forgotten).await.expect("it is forgotten");
    });
}

/// Asked for so many leases at once, a server refuses everything: "too many requests".
#[test]
fn as_many_entries_that_end_as_a_raised_limit_takes_are_written_at_once() {
    run(async {
        let Some(server) = EtcdServer::alone(&["--max-txn-ops=12000"], false).await else {
            return;
        };
        let mut settings = server.settings(&server.address(), "many");
        settings.transaction_writes_max = 12_000;
        let engine = Etcd::new(settings).expect("the settings are right");
        // Each with a lease of its own.
        let ttl = |key: u64| HOUR + Duration::from_secs(key);
        let writes = (0..10_000).map(|key| set_for(ONE, &key.to_string(), "v", ttl(key)));
        write(&engine, writes.collect()).await;
        assert_eq!(load(&engine).await.entries.len(), 10_000);
    });
}
