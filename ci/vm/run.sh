#!/usr/bin/env bash
# Boots Debian's kernel under QEMU and runs holdfast inside, for what the host's kernel may lack. See docs/vm-job.md.
#
#   run.sh HOLDFAST KUBECTL IMAGES_DIR [CASE...]      all cases of cases/, or the named ones; exit status 1 if one fails
#   run.sh --shell HOLDFAST KUBECTL IMAGES_DIR        a shell in the machine, with holdfast running
#
# HOLDFAST_VM_CACHE  where packages and the root file system stay from run to run (default: target/vm)
# HOLDFAST_VM_VERBOSE  not empty: what every case does and prints, not only those that fail
# HOLDFAST_VM_LIMIT  seconds after which no case is begun, and those that are left are told as skipped (default: 300)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mode=cases
[ "${1:-}" = --shell ] && { mode=shell; shift; }
[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
holdfast=$1 kubectl=$2 images=$3
shift 3
limit=${HOLDFAST_VM_LIMIT:-300}

skip() { echo "vm: SKIPPED, nothing was tested: $1"; exit 0; }
command -v apt-get >/dev/null || skip "needs apt-get, for Debian's kernel"
[ "$(dpkg --print-architecture)" = amd64 ] || skip "only amd64 is prepared"
"$here/../debian.sh" qemu-system-x86 e2fsprogs busybox-static binutils >/dev/null 2>&1 || skip "QEMU cannot be installed here"

target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "${HOLDFAST_VM_CACHE:-$target/vm}"
cache=$(cd "${HOLDFAST_VM_CACHE:-$target/vm}" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/holdfast-vm-XXXXXX")
qemu=
trap '[ -z "$qemu" ] || kill -KILL "$qemu" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

exec 9>"$cache/lock"
flock 9
status=0
"$here/root.sh" "$cache" "$work" || status=$?
[ $status != 3 ] || skip "Debian's packages for the machine cannot be fetched"
[ $status = 0 ] || exit $status
exec 9>&-

# The disk with what is tested.
mkdir "$work/run"
strip -o "$work/run/holdfast" "$holdfast"
cp "$kubectl" "$work/run/kubectl"
cp "$images/hfbox.tar" "$work/run/"
cp -r "$here/guest" "$here/cases" "$work/run/"
# image FILE SIZE OPTIONS...: an ext4 image
image() {
  local file=$1 size=$2
  shift 2
  truncate -s "$size" "$file"
  mkfs.ext4 -q -F "$@" "$file"
}
image "$work/run.img" 1G -d "$work/run"
image "$work/data.img" 6G -O quota,project

# Hardware virtualization where it works: the device may be there and do nothing, so a kernel has to get to its panic.
accel=tcg,thread=multi,tb-size=512
if [ -w /dev/kvm ] && sh -c 'timeout 6 qemu-system-x86_64 "$@" </dev/null' sh -accel kvm -cpu max -m 256 -display none -no-reboot \
  -kernel "$cache/vmlinuz" -append "panic=-1" </dev/null >/dev/null 2>&1; then
  accel=kvm
fi

machine=(qemu-system-x86_64 -accel $accel -cpu max,la57=off -smp 2 -m 3072 -nodefaults -display none -no-reboot
  -kernel "$cache/vmlinuz" -initrd "$cache/initramfs"
  -drive "file=$cache/root.img,format=raw,if=virtio,snapshot=on"
  -drive "file=$work/run.img,format=raw,if=virtio,snapshot=on"
  -drive "file=$work/data.img,format=raw,if=virtio,cache=unsafe"
  -serial "file:$work/console" -serial stdio)
words="console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on ${HOLDFAST_VM_VERBOSE:+hf.verbose}"
# Where QEMU keeps what is written to the disks that start afresh each time.
export TMPDIR=$work

if [ $mode = shell ]; then
  settings=$(stty -g)
  stty raw -echo
  "${machine[@]}" -append "$words hf.cases=shell" || true
  stty "$settings"
  exit 0
fi

# life CASES: boots once and prints the report as it comes; fails unless the machine's last words say that all is well.
life() {
  # What the last case may take comes on top; a machine that still says nothing then hangs.
  "${machine[@]}" -append "$words hf.seconds=$((limit - SECONDS)) hf.cases=$1" </dev/null >"$work/report" 2>&1 &
  qemu=$!
  timeout "$((limit + 210 - SECONDS))" tail -n +1 -f --pid=$qemu "$work/report" &
  # Unlike a command in the foreground, this is interrupted by signals.
  wait $! || echo "vm: the machine hangs"
  kill -KILL $qemu 2>/dev/null || true
  wait $qemu 2>/dev/null || true
  qemu=
  if ! grep -q '^vm: all is well' "$work/report"; then
    echo "vm: last lines of the console:"
    tail -n 25 "$work/console"
    return 1
  fi
}

# In the order of what is to be known most. After `reboot` the machine loses its power.
cases=("$@")
[ ${#cases[@]} -gt 0 ] || cases=(cgroup quota reboot nfs iscsi quota-xfs scratch growth lvm)
echo "vm: $(cat "$cache/kernel"), ${accel%%,*}: ${cases[*]}"
list=,$(IFS=,; echo "${cases[*]}")
case "$list," in
*,reboot,*)
  first=${list%%,reboot*},reboot
  life "${first#,}"
  list=,after/reboot${list#"$first"}
  ;;
esac
life "${list#,}"
echo "vm: passed in $SECONDS s"
