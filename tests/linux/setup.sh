#!/bin/bash
# Installs what `make linux-test` needs and this machine lacks; says nothing if nothing is missing.
# As root on Debian it is installed; otherwise one line says what to install. On Debian 12 QEMU
# comes from bookworm-backports, which is added to apt's sources if it is not among them.
set -euo pipefail

# QEMU 7.2, which Debian 12 has, emulates SVM in a way that corrupts guests.
have_qemu() {
    command -v qemu-system-x86_64 >/dev/null || return 1
    local version
    version=$(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9]*\)\..*/\1/p')
    [ "${version:-0}" -ge 8 ]
}

missing=()
have_qemu || missing+=(qemu-system-x86)
command -v xz >/dev/null || missing+=(xz-utils)
[ ${#missing[@]} -gt 0 ] || exit 0

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "linux-test: please install: ${missing[*]} (QEMU 8 or later)" >&2
    exit 1
fi
echo "linux-test: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
from=()
if [ "$codename" = bookworm ]; then
    from=(-t bookworm-backports)
    if ! grep -rqs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d; then
        printf '%s\n' 'Types: deb' 'URIs: http://deb.debian.org/debian' \
            'Suites: bookworm-backports' 'Components: main' \
            'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' \
            >/etc/apt/sources.list.d/bookworm-backports.sources
    fi
fi
apt-get update -qq >&2
apt-get install -y -qq --no-install-recommends "${from[@]}" "${missing[@]}" >&2
have_qemu || { echo "linux-test: QEMU 8 or later is not to be had from apt" >&2; exit 1; }
