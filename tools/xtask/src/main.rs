//! What the Makefile calls: `cargo xtask tidy`.

mod tidy;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy::run(root()),
        _ => {
            eprintln!("usage: cargo xtask tidy    checks the rules of STYLE.md in all sources");
            ExitCode::from(2)
        }
    }
}

/// The root of the repository, which holds this crate two folders down.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the crate lies in tools/xtask")
}
