#!/bin/bash
# iSCSI by the kernel's initiator and open-iscsi, from tgt in the same machine: CHAP, two portals joined by multipath, readOnly.
. /holdfast/guest/lib.sh
modprobe -a iscsi_tcp sd_mod dm_multipath dm_service_time
ip address add 10.99.0.2/24 dev lo
/lib/systemd/systemd-udevd --daemon
mkdir -p /run/lock/iscsi
echo 'InitiatorName=iqn.2026-11.test.vm:node' >/etc/iscsi/initiatorname.iscsi
iscsid
printf 'defaults {\n find_multipaths yes\n}\n' >/etc/multipath.conf
multipathd
tgtd
target() { timeout 20 tgtadm --lld iscsi --op "$1" --mode "${@:2}"; }
until_true 20 target show sys
target new account --user someone --password 'a long secret'
for n in 1 2; do
  truncate -s 64M /data/lun$n
  target new target --tid $n --targetname iqn.2026-11.test.vm:disk$n
  target new logicalunit --tid $n --lun 1 --backing-store /data/lun$n
  target bind target --tid $n --initiator-address ALL
  target bind account --tid $n --user someone
done
iscsi() { # DISK MORE
  echo "iscsi: { targetPortal: 10.99.0.1, iqn: 'iqn.2026-11.test.vm:disk$1', lun: 1, chapAuthSession: true, secretRef: { name: chap }$2 }"
}
secret() {
  cat <<YAML
---
apiVersion: v1
kind: Secret
metadata: { name: chap }
type: kubernetes.io/iscsi-chap
stringData: { node.session.auth.username: someone, node.session.auth.password: $1 }
YAML
}
# A wrong secret is said, and set right while the pod waits.
{ secret 'a wrong one'; pod one "$(iscsi 1 ', fsType: ext4')"; } | apply
until_true 60 sh -c "kubectl get events | grep 'FailedMount.*pod/one.*refuses user or password'"
{ secret 'a long secret'; pod two "$(iscsi 2 ', portals: [10.99.0.2]')"; } | apply
ready pod/one pod/two
in_pod one 'echo precious >/v/file; mount | grep " /v "; df -k /v'
in_pod two 'echo more >/v/file; mount | grep " /v "' | tee /run/two
iscsiadm -m session | tee /run/sessions
equal 3 "$(wc -l </run/sessions)"
multipath -ll
grep /dev/ /run/two | grep -v /dev/sd
fails grep -rs 'a long secret' /data/holdfast/kubelet /data/holdfast.log /proc/[0-9]*/cmdline
gone pod/one pod/two
until_true 20 sh -c '! iscsiadm -m session'
{ pod reader "$(iscsi 1 ', fsType: ext4, readOnly: true')"; } | apply
ready pod/reader
equal precious "$(in_pod reader 'cat /v/file')"
fails in_pod reader 'echo more >/v/file'
gone pod/reader
# Nothing is left: no session, no secret in records of open-iscsi, no disk.
until_true 20 sh -c '! iscsiadm -m session'
fails grep -rs 'a long secret' /etc/iscsi
fails ls /sys/block/sd*
fails ls /sys/block/dm-*
k delete secret chap
