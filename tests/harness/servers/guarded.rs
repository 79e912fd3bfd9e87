//! Servers that want TLS of both sides, and a login.

use super::super::certificates::{Root, Signed};
use super::{Engine, Server, etcd, free_port};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::path::Path;

/// The password of the user `proxy` of a guarded server.
pub const PASSWORD: &str = "hunter2-of-a-guarded-server";
/// What a config says of a guarded server beside its address.
pub(super) const CONFIG: &str = r#"user = "proxy"
password = "${file:store.password}"
tls = { ca = "ca.pem", certificate = "proxy.pem", key = "proxy.key" }
"#;

/// Another door of a server: with TLS that both sides have to show certificates for. Tests themselves use the other one.
pub(super) struct Guard {
    pub(super) port: u16,
    root: Root,
}

impl Server {
    /// Starts one for proxies that have TLS and a login, with rights on keys of the usual prefix only; see [`Server::equip`].
    pub async fn start_guarded(engine: Engine) -> Option<Self> {
        let server = Self::start_all(engine, 1, None, true).await?.pop()?;
        server.want_login().await;
        Some(server)
    }

    /// Puts what the config of a guarded server names where a proxy is to run.
    pub fn equip(&self, dir: &Path) {
        let Guard { root, .. } = self.place.guard.as_ref().expect("it is guarded");
        let proxy = root.signed(&["edge-1"]);
        let write = |name: &str, text: String| std::fs::write(dir.join(name), text);
        write("ca.pem", root.pem()).expect("written");
        write("proxy.pem", proxy.chain.pem()).expect("written");
        write("proxy.key", proxy.key.serialize_pem()).expect("written");
        write("store.password", format!("{PASSWORD}\n")).expect("written");
    }

    /// Makes it refuse all but its own administrator, and the user `proxy` of the usual prefix.
    async fn want_login(&self) {
        let port = self.place.ports[0];
        if self.place.engine == Engine::Redis {
            let rights = "~{throwbar}:* resetchannels +@all -@dangerous +role";
            self.does(&format!("ACL SETUSER proxy on >{PASSWORD} {rights}"))
                .await;
            return self.does("ACL SETUSER default off").await;
        }
        let (first, end) = (STANDARD.encode("throwbar/"), STANDARD.encode("throwbar0"));
        let right = json!({ "permType": "READWRITE", "key": first, "range_end": end });
        for (call, body) in [
            ("user/add", json!({ "name": "root", "password": "root" })),
            ("role/add", json!({ "name": "root" })),
            ("user/grant", json!({ "user": "root", "role": "root" })),
            ("user/add", json!({ "name": "proxy", "password": PASSWORD })),
            ("role/add", json!({ "name": "edge" })),
            ("role/grant", json!({ "name": "edge", "perm": right })),
            ("user/grant", json!({ "user": "proxy", "role": "edge" })),
            ("enable", json!({})),
        ] {
            let done = etcd(port, &format!("auth/{call}"), body).await;
            assert!(done["header"].is_object(), "{call}: {done}");
        }
    }
}

impl Guard {
    pub(super) fn new() -> Self {
        Self {
            port: free_port(),
            root: Root::new(),
        }
    }

    /// What a server is told of it, with its files in a directory; and of the door without it.
    pub(super) fn arguments(&self, engine: Engine, dir: &Path, open: u16) -> Vec<String> {
        let Signed { chain, key } = self.root.signed(&["127.0.0.1"]);
        let write = |name: &str, text: String| {
            let file = dir.join(name);
            std::fs::write(&file, text).expect("written");
            file.display().to_string()
        };
        let ca = write("ca.pem", self.root.pem());
        let chain = write("server.pem", chain.pem());
        let key = write("server.key", key.serialize_pem());
        let port = self.port;
        match engine {
            Engine::Etcd => vec![
                // The last one counts.
                format!("--listen-client-urls=http://127.0.0.1:{open},https://127.0.0.1:{port}"),
                format!("--trusted-ca-file={ca}"),
                format!("--cert-file={chain}"),
                format!("--key-file={key}"),
                "--client-cert-auth".to_owned(),
            ],
            Engine::Redis => [
                ("--tls-port", port.to_string()),
                ("--tls-ca-cert-file", ca),
                ("--tls-cert-file", chain),
                ("--tls-key-file", key),
            ]
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect(),
        }
    }
}
