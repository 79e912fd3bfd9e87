//! TLS to endpoints: who is trusted, and the bridge by which a stream over TLS becomes a raw socket.
//!
//! An endpoint has to show a certificate for the name that the record gives, or the host that is dialled: nothing turns that
//! off. Protocols are TLS 1.2 and 1.3, HTTP/1.1 inside.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long the other direction may go on once one is over.
const HALF_CLOSED_MAX: Duration = Duration::from_secs(30);

/// Who is trusted beside the system's bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// A file of certificates in PEM.
    pub ca: Option<PathBuf>,
}

/// What connects over TLS. Certificates are read when the first connection is made, so that who makes none waits for none.
pub struct Tls {
    config: Config,
    /// Or why there is none.
    client: OnceCell<Result<Arc<ClientConfig>, String>>,
}

impl Tls {
    /// With the certificates of a config.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            client: OnceCell::new(),
        }
    }

    async fn client(&self) -> io::Result<Arc<ClientConfig>> {
        let make = || async {
            let config = self.config.clone();
            let made = tokio::task::spawn_blocking(move || client(&config)).await;
            made.unwrap_or_else(|error| Err(error.to_string()))
        };
        let client = self.client.get_or_init(make).await;
        client.clone().map_err(io::Error::other)
    }

    /// Makes a connection one over TLS, with who has to be there.
    ///
    /// # Errors
    /// If somebody else is there, or nobody who speaks TLS.
    pub(super) async fn connect(
        &self,
        tcp: TcpStream,
        name: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let connector = TlsConnector::from(self.client().await?);
        connector.connect(name, tcp).await
    }
}

fn client(config: &Config) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    // What of the system's is no certificate is trusted by nobody.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = &config.ca {
        for certificate in read(file)? {
            roots
                .add(certificate)
                .map_err(|error| refused(file, &error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(client))
}

/// The certificates in a file.
///
/// # Errors
/// If it cannot be read or has none.
pub fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = std::fs::read(file).map_err(|error| refused(file, &error.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(refused(file, "it has no certificate, expected some in PEM")),
        Err(error) => Err(refused(file, &error.to_string())),
    }
}

fn refused(file: &Path, why: &str) -> String {
    format!("file {}: {why}", file.display())
}

/// A raw socket whose other end a task joins to the connection, until both directions are over.
///
/// # Errors
/// If there is no descriptor left.
pub(super) fn bridge(tls: Box<TlsStream<TcpStream>>) -> io::Result<socket2::Socket> {
    let (ours, theirs) = UnixStream::pair()?;
    tokio::task::spawn_local(async move {
        let (mut from_endpoint, mut to_endpoint) = tokio::io::split(tls);
        let (mut from_stream, mut to_stream) = ours.into_split();
        // What fails ends that direction, which the other end sees.
        let up = async {
            let _ = copy(&mut from_stream, &mut to_endpoint).await;
            let _ = to_endpoint.shutdown().await;
        };
        let down = async {
            let _ = copy(&mut from_endpoint, &mut to_stream).await;
            let _ = to_stream.shutdown().await;
        };
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        tokio::select! {
            () = &mut up => drop(tokio::time::timeout(HALF_CLOSED_MAX, down).await),
            () = &mut down => drop(tokio::time::timeout(HALF_CLOSED_MAX, up).await),
        }
    });
    theirs.into_std().map(socket2::Socket::from)
}
