#!/bin/bash
# iSCSI by the kernel's initiator and open-iscsi, from tgt in the same machine: CHAP, also of the target, two portals joined by
# multipath, growth, readOnly.
. /holdfast/guest/lib.sh
trap 'report $LINENO; { iscsiadm -m session; multipath -ll; ls /sys/block; dmesg | tail -n 15; } >&2 || true' ERR
modprobe -a iscsi_tcp sd_mod dm_multipath dm_service_time
ip address add 10.99.0.2/24 dev lo
/lib/systemd/systemd-udevd --daemon
mkdir -p /run/lock/iscsi
echo 'InitiatorName=iqn.2026-11.test.vm:node' >/etc/iscsi/initiatorname.iscsi
until_true 20 udevadm control --ping
iscsid
printf 'defaults {\n find_multipaths yes\n}\n' >/etc/multipath.conf
multipathd
# Disks that come before it looks would not be joined.
until_true 30 sh -c 'multipathd show daemon | grep -q pid'
target() { timeout 20 tgtadm --lld iscsi --op "$1" --mode "${@:2}"; }
# serve: the targets, with their disks as large as they are now. The portals come last: who comes back and is refused gives up.
serve() {
  tgtd --iscsi portal=127.0.0.1:3261
  until_true 20 target show sys
  target new account --user someone --password 'a long secret'
  target new account --user target --password 'what it proves'
  for n in 1 2; do
    target new target --tid $n --targetname iqn.2026-11.test.vm:disk$n
    target new logicalunit --tid $n --lun 1 --backing-store /data/lun$n
    target bind target --tid $n --initiator-address ALL
    target bind account --tid $n --user someone
  done
  target bind account --tid 2 --user target --outgoing
  for n in 1 2; do target new portal --param portal=10.99.0.$n:3260; done
  target delete portal --param portal=127.0.0.1:3261
}
truncate -s 64M /data/lun1 /data/lun2
serve
iscsi() { # DISK SECRET MORE
  echo "iscsi: { targetPortal: 10.99.0.1, iqn: 'iqn.2026-11.test.vm:disk$1', lun: 1, chapAuthSession: true, secretRef: { name: $2 }${3:-} }"
}
secret() { # NAME PASSWORD MORE
  cat <<YAML
---
apiVersion: v1
kind: Secret
metadata: { name: $1 }
type: kubernetes.io/iscsi-chap
stringData: { node.session.auth.username: someone, node.session.auth.password: $2${3:-} }
YAML
}
mutual() { secret both 'a long secret' ", node.session.auth.username_in: target, node.session.auth.password_in: $1"; }
# A wrong secret is said, and set right while the pod waits; so is one by which the target does not prove itself.
cat >/run/one.yaml <<YAML
---
apiVersion: v1
kind: PersistentVolume
metadata: { name: one }
spec:
  capacity: { storage: 64Mi }
  accessModes: [ReadWriteOnce]
  storageClassName: grows
  claimRef: { namespace: default, name: one }
  $(iscsi 1 chap ', fsType: ext4' | sed 's/name: chap/&, namespace: default/')
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: { name: grows }
provisioner: kubernetes.io/no-provisioner
allowVolumeExpansion: true
YAML
{
  cat /run/one.yaml
  claim one grows 64Mi
  secret chap 'a wrong one'
  pod one "$(of_claim one)"
  mutual 'something else'
  pod two "$(iscsi 2 both ', portals: [10.99.0.2]')"
} | apply
until_true 90 sh -c "kubectl get events | grep 'FailedMount.*pod/one.*refuses user or password'"
until_true 90 sh -c "kubectl get events | grep 'FailedMount.*pod/two.*does not prove who it is'"
{ secret chap 'a long secret'; mutual 'what it proves'; } | apply
ready pod/one pod/two
in_pod one 'echo precious >/v/file; sync; mount | grep " /v "; df -k /v'
in_pod two 'echo more >/v/file; mount | grep " /v "' | tee /run/two
iscsiadm -m session | tee /run/sessions
equal 3 "$(wc -l </run/sessions)"
multipath -ll
grep /dev/ /run/two | grep -v /dev/sd
fails grep -rs -e 'a long secret' -e 'what it proves' /data/holdfast/kubelet /data/holdfast.log /proc/[0-9]*/cmdline
gone pod/two
# The disk grows at the target, which is away for that; then the claim and the filesystem grow, in use.
killall -9 tgtd
truncate -s 96M /data/lun1
serve
k patch pv one -p '{"spec":{"capacity":{"storage":"96Mi"}}}'
k patch pvc one -p '{"spec":{"resources":{"requests":{"storage":"96Mi"}}}}'
until_true 80 sh -c "kubectl get pvc one -o jsonpath={.status.capacity.storage} | grep 96Mi"
in_pod one 'df -k /v; [ $(df -k /v | awk "END { print \$2 }") -gt 80000 ]'
gone pod/one
until_true 20 sh -c '! iscsiadm -m session'
k delete pvc/one pv/one sc/grows
{ pod reader "$(iscsi 1 chap ', fsType: ext4, readOnly: true')"; } | apply
ready pod/reader
equal precious "$(in_pod reader 'cat /v/file')"
fails in_pod reader 'echo more >/v/file'
gone pod/reader
# Nothing is left: no session, no secret in records of open-iscsi, no disk.
until_true 20 sh -c '! iscsiadm -m session'
fails grep -rs 'a long secret' /etc/iscsi
until_true 20 sh -c '! ls /sys/block/sd*'
until_true 20 sh -c '! ls /sys/block/dm-*'
k delete secret chap both
