//! The ways there: a login, TLS.

use super::*;

#[test]
fn a_login_is_checked_and_renewed() {
    run(async {
        let Some(mut server) = EtcdServer::alone(&["--auth-token-ttl=1"], false).await else {
            return;
        };
        let mut client = server.client(None).await;
        client
            .user_add("root", "secret", None)
            .await
            .expect("it is added");
        client.role_add("root").await.expect("it is added");
        client
            .user_grant_role("root", "root")
            .await
            .expect("it is granted");
        client.auth_enable().await.expect("it is enabled");
        let engine = |password: Option<&str>| {
            let mut settings = server.settings(&server.address(), "login");
            settings.credentials = password.map(|password| Credentials {
                user: Some("root".into()),
                password: password.into(),
            });
            Etcd::new(settings).expect("the settings are right")
        };
        for wrong in [None, Some("wrong")] {
            let error = engine(wrong).load(&buckets()).await;
            assert!(
                matches!(error, Err(EngineError::Refused(_))),
                "{wrong:?} {error:?}"
            );
            let error = commit(&engine(wrong), vec![], vec![set(ONE, "a", "v")]).await;
            assert!(
                matches!(error, Err(EngineError::Refused(_))),
                "{wrong:?} {error:?}"
            );
        }
        let right = engine(Some("secret"));
        write(&right, vec![set(ONE, "a", "1")]).await;
        // Longer than its token is good for; there is no event to await.
        tokio::time::sleep(Duration::from_secs(3)).await;
        write(&right, vec![set(ONE, "a", "2")]).await;
        let mut follower = Follower::start(&right).await;
        server.kill();
        follower.is_lost().await;
        // It knows no token any longer.
        server.start_again().await;
        let newest = write_when_back(&right, vec![set(ONE, "a", "3")]).await;
        follower.reaches(newest).await;
        assert_eq!(follower.value(ONE, "a"), Some(&b"3"[..]));
    });
}

#[test]
fn tls_is_checked_on_both_sides() {
    run(async {
        let Some(server) = EtcdServer::alone(&[], true).await else {
            return;
        };
        let engine = server.engine(&server.address(), "tls");
        let mut follower = Follower::start(&engine).await;
        let newest = write(&engine, vec![set(ONE, "a", "v")]).await;
        follower.reaches(newest).await;
        let mut without = server.settings(&server.address(), "tls");
        without.tls.as_mut().expect("it has TLS").certificate = None;
        let mut unknown = server.settings(&server.address(), "tls");
        unknown.tls.as_mut().expect("it has TLS").ca = None;
        let mut plain = server.settings(&server.address(), "tls");
        plain.tls = None;
        let error = async |settings| {
            let engine = Etcd::new(settings).expect("the settings are right");
            commit(&engine, vec![], vec![set(ONE, "a", "w")])
                .await
                .err()
        };
        let reason = error(unknown).await;
        assert!(
            matches!(&reason, Some(EngineError::Refused(reason)) if reason.contains("certificate")),
            "{reason:?}"
        );
        // How the end of a handshake is seen depends on who is faster.
        for settings in [without, plain] {
            let reason = error(settings).await;
            assert!(
                matches!(
                    reason,
                    Some(EngineError::Refused(_) | EngineError::Unavailable(_))
                ),
                "{reason:?}"
            );
        }
        let mut missing = server.settings(&server.address(), "tls");
        missing.tls.as_mut().expect("it has TLS").ca = Some("missing.pem".into());
        let error = Etcd::new(missing).err();
        assert!(
            matches!(&error, Some(EngineError::Refused(reason)) if reason.contains("missing.pem")),
            "{error:?}"
        );
    });
}
