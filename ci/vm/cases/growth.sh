#!/bin/bash
# Filesystems grow while they are used: ext4 (which asks for CAP_SYS_RESOURCE), xfs and btrfs.
. /holdfast/guest/lib.sh
declare -A first=([ext4]=64Mi [xfs]=300Mi [btrfs]=256Mi) then=([ext4]=128Mi [xfs]=400Mi [btrfs]=356Mi)
for fs in "${!first[@]}"; do
  cat <<YAML
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: { name: $fs }
provisioner: local.csi.holdfast
parameters: { csi.storage.k8s.io/fstype: $fs }
allowVolumeExpansion: true
YAML
  claim $fs $fs ${first[$fs]}
  pod $fs "$(of_claim $fs)"
done | apply
ready pod/ext4 pod/xfs pod/btrfs
kbytes() { in_pod "$1" 'df -k /v | tail -n 1' | awk '{ print $2 }'; }
for fs in "${!first[@]}"; do
  kbytes $fs >/run/before.$fs
  k patch pvc $fs --type=merge -p '{"spec":{"resources":{"requests":{"storage":"'${then[$fs]}'"}}}}'
done
for fs in "${!first[@]}"; do
  k wait --for=jsonpath='{.status.capacity.storage}'=${then[$fs]} --timeout=60s pvc/$fs
  echo "$fs: $(cat /run/before.$fs) KiB, then $(kbytes $fs)"
  [ "$(kbytes $fs)" -gt $(($(cat /run/before.$fs) + 50000)) ]
done
k get pods
gone pod/ext4 pod/xfs pod/btrfs
k delete pvc,sc "${!first[@]}"
