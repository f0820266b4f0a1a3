#!/bin/bash
# An emptyDir's limit, held by a quota of ext4.
. /holdfast/guest/lib.sh
{ pod scratch 'emptyDir: { sizeLimit: 16Mi }'; pod other 'emptyDir: { sizeLimit: 8Mi }'; } | apply
ready pod/scratch pod/other
fails in_pod scratch 'dd if=/dev/zero of=/v/fill bs=64k count=400' | grep 'Disk quota exceeded'
in_pod scratch 'df -k /v | tail -n 1' | grep -w 16384
in_pod other 'dd if=/dev/zero of=/v/fill bs=64k count=100'
equal '' "$(losetup -a)"
gone pod/scratch pod/other
