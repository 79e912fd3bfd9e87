//! The files of a TLS client, read once.

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
