#!/bin/bash
# Makes a Linux guest from Debian's packages: a kernel as it is in the package, and an initramfs of
# busybox, the kernel's virtio modules and `init`.
#
#   build.sh FOLDER            fills FOLDER with linux-6.12/ and linux-6.1/, each with `vmlinuz`,
#                              `initramfs.cpio` and `modules/` (virtio and KVM, unpacked)
#
# Packages are kept in FOLDER/packages; nothing is installed. Needs apt-get and dpkg-deb, and a list
# of packages that has both kernels.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)

# Without X: so are the names that do not change, which depend on the newest.
names=(6.12:linux-image-6.12-cloud-amd64 6.1:linux-image-cloud-amd64)
modules=(irqbypass kvm kvm-amd virtio_ring virtio virtio_mmio virtio_blk virtio-rng)

fail() { echo "linux guest: $*" >&2; exit 1; }

# package NAME: downloads it unless it is here, and prints its file.
package() {
    local file
    file=$(compgen -G "$out/packages/$1_*.deb" | head -1) || true
    if [ -z "$file" ]; then
        (mkdir -p "$out/packages" && cd "$out/packages" && apt-get download -qq "$1" >&2) ||
            fail "cannot download $1; run apt-get update, and see tests/README.md for the sources"
        file=$(compgen -G "$out/packages/$1_*.deb" | head -1)
    fi
    echo "$file"
}

# unpack NAME FOLDER
unpack() {
    [ -d "$2" ] && return 0
    local file
    file=$(package "$1")
    rm -rf "$2.new" && mkdir -p "$2.new" && dpkg-deb -x "$file" "$2.new" && mv "$2.new" "$2"
}

# kernel VERSION NAME: unpacks the kernel and its modules.
kernel() {
    local folder=$out/linux-$1 real=$2
    [ -f "$folder/vmlinuz" ] && return 0
    # The name without a number depends on the one with it.
    real=$(apt-cache depends "$2" | awk '/Depends: linux-image/ && !n++ { print $2 }')
    [ -n "$real" ] || fail "there is no package $2; see tests/README.md for the sources"
    unpack "$real" "$out/unpacked-$1"
    mkdir -p "$folder/modules"
    local name file
    for name in "${modules[@]}"; do
        file=$(find "$out/unpacked-$1" -name "$name.ko*" -print -quit)
        case $file in
            *.ko.xz) xz -dc "$file" >"$folder/modules/$name.ko" ;;
            *.ko) cp "$file" "$folder/modules/" ;;
        esac
    done
    cp "$out/unpacked-$1"/boot/vmlinuz-* "$folder/vmlinuz"
    rm -rf "$out/unpacked-$1"
}

# initramfs VERSION
initramfs() {
    local folder=$out/linux-$1 root=$out/root-$1 name
    rm -rf "$root" && mkdir -p "$root"/{bin,modules,proc,sys,dev,mnt}
    cp "$busybox" "$root/bin/busybox"
    for name in virtio_ring virtio virtio_mmio virtio_blk virtio-rng; do
        [ ! -f "$folder/modules/$name.ko" ] || cp "$folder/modules/$name.ko" "$root/modules/"
    done
    install -m 755 "$here/init" "$root/init"
    (cd "$root" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc 2>/dev/null) \
        >"$folder/initramfs.cpio"
    rm -rf "$root"
}

unpack busybox-static "$out/busybox"
busybox=$(find "$out/busybox" -path '*/bin/busybox' -print -quit)
for pair in "${names[@]}"; do
    kernel "${pair%%:*}" "${pair#*:}"
    initramfs "${pair%%:*}"
done
