# What cases share. A case fails with its first failing command.
set -euo pipefail
# With `bash -x`, seconds since the case began.
PS4='+ ${SECONDS} s: '
trap 'report $LINENO' ERR
report() {
  trap - ERR
  echo "$0: line $1 failed: $BASH_COMMAND"
  k get pods,pvc,pv
  k get events -o custom-columns=OF:.involvedObject.name,REASON:.reason,SAYS:.message | tail -n 12
} >&2

# k ARGUMENTS...: kubectl
k() { timeout 90 kubectl "$@"; }
# until_true SECONDS COMMAND...: waits until a command succeeds
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "waited in vain for: $*" >&2; return 1; }
    sleep 0.2
  done
}
# fails COMMAND...: succeeds if the command fails, and prints what it said
fails() {
  if "$@" 2>&1; then
    echo "succeeded, but should not: $*" >&2
    return 1
  fi
}
# equal EXPECTED FOUND
equal() { [ "$1" = "$2" ] || { echo "expected: $1; found: $2" >&2; return 1; }; }
# Our own apply and exec are many times faster here than kubectl's, which other cases and tests have.
apply() { timeout 60 holdfast apply -f -; }
# ready PODS...
ready() { k wait --for=condition=Ready --timeout=80s "$@"; }
# gone PODS...: deletes them and waits
gone() { k delete --grace-period=1 --timeout=60s "$@"; }
# Where the instance that cases talk to keeps its data; another has another port.
data=${data:-/data/holdfast}
# start ARGUMENTS..., stop SIGNAL: the daemon
start() {
  holdfast up --data-dir "$data" "$@" >"$data.out" 2>>"$data.log" &
  echo $! >"$data.pid"
  until_true 60 grep -q ready "$data.out"
}
stop() {
  kill "-$1" "$(cat "$data.pid")"
  until_true 60 test ! -e "/proc/$(cat "$data.pid")/exe"
}
# in_pod POD COMMAND: runs a shell command in a pod
in_pod() { timeout 60 holdfast exec "$1" -- sh -c "$2"; }
in_container() { timeout 60 holdfast exec "$1" -c "$2" -- sh -c "$3"; }
# pod NAME VOLUME: a pod that sleeps, with one volume (in YAML's flow style) at /v
pod() {
  cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: { name: $1 }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: c, image: 'hfbox:1', command: [sleep, '9999'], volumeMounts: [{ name: v, mountPath: /v }] }]
  volumes: [{ name: v, $2 }]
YAML
}
# claim NAME CLASS SIZE
claim() {
  cat <<YAML
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: $1 }
spec: { accessModes: [ReadWriteOnce], storageClassName: $2, resources: { requests: { storage: $3 } } }
YAML
}
# of_claim NAME: a pod's volume
of_claim() { echo "persistentVolumeClaim: { claimName: $1 }"; }
