#!/bin/bash
# A local volume on a logical volume, which grows while it is used.
. /holdfast/guest/lib.sh
export LVM_SUPPRESS_FD_WARNINGS=1
modprobe dm_mod
truncate -s 256M /data/pv
device=$(losetup --find --show /data/pv)
lvm() { command lvm "$@" --config 'activation { udev_sync=0 udev_rules=0 } devices { use_devicesfile=0 }'; }
lvm pvcreate -q "$device"
lvm vgcreate -q vm "$device"
lvm lvcreate -q -y -Wn -Zn -L 64M -n lv vm
cat <<'YAML' | apply
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: { name: lvm }
provisioner: kubernetes.io/no-provisioner
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolume
metadata: { name: lvm }
spec:
  capacity: { storage: 64Mi }
  accessModes: [ReadWriteOnce]
  storageClassName: lvm
  persistentVolumeReclaimPolicy: Retain
  local: { path: /dev/vm/lv }
  nodeAffinity: { required: { nodeSelectorTerms: [{ matchExpressions: [{ key: kubernetes.io/hostname, operator: In, values: [vm] }] }] } }
YAML
{ claim lvm lvm 64Mi; pod lvm "$(of_claim lvm)"; } | apply
ready pod/lvm
in_pod lvm 'df -k /v'
lvm lvextend -q -L 128M vm/lv
k patch pv lvm --type=merge -p '{"spec":{"capacity":{"storage":"128Mi"}}}'
k patch pvc lvm --type=merge -p '{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}'
k wait --for=jsonpath='{.status.capacity.storage}'=128Mi --timeout=60s pvc/lvm
[ "$(in_pod lvm 'df -k /v | tail -n 1' | awk '{ print $2 }')" -gt 110000 ]
gone pod/lvm
k delete pvc/lvm pv/lvm sc/lvm
lvm vgremove -q -y vm
losetup -d "$device"
rm /data/pv
