//! What the process says about itself, on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Phase changes and warnings; with `verbose`, more. `GODWIT_LOG` overrides both.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("GODWIT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .compact()
        .init();
}
