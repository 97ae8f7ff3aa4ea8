#!/bin/bash
# Installs what the build needs and this machine lacks; says nothing if nothing is missing.
# As root, Debian's packages are installed. Otherwise one line says what to install.
set -euo pipefail

missing=()      # Debian packages
by_hand=()      # what no package brings

have() { command -v "$1" >/dev/null 2>&1; }

# `any PATTERN...` is true if one of the patterns names a file.
any() { compgen -G "$1" >/dev/null || { [ $# -gt 1 ] && shift && any "$@"; }; }

# bindgen needs the library and the compiler's own headers (stddef.h), which come with it.
have_libclang() {
    if [ -n "${LIBCLANG_PATH:-}" ]; then return 0; fi
    any '/usr/lib/llvm*/lib/libclang*.so*' '/usr/lib/*/libclang*.so*' '/usr/lib64/libclang*.so*' \
        '/usr/lib/libclang*.so*' '/usr/local/lib/libclang*.so*' || return 1
    any '/usr/lib/llvm*/lib/clang/*/include/stddef.h' '/usr/lib/clang/*/include/stddef.h' \
        '/usr/lib64/clang/*/include/stddef.h' '/usr/local/lib/clang/*/include/stddef.h'
}

check_packages() {
    have gcc && have ld && any /usr/include/stdlib.h || missing+=(gcc libc6-dev)
    have make || missing+=(make)
    have git || missing+=(git)
    have objdump || missing+=(binutils)
    have_libclang || missing+=(libclang-dev)
}

# rustup may be there without a toolchain, or with a minimal one.
check_rust() {
    if have rustup; then
        rustup show active-toolchain >/dev/null 2>&1 || rustup default stable
        cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
        cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
    elif ! have cargo; then
        by_hand+=("Rust (https://rustup.rs)")
    elif ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        by_hand+=("rustfmt and clippy for the installed Rust")
    fi
}

install_packages() {
    [ "$(id -u)" -eq 0 ] && have apt-get || return 0
    echo "setup: installing ${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
    missing=()
}

PATH="$HOME/.cargo/bin:$PATH"
check_packages
if [ ${#missing[@]} -gt 0 ]; then install_packages; fi
check_rust

line=""
if [ ${#missing[@]} -gt 0 ]; then line="apt-get install ${missing[*]}"; fi
for what in "${by_hand[@]}"; do line="${line:+$line; and }$what"; done
if [ -n "$line" ]; then
    echo "setup: please install: $line" >&2
    exit 1
fi
