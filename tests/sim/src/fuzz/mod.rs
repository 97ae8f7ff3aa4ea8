//! What a fuzzer feeds: any bytes are what a peer sends. Whatever they are, nothing panics, what
//! is taken in is inside its limits, and everybody comes to an end. Inputs that once did something
//! else are kept in `tests/fuzz/regressions`, and repeated by a test of this crate.

mod bitmap;
mod frames;
mod handshake;
mod hostile;
mod words;

pub use bitmap::bitmap;
pub use frames::frames;
pub use handshake::handshake;
pub use hostile::destination;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    use crate::rng::Rng;

    type Target = (&'static str, fn(&[u8]));

    const TARGETS: [Target; 4] = [
        ("frames", frames),
        ("handshake", handshake),
        ("bitmap", bitmap),
        ("destination", destination),
    ];

    #[test]
    fn kept_inputs_pass() {
        for (target, run) in TARGETS {
            let folder =
                PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/regressions").join(target);
            let files: Vec<_> = fs::read_dir(&folder).expect("a folder of inputs").collect();
            assert!(!files.is_empty(), "no inputs of {target}");
            for file in files {
                let path = file.expect("a file").path();
                eprintln!("{}", path.display());
                run(&fs::read(&path).expect("an input"));
            }
        }
    }

    #[test]
    fn random_bytes_pass() {
        let mut rng = Rng::new(1);
        for (_, run) in TARGETS {
            for length in 0..250 {
                let bytes: Vec<u8> = (0..length).map(|_| rng.byte()).collect();
                run(&bytes);
            }
        }
    }
}
