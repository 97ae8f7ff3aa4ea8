#!/bin/sh
# Refuses an image with a vector register in its ring-0 code; vmm/build.rs does the same.
# Usage: check-ring0.sh [IMAGE]
set -eu
image=${1:-$(dirname "$0")/target/x86_64-unknown-linux-gnu/release/godwit-guest}
if ! command -v objdump >/dev/null; then
    echo "objdump is missing: apt-get install binutils" >&2
    exit 2
fi

check() { # SECTION [OPTION]
    listing=$(objdump --disassemble --section "$@" "$image" | grep "$(printf ':\t')") || {
        echo "$image: section $1 is empty" >&2; exit 1; }
    if echo "$listing" | grep -E '%[xyz]?mm|%st|popcnt' >&2; then
        echo "$image: section $1 uses what cannot be interpreted in ring 0" >&2; exit 1
    fi
    echo "$1: $(echo "$listing" | wc -l) lines, no vector register"
}

check .ring0.16 --architecture=i8086
check .ring0.32 --architecture=i386
check .ring0
