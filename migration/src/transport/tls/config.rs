//! Certificates and keys from a directory, and what both sides make of them.
//!
//! The directory has the files that Cloud Hypervisor calls `tls_dir`: `ca-cert.pem` on both sides,
//! `server-cert.pem` and `server-key.pem` where a guest arrives, `client-cert.pem` and
//! `client-key.pem` where it leaves. A host that does both has all five. They are read once.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::error::TlsFileError;
use super::session::{Connection, Session};
use super::stream::TlsStream;
use crate::transport::{Address, Stream};

/// The name that a receiver's certificate has to have where no host was dialled.
const NAME_OF_UNIX_SOCKETS: &str = "localhost";

/// What a source needs to dial with TLS.
#[derive(Clone)]
pub struct TlsConnector {
    pub(super) config: Arc<ClientConfig>,
    ready: Arc<OwnedFd>,
}

/// What a receiver needs to let in only those who have a certificate of its CA.
#[derive(Clone)]
pub struct TlsAcceptor {
    config: Arc<ServerConfig>,
    ready: Arc<OwnedFd>,
}

impl TlsConnector {
    /// Reads `ca-cert.pem`, `client-cert.pem` and `client-key.pem` in `dir`.
    ///
    /// # Errors
    /// A file that is missing, not readable, or not what it has to be.
    pub fn load(dir: &Path) -> Result<TlsConnector, TlsFileError> {
        TlsConnector::load_with(dir, provider())
    }

    pub(super) fn load_with(
        dir: &Path,
        provider: Arc<CryptoProvider>,
    ) -> Result<TlsConnector, TlsFileError> {
        let files = Files { dir, side: "client" };
        let roots = files.roots()?;
        let unusable = |source| TlsFileError::Unusable { path: files.certificate_path(), source };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(files.certificates()?, files.key()?)
            .map_err(unusable)?;
        config.resumption = Resumption::disabled();
        Ok(TlsConnector { config: Arc::new(config), ready: ready()? })
    }

    /// Makes sure that `stream` leads to who was dialled, within the time for preambles. A peer
    /// that refuses this side says so later: the first receive is its answer.
    ///
    /// # Errors
    /// A host that no certificate can name; a peer without TLS; a peer that is refused.
    pub(in crate::transport) fn connect(
        &self,
        stream: Stream,
        address: &Address,
    ) -> io::Result<Stream> {
        let host = match address {
            Address::Tcp { host, .. } => host.as_str(),
            Address::Unix(_) => NAME_OF_UNIX_SOCKETS,
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::other(format!("no certificate can name the host `{host}`")))?;
        let client = UnbufferedClientConnection::new(Arc::clone(&self.config), name)
            .map_err(io::Error::other)?;
        let session = Session::new(Connection::Client(client));
        let tls = TlsStream::handshake(session, stream.fd(), Arc::clone(&self.ready))?;
        Ok(stream.secured(tls))
    }
}

impl TlsAcceptor {
    /// Reads `ca-cert.pem`, `server-cert.pem` and `server-key.pem` in `dir`.
    ///
    /// # Errors
    /// A file that is missing, not readable, or not what it has to be.
    pub fn load(dir: &Path) -> Result<TlsAcceptor, TlsFileError> {
        let files = Files { dir, side: "server" };
        let roots = Arc::new(files.roots()?);
        let unusable = |source| TlsFileError::Unusable { path: files.certificate_path(), source };
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .expect("there are roots, and no revocation lists");
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_single_cert(files.certificates()?, files.key()?)
            .map_err(unusable)?;
        // Whoever comes again shows its certificate again. And a ticket that nobody reads would
        // make the kernel reset a connection that is closed, with what is under way on it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor { config: Arc::new(config), ready: ready()? })
    }

    /// Lets the peer of `stream` prove who it is, within the time for preambles. Waits: not for an
    /// accept loop.
    ///
    /// # Errors
    /// A peer without TLS, without a certificate of our CA, too slow, or gone.
    pub fn accept(&self, stream: Stream) -> io::Result<Stream> {
        let server =
            UnbufferedServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        let session = Session::new(Connection::Server(server));
        let tls = TlsStream::handshake(session, stream.fd(), Arc::clone(&self.ready))?;
        Ok(stream.secured(tls))
    }
}

/// Chosen here and not by what else is in the process.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A descriptor that is always readable.
fn ready() -> Result<Arc<OwnedFd>, TlsFileError> {
    let ready = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    Ok(Arc::new(ready.map_err(|error| TlsFileError::System(error.into()))?))
}

/// The files of one side.
struct Files<'a> {
    dir: &'a Path,
    side: &'static str,
}

impl Files<'_> {
    fn roots(&self) -> Result<RootCertStore, TlsFileError> {
        let path = self.dir.join("ca-cert.pem");
        let mut roots = RootCertStore::empty();
        for certificate in self.read_certificates(&path)? {
            let unusable = |source| TlsFileError::Unusable { path: path.clone(), source };
            roots.add(certificate).map_err(unusable)?;
        }
        Ok(roots)
    }

    fn certificate_path(&self) -> PathBuf {
        self.dir.join(format!("{}-cert.pem", self.side))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
        self.read_certificates(&self.certificate_path())
    }

    fn read_certificates(&self, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
        let sections = CertificateDer::pem_file_iter(path).map_err(|e| self.failed(path, e))?;
        let certificates: Result<Vec<_>, _> = sections.collect();
        let certificates = certificates.map_err(|e| self.failed(path, e))?;
        match certificates.is_empty() {
            true => Err(TlsFileError::Empty { path: path.to_owned(), wanted: "CERTIFICATE" }),
            false => Ok(certificates),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsFileError> {
        let path = self.dir.join(format!("{}-key.pem", self.side));
        let key = PrivateKeyDer::from_pem_file(&path).map_err(|e| self.failed(&path, e))?;
        let unusable = |source| TlsFileError::Unusable { path: path.clone(), source };
        // Here and not with its certificate, so that the error names the file.
        ring::sign::any_supported_type(&key).map_err(unusable)?;
        Ok(key)
    }

    fn failed(&self, path: &Path, error: pem::Error) -> TlsFileError {
        let path = path.to_owned();
        match error {
            pem::Error::Io(source) => TlsFileError::Read { path, side: self.side, source },
            pem::Error::NoItemsFound => TlsFileError::Empty { path, wanted: "PRIVATE KEY" },
            source => TlsFileError::Damaged { path, source },
        }
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

impl fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsAcceptor").finish_non_exhaustive()
    }
}
