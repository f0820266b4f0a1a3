#!/bin/bash
# The first process of the machine: brings it up, runs the cases that the kernel's command line names, and ends the machine.
export PATH=/holdfast:/usr/sbin:/usr/bin HOME=/run/home GOMAXPROCS=1 GOGC=400 KUBECONFIG=/data/holdfast/admin.kubeconfig
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs -o mode=755 run /run
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 pts /dev/pts
mount -t tmpfs shm /dev/shm
ln -sf /proc/self/fd /dev/fd
exec >/dev/ttyS1 2>&1 </dev/null
mkdir -p /run/home
hostname vm
ip link set lo up
ip address add 10.99.0.1/24 dev lo
modprobe -a overlay loop veth bridge nf_nat nft_masq nft_chain_nat quota_v2 xfs btrfs fuse
mount -t ext4 -o prjquota /dev/vdc /data
read -r seconds _ </proc/uptime
echo "vm: up after $seconds s"

words=$(cat /proc/cmdline)
cases=${words##*hf.cases=}
if [ "$cases" = shell ]; then
  /holdfast/guest/cases.sh
  setsid -c bash -i </dev/ttyS1
else
  /holdfast/guest/cases.sh ${cases//,/ }
fi
# Like a machine that loses its power: nothing is written back.
echo b >/proc/sysrq-trigger
