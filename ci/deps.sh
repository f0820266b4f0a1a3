#!/usr/bin/env bash
# Installs what building and testing need beyond Rust itself: Debian packages, cargo-nextest, several kubectl versions.
#   ci/deps.sh DIR     DIR receives the kubectl binaries
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
packages=(gcc libc6-dev make curl ca-certificates busybox-static python3 python3-pip python3-yaml python3-requests iproute2)
missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
cargo nextest --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-nextest
for minor in 30 33 35 36 37; do
  "$here/kubectl.sh" "$minor" "$dir"
done
