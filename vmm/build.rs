//! Builds the bare guest and leaves its path in `GODWIT_GUEST_IMAGE`, so that the binary can embed
//! it.
//!
//! The guest is a workspace of its own with another target, so this calls cargo again, with a
//! target folder of its own (no lock is shared) and without the variables by which the outer build
//! would change how the guest is compiled. Then the guest's ring-0 code is disassembled: a vector
//! register there would stop the guest on hosts that interpret ring 0.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    match embed_guest() {
        Ok(image) => println!("cargo::rustc-env=GODWIT_GUEST_IMAGE={}", image.display()),
        Err(error) => println!("cargo::error={error}"),
    }
}

/// Builds and checks the guest, and tells cargo what it was made of.
fn embed_guest() -> Result<PathBuf, String> {
    let guest = variable("CARGO_MANIFEST_DIR")?.join("../guest-images/bare");
    for file in ["Cargo.toml", "Cargo.lock", "build.rs", "guest.ld", "src"] {
        println!("cargo::rerun-if-changed={}", guest.join(file).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let image = build_guest(&guest, &variable("OUT_DIR")?.join("guest"))?;
    for (section, options) in RING0_SECTIONS {
        check_ring0(&image, section, options)?;
    }
    Ok(image)
}

/// A path that cargo gives to build scripts.
fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
}

/// Compiles the guest and gives the path of its image.
fn build_guest(guest: &Path, target_folder: &Path) -> Result<PathBuf, String> {
    let mut cargo = Command::new(variable("CARGO")?);
    cargo.current_dir(guest).args(["build", "--release", "--locked", "--offline"]);
    cargo.args(["--target", GUEST_TARGET, "--bin", "godwit-guest", "--target-dir"]);
    cargo.arg(target_folder);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(changes_the_guest) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().map_err(|error| format!("cannot run cargo: {error}"))?;
    if !status.success() {
        return Err(format!(
            "the bare guest in {} was not built ({status}); its messages are above; if the target \
             is missing: rustup target add {GUEST_TARGET}",
            guest.display(),
        ));
    }
    Ok(target_folder.join(GUEST_TARGET).join("release/godwit-guest"))
}

/// Whether a variable of the outer build would change how the guest is compiled. The jobserver and
/// cargo's own folder stay.
fn changes_the_guest(name: &str) -> bool {
    const OTHERS: [&str; 3] = ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"];
    const KEPT: [&str; 2] = ["CARGO_HOME", "CARGO_MAKEFLAGS"];
    OTHERS.contains(&name) || (name.starts_with("CARGO_") && !KEPT.contains(&name))
}

/// Refuses an image with a vector register in a ring-0 section.
fn check_ring0(image: &Path, section: &str, options: &[&str]) -> Result<(), String> {
    let output = Command::new("objdump")
        .args(["--disassemble", "--section", section])
        .args(options)
        .arg(image)
        .output()
        .map_err(|error| {
            format!("cannot run objdump ({error}); it is in binutils: apt-get install binutils")
        })?;
    if !output.status.success() {
        return Err(format!("objdump: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    let mut instructions = listing.lines().filter(|line| line.contains(":\t")).peekable();
    if instructions.peek().is_none() {
        return Err(format!("the bare guest has no code in section {section}"));
    }
    match instructions.find(|line| FORBIDDEN_IN_RING0.iter().any(|word| line.contains(word))) {
        Some(line) => Err(format!(
            "the bare guest's ring-0 code has an instruction that some hosts cannot interpret: {}",
            line.trim()
        )),
        None => Ok(()),
    }
}

const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";
const RING0_SECTIONS: [(&str, &[&str]); 3] = [
    (".ring0.16", &["--architecture=i8086"]),
    (".ring0.32", &["--architecture=i386"]),
    (".ring0", &[]),
];
/// Vector, MMX and x87 registers, and the instruction without any that has been seen to fail.
const FORBIDDEN_IN_RING0: [&str; 6] = ["%xmm", "%ymm", "%zmm", "%mm", "%st", "popcnt"];
