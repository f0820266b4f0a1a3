#!/bin/bash
# iSCSI by the kernel's initiator and open-iscsi, from tgt in the same machine: CHAP, two portals joined by multipath, readOnly.
. /holdfast/guest/lib.sh
modprobe -a iscsi_tcp sd_mod dm_multipath dm_round_robin dm_service_time
ip address add 10.99.0.2/24 dev lo
/lib/systemd/systemd-udevd --daemon
mkdir -p /run/lock/iscsi /etc/multipath
echo 'InitiatorName=iqn.2026-11.test.vm:node' >/etc/iscsi/initiatorname.iscsi
iscsid
printf 'defaults {\n find_multipaths no\n user_friendly_names yes\n polling_interval 2\n}\n' >/etc/multipath.conf
multipathd
tgtd --iscsi portal=10.99.0.1:3260 --iscsi portal=10.99.0.2:3260
target() { timeout 20 tgtadm --lld iscsi "$@"; }
until_true 20 target --op show --mode sys
iqn=iqn.2026-11.test.vm:disk
target --op new --mode target --tid 1 --targetname $iqn
for lun in 1 2; do
  truncate -s 64M /data/lun$lun
  target --op new --mode logicalunit --tid 1 --lun $lun --backing-store /data/lun$lun
done
target --op bind --mode target --tid 1 --initiator-address ALL
target --op new --mode account --user someone --password 'a long secret'
target --op bind --mode account --tid 1 --user someone
iscsi() { # LUN MORE
  echo "iscsi: { targetPortal: 10.99.0.1, iqn: '$iqn', lun: $1, chapAuthSession: true, secretRef: { name: chap }$2 }"
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
until_true 60 sh -c "kubectl get events | grep FailedMount.*pod/one"
k get events | grep FailedMount
secret 'a long secret' | apply
ready pod/one
in_pod one 'echo precious >/v/file; df -k /v'
{ pod two "$(iscsi 2 ', portals: [10.99.0.2]')"; } | apply
ready pod/two
in_pod two 'echo more >/v/file'
iscsiadm -m session | tee /run/sessions
multipath -ll || true
lsblk
fails grep -r 'a long secret' /run/kubelet /data/holdfast.log /proc/*/cmdline
gone pod/one pod/two
until_true 20 sh -c '! iscsiadm -m session'
{ pod reader "$(iscsi 1 ', fsType: ext4, readOnly: true')"; } | apply
ready pod/reader
equal precious "$(in_pod reader 'cat /v/file')"
fails in_pod reader 'echo more >/v/file'
gone pod/reader
until_true 20 sh -c '! iscsiadm -m session'
equal '' "$(find /etc/iscsi/nodes -type f 2>/dev/null)"
fails grep -l . /sys/block/*/device/model
k delete secret chap
