//! The files of a TLS client, read once, and what is told of them when a handshake fails.

use super::EngineError;
use super::settings::TlsFiles;
use std::path::Path;

/// What is in [`TlsFiles`].
pub(super) struct Pem {
    pub(super) ca: Option<Vec<u8>>,
    /// Chain and key.
    pub(super) certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl Pem {
    /// Reads the files, and makes sure that rustls knows its one crypto provider.
    pub(super) fn read(files: &TlsFiles) -> Result<Self, EngineError> {
        // Fails if there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificate = match &files.certificate {
            Some(files) => Some((
                read("tls.certificate", &files.chain)?,
                read("tls.key", &files.key)?,
            )),
            None => None,
        };
        let ca = files.ca.as_deref().map(|path| read("tls.ca", path));
        Ok(Self {
            ca: ca.transpose()?,
            certificate,
        })
    }
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>, EngineError> {
    let refused = |reason: String| {
        EngineError::Refused(format!("`{setting}`: file {}: {reason}", path.display()))
    };
    let bytes = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    if !bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        return Err(refused("expected PEM".into()));
    }
    Ok(bytes)
}

/// What to do about a handshake that failed, if its error is about a certificate that settings are about.
pub(super) fn advice(error: &str, table: &str) -> Option<String> {
    let says = |parts: &[&str]| parts.iter().any(|part| error.contains(part));
    // How rustls begins what it finds, and what it is told.
    if says(&["invalid peer certificate: "]) && says(&["UnknownIssuer", "BadSignature"]) {
        Some(format!(
            "the server's certificate comes from nobody who is trusted: see `tls.ca` of [{table}]"
        ))
    } else if says(&["received fatal alert: "]) && says(&["Certificate", "UnknownCA"]) {
        Some(format!(
            "the server does not take what it is shown: see `tls.certificate` and `tls.key` of [{table}]"
        ))
    } else {
        None
    }
}

/// What to do about a server that speaks TLS and broke off a connection, if its error says only that: one that asks for a
/// certificate may be gone before its reason is read.
pub(super) fn advice_if_closed(error: &str, files: &TlsFiles, table: &str) -> Option<String> {
    let error = error.to_lowercase();
    let closed = [
        "closed",
        "broken pipe",
        "reset by peer",
        "eof",
        "end of file",
    ];
    let is_closed = closed.iter().any(|words| error.contains(words));
    (is_closed && files.certificate.is_none()).then(|| {
        format!(
            "the server ended the connection: if it wants a certificate, set `tls.certificate` and `tls.key` of [{table}]"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{advice, advice_if_closed};
    use crate::store::shared::settings::{ClientCertificate, TlsFiles};

    #[test]
    fn who_shows_no_certificate_is_told_that_one_may_be_wanted() {
        let none = TlsFiles::default();
        for (error, is_closed) in [
            ("connection closed", true),
            ("stream closed because of a broken pipe", true),
            ("Connection reset by peer (os error 104)", true),
            ("tls handshake eof", true),
            ("unexpected end of file", true),
            ("invalid peer certificate: Expired", false),
            ("Connection refused (os error 111)", false),
        ] {
            let told = advice_if_closed(error, &none, "t");
            assert_eq!(told.is_some(), is_closed, "{error}: {told:?}");
        }
        let shown = TlsFiles {
            certificate: Some(ClientCertificate {
                chain: "proxy.pem".into(),
                key: "proxy.key".into(),
            }),
            ..none
        };
        assert_eq!(advice_if_closed("connection closed", &shown, "t"), None);
    }

    #[test]
    fn what_is_told_names_the_files_that_it_is_about() {
        let (ca, own) = ("`tls.ca` of [t]", "`tls.certificate` and `tls.key` of [t]");
        for (error, files) in [
            ("invalid peer certificate: UnknownIssuer", Some(ca)),
            ("invalid peer certificate: BadSignature", Some(ca)),
            ("received fatal alert: UnknownCA", Some(own)),
            ("received fatal alert: CertificateRequired", Some(own)),
            ("received fatal alert: BadCertificate", Some(own)),
            // These say it themselves, or are about something else.
            ("invalid peer certificate: Expired", None),
            ("received fatal alert: HandshakeFailure", None),
            ("connection closed", None),
        ] {
            let told = advice(error, "t");
            let fits = match (&told, files) {
                (Some(told), Some(files)) => told.ends_with(files),
                (told, files) => told.is_none() && files.is_none(),
            };
            assert!(fits, "{error}: {told:?}");
        }
    }
}
