#!/bin/bash
# Volumes of directories that quotas of projects bound, on ext4 (quota-xfs: on xfs); they are made at the same time.
. /holdfast/guest/lib.sh
{
  cat <<'YAML'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: { name: directory }
provisioner: local.csi.holdfast
parameters: { backend: directory, quota: required }
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
YAML
  claim one directory 16Mi
  pod one "$(of_claim one)"
  claim two directory 8Mi
  pod two "$(of_claim two)"
} | apply
ready pod/one pod/two
# Fills a volume; prints in KiB how large it is and how much went into it.
fill() {
  in_pod "$1" 'dd if=/dev/zero of=/v/fill bs=64k count=1000 2>&1; sync; df -k /v; echo found $(df -k /v | tail -n 1) $(du -k /v/fill)' |
    tee /run/fill >&2
  grep -q 'Disk quota exceeded\|No space left' /run/fill
  awk '/^found/ { print $3, ($8 <= $3 && $8 > $3 - 128) ? "full" : $8 }' /run/fill
}
equal '16384 full' "$(fill one)"
equal '8192 full' "$(fill two)"
holdfast volume list --data-dir "$data" | tee /run/list
equal 2 "$(grep -c ' directory ' /run/list)"
# Growing while in use.
k patch pvc one --type=merge -p '{"spec":{"resources":{"requests":{"storage":"24Mi"}}}}'
k wait --for=jsonpath='{.status.capacity.storage}'=24Mi --timeout=60s pvc/one
equal '24576 full' "$(fill one)"
in_pod two 'rm /v/fill'
equal '8192 full' "$(fill two)"
gone pod/one pod/two
k delete pvc one two
k delete sc directory
