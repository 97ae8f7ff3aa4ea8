//! Certificates for TLS, made for one test.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, Error, IsCa, Issuer, KeyPair};

/// A CA that signs for hosts of a test.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A CA of its own, which nobody trusts yet.
    ///
    /// # Panics
    /// If keys cannot be made.
    #[track_caller]
    pub fn new() -> Authority {
        Authority::make().expect("makes a CA")
    }

    fn make() -> Result<Authority, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { pem, issuer: Issuer::new(params, key) })
    }

    /// Makes `dir` a `--tls-dir` for a host that can be dialled by these names and addresses, and
    /// can dial. Returns it as the command line takes it.
    ///
    /// # Panics
    /// If it cannot be made.
    #[track_caller]
    pub fn equip(&self, dir: PathBuf, names: &[&str]) -> String {
        std::fs::create_dir_all(&dir).expect("a folder for certificates");
        std::fs::write(dir.join("ca-cert.pem"), &self.pem).expect("writes");
        for side in ["server", "client"] {
            self.sign(&dir, side, names).expect("makes certificates");
        }
        dir.into_os_string().into_string().expect("a plain path")
    }

    fn sign(&self, dir: &Path, side: &str, names: &[&str]) -> Result<(), Error> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        let write = |what: &str, text: String| {
            std::fs::write(dir.join(format!("{side}-{what}.pem")), text).expect("writes");
        };
        write("cert", certificate.pem());
        write("key", key.serialize_pem());
        Ok(())
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}
