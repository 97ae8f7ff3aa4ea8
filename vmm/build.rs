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
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let guest = folder.join("../guest-images/bare");
    for file in ["Cargo.toml", "Cargo.lock", "build.rs", "guest.ld", "src"] {
        println!("cargo:rerun-if-changed={}", guest.join(file).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let image = build_guest(&guest, &out.join("guest"));
    for (section, options) in RING0_SECTIONS {
        check_ring0(&image, section, options);
    }
    println!("cargo:rustc-env=GODWIT_GUEST_IMAGE={}", image.display());
}

/// Compiles the guest and gives the path of its image.
fn build_guest(guest: &Path, target_folder: &Path) -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    cargo.current_dir(guest).args(["build", "--release", "--locked", "--offline"]);
    cargo.args(["--target", GUEST_TARGET, "--bin", "godwit-guest", "--target-dir"]);
    cargo.arg(target_folder);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(changes_the_guest) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot run cargo: {error}"));
    assert!(
        status.success(),
        "the bare guest in {} does not compile for {GUEST_TARGET} ({status}); if the target is \
         missing: rustup target add {GUEST_TARGET}",
        guest.display(),
    );
    target_folder.join(GUEST_TARGET).join("release/godwit-guest")
}

/// Whether a variable of the outer build would change how the guest is compiled. The jobserver and
/// cargo's own folder stay.
fn changes_the_guest(name: &str) -> bool {
    const OTHERS: [&str; 3] = ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"];
    const KEPT: [&str; 2] = ["CARGO_HOME", "CARGO_MAKEFLAGS"];
    OTHERS.contains(&name) || (name.starts_with("CARGO_") && !KEPT.contains(&name))
}

/// Refuses an image with a vector register in a ring-0 section.
fn check_ring0(image: &Path, section: &str, options: &[&str]) {
    let output = Command::new("objdump")
        .args(["--disassemble", "--section", section])
        .args(options)
        .arg(image)
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run objdump ({error}); it is in binutils: apt-get install binutils")
        });
    let listing = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "objdump: {}", String::from_utf8_lossy(&output.stderr));
    let instructions: Vec<&str> = listing.lines().filter(|line| line.contains(":\t")).collect();
    assert!(!instructions.is_empty(), "section {section} of {} is empty", image.display());
    for line in instructions {
        let forbidden = FORBIDDEN_IN_RING0.iter().find(|word| line.contains(**word));
        assert!(
            forbidden.is_none(),
            "ring-0 code of the bare guest uses {}, which cannot be interpreted: {line}",
            forbidden.unwrap_or(&"nothing"),
        );
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
