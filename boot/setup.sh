#!/bin/sh
# What building and running Pinfold needs and this machine lacks. Silent and quick when nothing is missing; whatever is
# said goes to stderr. BUSYBOX=path names another static busybox.
set -eu
exec >&2
cd "$(dirname "$0")/.."

if ! command -v rustup >/dev/null; then
    echo "setup: rustup is missing: install it from https://rustup.rs"
    exit 1
fi
# Asking for the sysroot makes rustup install the toolchain that rust-toolchain.toml names.
rustlib=$(rustc --print sysroot)/lib/rustlib
for target in x86_64-unknown-none x86_64-unknown-linux-musl; do
    [ -d "$rustlib/$target/lib" ] || rustup --quiet target add "$target"
done
for component in rustfmt clippy; do
    [ -e "$rustlib/manifest-$component-preview-x86_64-unknown-linux-gnu" ] || rustup --quiet component add "$component"
done

# A static busybox: one that ldd finds no library for. One that the user names is the launcher's to judge.
has_busybox() {
    [ -z "${BUSYBOX:-}" ] || return 0
    busybox=$(command -v busybox) && ! ldd "$busybox" 2>/dev/null | grep -q '=>'
}

missing=
command -v qemu-system-x86_64 >/dev/null || missing="$missing qemu-system-x86"
has_busybox || missing="$missing busybox-static"
command -v musl-gcc >/dev/null || missing="$missing musl-tools"
[ -x /usr/sbin/mkfs.ext4 ] || command -v mkfs.ext4 >/dev/null || missing="$missing e2fsprogs"
for tool in strace gdbserver; do
    command -v $tool >/dev/null || missing="$missing $tool"
done
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null; then
    echo "setup: installing$missing"
    as_root=
    [ "$(id -u)" = 0 ] || as_root=sudo
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of packages
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
else
    echo "setup: please install (Debian's names):$missing"
    exit 1
fi
