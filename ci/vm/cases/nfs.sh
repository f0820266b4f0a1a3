#!/bin/bash
# NFS by the kernel's client, from the kernel's server in the same machine.
. /holdfast/guest/lib.sh
mkdir -p /data/exports/shared /data/exports/claimed /var/lib/nfs/v4recovery
touch /var/lib/nfs/{etab,rmtab}
echo '/data/exports *(rw,no_root_squash,no_subtree_check,insecure,fsid=7)' >/etc/exports
modprobe -a nfsd nfsv4
mount -t nfsd nfsd /proc/fs/nfsd
# Short, for after the server was down: files are opened again when this has passed.
echo 10 >/proc/fs/nfsd/nfsv4gracetime
echo 10 >/proc/fs/nfsd/nfsv4leasetime
exportfs -a
rpc.mountd -N 2 -N 3
serve() { rpc.nfsd -N 3 4; }
serve
nfs() { echo "nfs: { server: 10.99.0.1, path: /data/exports/$1${2:+, $2} }"; }
{
  pod writer "$(nfs shared)"
  pod reader "$(nfs shared 'readOnly: true')"
  cat <<'YAML'
---
apiVersion: v1
kind: PersistentVolume
metadata: { name: nfs }
spec:
  capacity: { storage: 1Gi }
  accessModes: [ReadWriteMany]
  storageClassName: ''
  mountOptions: [vers=4.1, hard]
  nfs: { server: 10.99.0.1, path: /data/exports/claimed }
YAML
  claim nfs "''" 1Gi | sed s/ReadWriteOnce/ReadWriteMany/
  pod claimer "$(of_claim nfs)"
} | apply
ready pod/writer pod/reader pod/claimer
grep ' nfs4\? ' /proc/self/mountinfo | tee /run/mounts
equal 3 "$(wc -l </run/mounts)"
in_pod writer 'echo hello >/v/file'
equal hello "$(in_pod reader 'cat /v/file')"
equal hello "$(cat /data/exports/shared/file)"
fails in_pod reader 'echo more >/v/file' | grep -i 'read-only'
in_pod claimer 'echo claimed >/v/file; mount | grep " /v "' | grep 'vers=4.1'
equal claimed "$(cat /data/exports/claimed/file)"

# The server goes away: what is mounted waits for it, a pod that comes says for what it waits, and one can be deleted.
rpc.nfsd 0
{ pod waiting "$(nfs shared)"; pod unwanted "$(nfs shared)"; } | apply
until_true 40 sh -c "kubectl get events | grep FailedMount.*pod/waiting"
k get events | grep FailedMount | tail -n 2
gone pod/unwanted
# So can one that has a volume, whose server nobody else here uses.
gone pod/claimer
serve
ready pod/waiting
equal hello "$(in_pod waiting 'cat /v/file')"
in_pod writer 'echo again >/v/file'
equal again "$(cat /data/exports/shared/file)"
gone pod/waiting pod/writer pod/reader
fails grep ' nfs4\? ' /proc/self/mountinfo
equal again "$(cat /data/exports/shared/file)"
k delete pvc/nfs pv/nfs
rpc.nfsd 0
