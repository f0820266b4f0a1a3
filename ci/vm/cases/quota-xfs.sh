#!/bin/bash
# The same as `quota`, on another instance whose data is on xfs.
export data=/mnt/holdfast KUBECONFIG=/mnt/holdfast/admin.kubeconfig
. /holdfast/guest/lib.sh
truncate -s 1G /data/xfs
mkfs.xfs -q /data/xfs
mount -o loop,pquota /data/xfs /mnt
holdfast image import /holdfast/hfbox.tar --data-dir "$data"
start --listen 127.0.0.1:0
bash /holdfast/cases/quota.sh
stop TERM
umount /mnt
rm /data/xfs
