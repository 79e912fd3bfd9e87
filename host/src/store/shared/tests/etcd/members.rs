//! Members that are killed, and clusters that are not the same.

use super::*;

#[test]
fn a_killed_leader_loses_no_acknowledged_write() {
    run(async {
        let Some(program) = program("etcd") else {
            return;
        };
        let mut members = cluster(&program).await;
        let addresses: Vec<_> = members.iter().map(Server::address).collect();
        let engine = |first: usize| {
            let mut settings = members[0].settings("", "cluster");
            settings.endpoints = addresses.clone();
            settings.endpoints.rotate_left(first);
            Etcd::new(settings).expect("the settings are right")
        };
        let engines = [engine(0), engine(1), engine(2)];
        let mut followers = Vec::new();
        for engine in &engines {
            followers.push(Follower::start(engine).await);
        }
        let mut expected = Vec::new();
        for round in 0..2 {
            for (number, engine) in engines.iter().enumerate() {
                let key = format!("{round}.{number}");
                let at = write_when_back(engine, vec![set(ONE, &key, "v")]).await;
                expected.push((at, key));
            }
            let leader = leader(&members).await;
            members[leader].kill();
            for (number, engine) in engines.iter().enumerate() {
                let key = format!("{round}.{number}.after");
                let at = write_when_back(engine, vec![set(ONE, &key, "v")]).await;
                expected.push((at, key));
            }
            members[leader].start_again().await;
        }
        for member in &mut members {
            member.kill();
        }
        let away = commit(&engines[0], vec![], vec![set(TWO, "away", "v")]).await;
        assert!(away.is_err(), "{away:?}");
        for member in &mut members {
            member.process = Process::start(&member.program, &member.arguments);
        }
        let at = write_when_back(&engines[0], vec![set(ONE, "back", "v")]).await;
        expected.push((at, "back".to_owned()));
        let newest = expected
            .iter()
            .map(|(at, _)| *at)
            .max()
            .expect("some were written");
        for follower in &mut followers {
            follower.reaches(newest).await;
            // A write whose answer was lost may be there twice, under other revisions.
            for (at, key) in &expected {
                let told = follower
                    .told
                    .iter()
                    .filter(|(revision, _)| *revision == at.0);
                let told: Vec<_> = told.flat_map(|(_, changes)| changes).collect();
                assert_eq!(told.len(), 1, "{at} {key}");
                assert_eq!(told[0].1, *key);
            }
        }
        assert_eq!(followers[0].told, followers[1].told);
        assert_eq!(followers[0].told, followers[2].told);
        assert_eq!(state(&load(&engines[0]).await), followers[0].state);
    });
}

pub(super) async fn cluster(program: &std::path::Path) -> Vec<EtcdServer> {
    loop {
        let places: Vec<_> = (0..3)
            .map(|member| (format!("m{member}"), free_port(), free_port()))
            .collect();
        let peers: Vec<_> = places
            .iter()
            .map(|(name, _, peer)| format!("{name}=http://127.0.0.1:{peer}"))
            .collect();
        let peers = format!("--initial-cluster={}", peers.join(","));
        let mut members: Vec<_> = places
            .iter()
            .map(|(name, client, peer)| {
                let folder = TempDir::new().expect("a folder can be made");
                let mut arguments = arguments(name, &folder, *client, *peer, false);
                arguments.push(peers.clone());
                EtcdServer::started(program.to_owned(), folder, *client, arguments)
            })
            .collect();
        let mut all = true;
        for member in &mut members {
            all &= member.is_ready().await;
        }
        if all {
            return members;
        }
    }
}

pub(super) async fn leader(members: &[EtcdServer]) -> usize {
    for (number, member) in members.iter().enumerate() {
        let mut client = member.client(None).await;
        let status = client.status().await.expect("it answers");
        if status.header().expect("answers have one").member_id() == status.leader() {
            return number;
        }
    }
    panic!("a cluster that answers has a leader");
}

#[test]
fn another_cluster_in_its_place_is_a_gap() {
    with_server(async |server: EtcdServer| {
        let Some(other) = EtcdServer::start().await else {
            return;
        };
        let relay = relay::Relay::start(server.address()).await;
        let engine = server.engine(&relay.address(), "cluster");
        let mut follower = Follower::start(&engine).await;
        let newest = write(&engine, vec![set(ONE, "old", "v")]).await;
        follower.reaches(newest).await;
        let direct = other.engine(&other.address(), "cluster");
        while write(&direct, vec![set(ONE, "new", "v")]).await <= newest {}
        relay.turn_to(other.address());
        relay.cut();
        relay.restore();
        follower.has_gap().await;
        let loaded = load(&engine).await;
        assert_eq!(loaded.entries.len(), 1);
        assert_eq!(*loaded.entries[0].key, *"new");
    });
}
