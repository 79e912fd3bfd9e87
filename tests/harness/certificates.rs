//! Certificates of a test's own.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
};

/// A root, and what it signs.
pub struct Root(CertifiedIssuer<'static, KeyPair>);

/// A certificate that a root has signed, and its key.
pub struct Signed {
    /// The certificate: there is none between it and the root.
    pub chain: Certificate,
    /// Its private key.
    pub key: KeyPair,
}

impl Root {
    /// A root of a name that no other has.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let mut root = CertificateParams::new(Vec::new()).expect("no names are no wrong names");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("root {}", &super::sha256(key.public_key_raw())[..16]);
        root.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(root, key).expect("a root can be made"))
    }

    /// It itself, as others are told of it.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names, that serves both sides.
    pub fn signed(&self, names: &[&str]) -> Signed {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let first = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names).expect("they are names");
        params.distinguished_name.push(DnType::CommonName, first);
        let key = KeyPair::generate().expect("a key can be made");
        let chain = params.signed_by(&key, &self.0).expect("it can be signed");
        Signed { chain, key }
    }
}
