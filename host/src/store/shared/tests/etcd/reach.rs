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
        for (wrong, told) in [
            (None, "set `user` and `password` in [store.etcd]"),
            (Some("wrong"), "see `user` and `password` of [store.etcd]"),
        ] {
            let (loading, writing) = (engine(wrong), engine(wrong));
            let loaded = Box::pin(loading.load(&buckets())).await.err();
            let committed = commit(&writing, vec![], vec![set(ONE, "a", "v")]).await;
            for error in [loaded, committed.err()] {
                assert!(
                    matches!(&error, Some(EngineError::Refused(reason)) if reason.contains(told)),
                    "{wrong:?} {error:?}"
                );
            }
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
fn what_is_no_etcd_is_told() {
    with_server(async |server: EtcdServer| {
        let reason = async |settings: EtcdSettings| {
            let engine = Etcd::new(settings).expect("the settings are right");
            let error = engine.load(&buckets()).await;
            error.expect_err("refused").to_string()
        };
        let http = HttpServer::start().await;
        let mut settings = server.settings(&http.address, "none");
        let told = reason(settings.clone()).await;
        let expected = "an HTTP server answers there, which does not speak etcd";
        assert!(told.contains(expected), "{told}");
        assert!(http.asked.swap(false, Relaxed));
        // Nobody waits for what to say of it while another member answers.
        settings.endpoints.push(server.address());
        let engine = Etcd::new(settings).expect("the settings are right");
        assert_eq!(load(&engine).await.entries.len(), 0);
        assert!(!http.asked.load(Relaxed));
        let mut with_tls = server.settings(&server.address(), "none");
        with_tls.tls = Some(Default::default());
        let told = reason(with_tls).await;
        let expected = "without TLS: leave out `tls` of [store.etcd]";
        assert!(told.contains(expected), "{told}");
        let mut with_login = server.settings(&server.address(), "none");
        with_login.credentials = Some(Credentials {
            user: Some("root".into()),
            password: "secret".into(),
        });
        let told = reason(with_login).await;
        let expected = "leave out `user` and `password` of [store.etcd]";
        assert!(told.contains(expected), "{told}");
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
        let reason = error(plain).await.map(|error| error.to_string());
        let told = "the server there speaks TLS: set `tls` in [store.etcd]";
        assert!(
            reason.as_ref().is_some_and(|it| it.contains(told)),
            "{reason:?}"
        );
        // How the end of a handshake is seen depends on who is faster.
        let reason = error(without).await;
        assert!(
            matches!(
                reason,
                Some(EngineError::Refused(_) | EngineError::Unavailable(_))
            ),
            "{reason:?}"
        );
        let mut missing = server.settings(&server.address(), "tls");
        missing.tls.as_mut().expect("it has TLS").ca = Some("missing.pem".into());
        let error = Etcd::new(missing).err();
        assert!(
            matches!(&error, Some(EngineError::Refused(reason)) if reason.contains("missing.pem")),
            "{error:?}"
        );
    });
}
