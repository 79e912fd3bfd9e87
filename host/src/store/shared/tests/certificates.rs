//! Certificates for servers and proxies of a test.

use crate::store::shared::settings::{ClientCertificate, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::path::{Path, PathBuf};

/// Files of a root, and of a certificate for 127.0.0.1 and `localhost` that serves both sides.
pub(super) struct Certificates {
    pub(super) ca: PathBuf,
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
}

impl Certificates {
    pub(super) fn make(folder: &Path) -> Self {
        let mut root = CertificateParams::new(Vec::new()).expect("no names are no wrong names");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name
            .push(DnType::CommonName, "root of a test");
        let key = KeyPair::generate().expect("a key can be made");
        let root = CertifiedIssuer::self_signed(root, key).expect("a root can be made");
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let params = CertificateParams::new(names).expect("they are names");
        let key = KeyPair::generate().expect("a key can be made");
        let chain = params.signed_by(&key, &root).expect("it can be signed");
        let write = |name: &str, text: String| {
            let file = folder.join(name);
            std::fs::write(&file, text).expect("the folder can be written");
            file
        };
        Self {
            ca: write("ca.pem", root.pem()),
            chain: write("chain.pem", chain.pem()),
            key: write("key.pem", key.serialize_pem()),
        }
    }

    /// As a proxy is told of them.
    pub(super) fn files(&self) -> TlsFiles {
        TlsFiles {
            ca: Some(self.ca.clone()),
            certificate: Some(ClientCertificate {
                chain: self.chain.clone(),
                key: self.key.clone(),
            }),
        }
    }
}
