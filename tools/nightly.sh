#!/bin/bash
# What needs a nightly compiler: `nightly.sh miri` and `nightly.sh fuzz SECONDS`. Where it is not
# to be had, one line says so and the rest is skipped.
set -euo pipefail

CARGO_FUZZ=0.13.1

# What Miri runs: code without system calls, and no more than it can do in a few minutes.
MIRI_TESTS=(message:: event:: meaning:: guest::space guest::fallback model::tests::guest
    model::tests::waiting)

skip() { echo "skipped: $1: $2"; exit 0; }

need_nightly() {
    cargo +nightly --version >/dev/null 2>&1 ||
        rustup toolchain install nightly --profile minimal >/dev/null 2>&1 ||
        skip "$1" "no nightly compiler; rustup toolchain install nightly"
}

run_miri() {
    need_nightly miri
    # The proxy of rustup is there even if the component is not.
    cargo +nightly miri --version >/dev/null 2>&1 ||
        rustup component add --toolchain nightly miri rust-src >/dev/null 2>&1 ||
        skip miri "this nightly compiler has no Miri; rustup +nightly component add miri rust-src"
    CARGO_TARGET_DIR=target/miri cargo +nightly miri test --locked -p godwit-uffd --lib -- \
        "${MIRI_TESTS[@]}"
}

run_fuzz() {
    need_nightly fuzz
    cargo fuzz --version >/dev/null 2>&1 ||
        cargo install cargo-fuzz --locked --version "$CARGO_FUZZ" ||
        skip fuzz "cargo-fuzz $CARGO_FUZZ cannot be installed"
    # The targets are safe code, so a sanitizer of memory would only slow them down. Most of the
    # time is for the operations and the destination, which have more to find.
    cd tests/fuzz
    one_target messages $(($1 / 10)) -max_len=400
    one_target operations $(($1 * 3 / 10)) -max_len=1200 -len_control=0
    one_target frames $(($1 / 10)) -max_len=6000
    one_target handshake $(($1 / 10)) -max_len=200
    one_target bitmap $(($1 / 10)) -max_len=600
    one_target destination $(($1 * 3 / 10)) -max_len=1500 -len_control=0
}

# one_target NAME SECONDS OPTION...; what was kept is the seed of what is tried.
one_target() {
    local name=$1 seconds=$2
    shift 2
    mkdir -p "corpus/$name"
    cargo +nightly fuzz run --fuzz-dir . --sanitizer none "$name" "corpus/$name" \
        "regressions/$name" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 "$@"
}

case "${1:-}" in
    miri) run_miri ;;
    fuzz) run_fuzz "${2:-60}" ;;
    *) echo "usage: nightly.sh miri | fuzz SECONDS" >&2; exit 2 ;;
esac
