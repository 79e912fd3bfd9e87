//! Endpoints over TLS: who they have to be, and what goes through.

use crate::harness::certificates::Root;
use crate::harness::{Request, Setup, TestProxy, TestUpstream, noise, websocket};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, crypto};

impl Root {
    /// A server that shows a certificate for these names, and hands what is in TLS to an upstream.
    async fn front(&self, names: &[&str], upstream: &TestUpstream) -> Front {
        let shown = self.signed(names);
        let key = PrivateKeyDer::try_from(shown.key.serialize_der()).expect("a key");
        let config =
            ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![shown.chain.der().clone()], key)
                .expect("a certificate with its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound").to_string();
        let names: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
        let (to, seen) = (upstream.address, names.clone());
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), seen.clone());
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let name = tls.get_ref().1.server_name().map(str::to_owned);
                    seen.lock().expect("not poisoned").push(name);
                    let mut plain = TcpStream::connect(to).await.expect("connected");
                    let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
                });
            }
        });
        Front {
            address,
            names,
            task,
        }
    }
}

/// A server with TLS.
struct Front {
    address: String,
    /// What was asked for, by each connection that was made.
    names: Arc<Mutex<Vec<Option<String>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Front {
    fn names(&self) -> Vec<Option<String>> {
        self.names.lock().expect("not poisoned").clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A proxy that trusts a root, and routes by `x-key`.
async fn trusting(root: &Root) -> TestProxy {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("ca.pem"), root.pem()).expect("written");
    let rest = "[upstream_tls]\nca = \"ca.pem\"\n[buckets.upstreams]\n\
                [plugins.by-key]\nsource = \"builtin:by-header\"\nbuckets = { upstreams = \"read\" }\n\
                settings = { header = \"x-key\", port-header = \"\" }\nlimits = { deadline = \"1s\" }\n\
                [[route]]\nname = \"by-key\"\nplugin = \"by-key\"\n";
    std::fs::write(
        dir.path().join("throwbar.toml"),
        Setup::new(rest).workers(1).text(),
    )
    .expect("written");
    TestProxy::start_in(dir, &["serve", "throwbar.toml"]).await
}

async fn put(proxy: &TestProxy, key: &str, value: &Value) {
    let path = format!("/v1/kv/upstreams/{key}");
    let response = proxy.admin().put(&path, value.to_string()).await;
    assert!(response.status < 300, "{}", response.text());
}

#[tokio::test]
async fn requests_bodies_and_streams_go_through_tls() {
    let root = Root::new();
    let upstream = TestUpstream::echoing().await;
    let front = root.front(&["app.internal"], &upstream).await;
    let proxy = trusting(&root).await;
    let record = json!({"addresses": [front.address], "scheme": "https", "sni": "app.internal"});
    put(&proxy, "id1", &record).await;
    for length in [0, 1, 100, 70_000, 3_000_000] {
        let body = noise(length as u64, length);
        let request = Request::post("/", body.clone()).field("x-key", "id1");
        let response = proxy.send(request).await;
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.body == body, "{length} bytes came back as others");
    }
    // All by one connection, which asked for the name.
    assert_eq!(front.names(), [Some("app.internal".to_owned())]);

    let (echo, _closes) = websocket::echo().await;
    let front = root.front(&["127.0.0.1"], &echo).await;
    put(
        &proxy,
        "id2",
        &json!({"addresses": [front.address], "scheme": "https"}),
    )
    .await;
    let mut stream = websocket::open(proxy.address, &[("x-key", "id2")]).await;
    stream.echo("hello").await;
    stream.echo(&"long ".repeat(50_000)).await;
    let listed = proxy.admin().streams_are(1).await;
    assert_eq!(listed[0]["endpoint"], front.address);
    stream.close().await;
    proxy.admin().streams_are(0).await;
    // An address is asked for without a name, and checked nevertheless.
    assert_eq!(front.names(), [None]);
}

#[tokio::test]
async fn who_shows_another_certificate_gets_nothing() {
    let (root, other) = (Root::new(), Root::new());
    let upstream = TestUpstream::saying("secret").await;
    let right = root.front(&["app.internal"], &upstream).await;
    let unknown = other.front(&["app.internal", "127.0.0.1"], &upstream).await;
    let proxy = trusting(&root).await;
    let https = |address: &str, sni: Option<&str>| {
        let mut record = json!({"addresses": [address], "scheme": "https"});
        if let Some(sni) = sni {
            record["sni"] = sni.into();
        }
        record
    };
    let plain = TestUpstream::raw(|mut stream, _| async move {
        let refused = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
        let _ = stream.read_u8().await;
        let _ = stream.write_all(refused).await;
    })
    .await;
    for (address, sni, why) in [
        (&right.address, Some("other.internal"), "not valid for name"),
        (&right.address, None, "not valid for name"),
        (
            &unknown.address,
            Some("app.internal"),
            "invalid peer certificate",
        ),
        (
            &plain.address.to_string(),
            Some("app.internal"),
            "TLS with \"app.internal\"",
        ),
    ] {
        put(&proxy, "id1", &https(address, sni)).await;
        let response = proxy.get("/", &[("x-key", "id1")]).await;
        assert_eq!(response.status, 502, "{}", response.text());
        let id = response.header("x-request-id").to_owned();
        let line = proxy
            .access_line("the failed request", |line| line["id"] == id.as_str())
            .await;
        let error = line["error"].as_str().expect("an error");
        assert!(error.contains(why), "{error}");
    }
    assert!(upstream.received().is_empty());
    put(&proxy, "id1", &https(&right.address, Some("app.internal"))).await;
    assert_eq!(proxy.get("/", &[("x-key", "id1")]).await.text(), "secret");
    // A plain connection to the same address is another one.
    put(&proxy, "id1", &json!({"addresses": [right.address]})).await;
    assert_eq!(proxy.get("/", &[("x-key", "id1")]).await.status, 502);
}

#[tokio::test]
async fn a_file_without_certificates_is_a_problem_of_the_config() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("ca.pem"), "nothing").expect("written");
    for (file, said) in [
        ("ca.pem", "it has no certificate"),
        ("none.pem", "No such file"),
    ] {
        let rest = format!("[upstream_tls]\nca = {file:?}\n[[route]]\nto = \"127.0.0.1:1\"\n");
        std::fs::write(dir.path().join("throwbar.toml"), Setup::new(rest).text()).expect("written");
        let checked = crate::harness::proxy::run(dir.path(), &["check", "throwbar.toml"]).await;
        assert_ne!(checked.code, 0);
        let told = checked.stdout + &checked.stderr;
        assert!(told.contains(said), "{told}");
    }
}
