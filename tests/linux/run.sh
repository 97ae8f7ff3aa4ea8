#!/bin/bash
# Stock Debian kernels on real KVM, moved between two godwit processes, on a machine without KVM:
# QEMU emulates a processor with SVM, Debian's kernel with kvm-amd runs on it, and godwit in that.
#
#   run.sh [SCENARIO[@GUEST] ..]       the guest is 6.12 or 6.1
#
# Without names: boot, disk and postcopy. hybrid and precopy are to be named, because their rounds
# take longer than the limit on a busy core.
#
# Ends with `linux-test: N scenarios, N passed`. What goes wrong is in the folder that it names.
# GODWIT is the binary [target/release/godwit], CACHE where packages are kept [target/linux-test].
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${CACHE:-$root/target/linux-test}
godwit=${GODWIT:-$root/target/release/godwit}
scenarios=("$@")
[ ${#scenarios[@]} -gt 0 ] ||
    scenarios=(boot@6.12 boot@6.1 disk@6.12 postcopy@6.12)
# A scenario takes a minute or two on an idle core.
limit_s=900

fail() { echo "linux-test: $*" >&2; exit 1; }

# The machine around the guests: busybox, KVM's modules, godwit with its libraries, and the guest.
outer() {
    local guest=$1 tree=$2 library
    mkdir -p "$tree"/{bin,lib,lib64,modules,guest,proc,sys,dev}
    cp "$(find "$cache/busybox" -path '*/bin/busybox' -print -quit)" "$tree/bin/busybox"
    cp "$cache/linux-6.12/modules"/{irqbypass,kvm,kvm-amd}.ko "$tree/modules/"
    cp "$cache/linux-$guest"/{vmlinuz,initramfs.cpio} "$tree/guest/"
    cp "$godwit" "$tree/bin/godwit"
    for library in $(ldd "$godwit" | grep -o '/[^ ]*'); do
        cp -L "$library" "$tree/lib/"
        case $library in *ld-linux*) cp -L "$library" "$tree/lib64/" ;; esac
    done
    install -m 755 "$here/inside" "$tree/init"
    (cd "$tree" && find . | "$tree/bin/busybox" cpio -o -H newc 2>/dev/null) >"$tree.cpio"
    rm -rf "$tree"
}

# one SCENARIO@GUEST: boots the outer machine, which runs it.
one() {
    local scenario=${1%@*} guest=6.12 log=$work/$1.log begin=$SECONDS
    [[ $1 != *@* ]] || guest=${1#*@}
    [ -f "$work/outer-$guest.cpio" ] || outer "$guest" "$work/outer-$guest"
    timeout "$limit_s" qemu-system-x86_64 -accel tcg,thread=single,tb-size=512 \
        -icount shift=1,sleep=off -cpu EPYC,+svm,+npt -smp 1 -m 2048 -M q35 -display none \
        -nodefaults -no-reboot -serial stdio -kernel "$cache/linux-6.12/vmlinuz" \
        -initrd "$work/outer-$guest.cpio" \
        -append "console=ttyS0 quiet panic=-1 no_timer_check scenario=$scenario" \
        </dev/null >"$log" 2>&1 || echo "linux-test: QEMU ends with $?" >>"$log"
    if grep -q "^inside: passed" "$log"; then
        echo "linux-test: $1 passed in $((SECONDS - begin)) s:" \
            "$(grep -o 'guest: shell.*' "$log" | tr -d '\r' | head -1)"
        return 0
    fi
    echo "linux-test: $1 FAILED after $((SECONDS - begin)) s; the end of $log:"
    tail -n 40 "$log"
    return 1
}

"$here/setup.sh"
[ -x "$godwit" ] || fail "there is no $godwit; run make build"
"$root/guest-images/linux/build.sh" "$cache"
work=$cache/run
rm -rf "$work" && mkdir -p "$work"
passed=0
for scenario in "${scenarios[@]}"; do
    if one "$scenario"; then passed=$((passed + 1)); fi
done
echo "linux-test: ${#scenarios[@]} scenarios, $passed passed"
[ "$passed" -eq ${#scenarios[@]} ]
