//! What goes wrong between two sides that want TLS, in words that say what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustls::pki_types::pem;
use rustls::{AlertDescription as Alert, CertificateError, Error};

/// Why certificates or keys could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// The file is missing or not readable.
    #[error("cannot read {path}: a {side} needs ca-cert.pem, {side}-cert.pem and {side}-key.pem")]
    Read {
        /// The file.
        path: PathBuf,
        /// `server` or `client`.
        side: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It is not PEM.
    #[error("{path} is damaged: it has to be PEM")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// It has sections, or none, and none of them is wanted.
    #[error("{path} has no section `BEGIN {wanted}`")]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it has to have.
        wanted: &'static str,
    },
    /// Its contents cannot be used, or do not belong to each other.
    #[error("{path} cannot be used")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Error,
    },
    /// No descriptor to be had.
    #[error("TLS cannot be set up")]
    System(#[source] io::Error),
}

/// The side of a connection on which something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Dials: the source of a migration.
    Client,
    /// Listens: the receiver.
    Server,
}

impl Side {
    fn peer(self) -> &'static str {
        match self {
            Side::Client => "the receiver",
            Side::Server => "the source",
        }
    }
}

/// Why a connection with TLS failed. Travels inside an [`io::Error`].
#[derive(Clone, Debug)]
pub struct TlsError {
    side: Side,
    what: What,
}

/// What went wrong with TLS.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// The peer speaks this protocol, and without TLS.
    PeerIsPlain,
    /// The peer speaks something else, or no TLS 1.3.
    PeerIsStrange(Error),
    /// The peer's certificate is refused here.
    Refused(CertificateError),
    /// The peer has no certificate.
    NoCertificate,
    /// The peer refuses the certificate of this host.
    RefusedThere(Alert),
    /// The peer ended the connection for another reason.
    EndedThere(Alert),
    /// The peer closed the connection in the middle of the handshake.
    HungUp,
    /// The stream ended, and the peer had not said that it would.
    Cut,
    /// Anything else: records that were changed on the way, or a peer that breaks the rules.
    Broken(Error),
}

impl TlsError {
    pub(super) fn new(side: Side, what: What) -> TlsError {
        TlsError { side, what }
    }

    pub(super) fn from_rustls(side: Side, error: Error) -> TlsError {
        let what = match error {
            Error::InvalidCertificate(error) => What::Refused(error),
            Error::NoCertificatesPresented => What::NoCertificate,
            Error::AlertReceived(alert) if is_about_certificates(alert) => {
                What::RefusedThere(alert)
            }
            Error::AlertReceived(alert) => What::EndedThere(alert),
            error @ (Error::InvalidMessage(_) | Error::PeerIncompatible(_)) => {
                What::PeerIsStrange(error)
            }
            error => What::Broken(error),
        };
        TlsError::new(side, what)
    }

    /// Whether `error` carries one.
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<TlsError>())
    }
}

/// Alerts by which a peer refuses a certificate. A signature that a CA of the same name did not
/// make is answered with `DecryptError`.
fn is_about_certificates(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
    )
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.side.peer();
        match &self.what {
            What::PeerIsPlain => {
                let command = match self.side {
                    Side::Client => "receive",
                    Side::Server => "migrate",
                };
                write!(f, "{peer} does not use TLS: give --tls-dir to `godwit {command}` as well")
            }
            What::PeerIsStrange(error) => write!(f, "{peer} does not speak TLS 1.3: {error}"),
            What::Refused(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                write!(f, "the certificate of {peer} is not signed by the CA in ca-cert.pem here")
            }
            What::Refused(error) => write!(f, "the certificate of {peer} is refused: {error}"),
            What::NoCertificate => write!(f, "{peer} presents no certificate"),
            What::RefusedThere(alert) => {
                write!(f, "{peer} refuses the certificate of this host: ")?;
                match alert {
                    Alert::UnknownCA | Alert::DecryptError => {
                        write!(f, "it is not signed by the CA in ca-cert.pem there")
                    }
                    Alert::CertificateExpired => write!(f, "it is out of date by the clock there"),
                    Alert::CertificateRequired => write!(f, "it was not presented"),
                    other => write!(f, "{other:?}"),
                }
            }
            What::EndedThere(alert) => write!(f, "{peer} ended TLS: {alert:?}"),
            What::HungUp => write!(f, "{peer} closed the connection during the TLS handshake"),
            What::Cut => write!(f, "the connection was cut: {peer} did not end it"),
            What::Broken(error) => write!(f, "TLS failed: {error}"),
        }
    }
}

impl std::error::Error for TlsError {}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> io::Error {
        let kind = match error.what {
            What::Cut => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}
