//! How fast a bulk channel is, plain and with TLS: from one thread to another over loopback TCP,
//! in turns. `cargo run --release -p godwit-migration --example streams [MIB] [ROUNDS]`

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use godwit_migration::limits::RUN_BYTES_MAX;
use godwit_migration::transport::{Listener, Stream, TlsAcceptor, TlsConnector};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<usize>());
    let bytes = numbers.next().transpose()?.unwrap_or(2048) << 20;
    let rounds = numbers.next().transpose()?.unwrap_or(5);
    let dir = tempfile::tempdir()?;
    make_certificates(dir.path())?;
    let (connector, acceptor) = (TlsConnector::load(dir.path())?, TlsAcceptor::load(dir.path())?);
    println!("MB/s of {} MiB in runs of {} KiB", bytes >> 20, RUN_BYTES_MAX >> 10);
    println!("{:>8} {:>8}", "plain", "TLS");
    for _ in 0..rounds {
        let plain = measure(bytes, None)?;
        let tls = measure(bytes, Some((&connector, &acceptor)))?;
        println!("{plain:>8.0} {tls:>8.0}");
    }
    Ok(())
}

/// A CA, and one certificate of it for both sides.
fn make_certificates(dir: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(dir.join("ca-cert.pem"), params.self_signed(&key)?.pem())?;
    let authority = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &authority)?;
    for side in ["server", "client"] {
        std::fs::write(dir.join(format!("{side}-cert.pem")), certificate.pem())?;
        std::fs::write(dir.join(format!("{side}-key.pem")), key.serialize_pem())?;
    }
    Ok(())
}

/// Megabytes a second of a stream of `bytes`.
fn measure(bytes: usize, tls: Option<(&TlsConnector, &TlsAcceptor)>) -> Result<f64> {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse()?)?;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| -> Result<f64> {
            let mut stream = listener.accept()?;
            if let Some((_, acceptor)) = tls {
                stream = acceptor.accept(stream)?;
            }
            stream.bound_bulk_buffers()?;
            let (mut run, begin) = (vec![0; RUN_BYTES_MAX], Instant::now());
            let mut received = 0;
            while stream.receive_exact_or_end(&mut run)? {
                received += run.len();
            }
            #[expect(clippy::cast_precision_loss)]
            Ok(received as f64 / begin.elapsed().as_secs_f64() / 1e6)
        });
        let connector = tls.map(|(connector, _)| connector);
        let stream = Stream::connect(listener.address(), Duration::from_secs(5), connector)?;
        stream.bound_bulk_buffers()?;
        let run = vec![0x5a; RUN_BYTES_MAX];
        for _ in 0..bytes / RUN_BYTES_MAX {
            stream.send(&run, false)?;
        }
        drop(stream);
        receiving.join().expect("the receiver does not panic")
    })
}
