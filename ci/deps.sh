#!/usr/bin/env bash
# Installs what the tests need beyond Rust itself: Debian packages, cargo-nextest, several kubectl versions.
#   ci/deps.sh DIR     DIR receives the kubectl binaries
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/debian.sh" gcc libc6-dev make curl git ca-certificates busybox-static e2fsprogs xfsprogs btrfs-progs mount util-linux python3 python3-pip python3-yaml python3-requests iproute2 glusterfs-server glusterfs-client nfs-ganesha nfs-ganesha-vfs rpcbind tgt qemu-utils qemu-system-common qemu-block-extra
cargo nextest --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-nextest
for minor in 30 31 33 35 36 37; do
  "$here/kubectl.sh" "$minor" "$1"
done
