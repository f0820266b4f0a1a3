#!/usr/bin/env bash
# Makes the machine's kernel, initramfs and root file system from Debian packages; nothing is installed.
#   root.sh CACHE WORK     leaves CACHE/{vmlinuz,initramfs,root.img,kernel}; does nothing if they are those of this script. Status 3: no packages
set -euo pipefail
cache=$1 work=$2
key=$(sha256sum "$0" | cut -c1-16)
[ "$(cat "$cache/key" 2>/dev/null)" = "$key" ] && exit 0
echo "vm: making the machine's root in $cache"

packages=(linux-image-cloud-amd64 bash coreutils grep sed busybox-static kmod mount util-linux udev iproute2 e2fsprogs
  xfsprogs btrfs-progs quota open-iscsi tgt multipath-tools nfs-common nfs-kernel-server lvm2)
# Parts of the packages' closure that only their installation, or nothing here, needs.
unused='^(perl.*|libperl.*|lib.*-perl|python3.*|libpython.*|libicu.*|initramfs.*|klibc.*|libklibc|openssl|debconf|dpkg|cpio|sg3.*|linux-image-cloud.*|media-types|ca-certificates|usrmerge)$'

# As if nothing were installed, apt fetches all that the packages need.
fetch() {
  apt-get -qq -y --download-only --no-install-recommends -o Dir::State::status=/dev/null -o Debug::NoLocking=1 \
    -o Dir::Cache::archives="$work/debs" -o APT::Sandbox::User=root install "${packages[@]}" >/dev/null 2>"$work/apt.log"
}
mkdir -p "$work/debs/partial" "$work/root"
# Package lists may be missing or old here: fetch them anew and try once more.
fetch || { apt-get update -qq >/dev/null 2>&1 && fetch; } || { tail -n 5 "$work/apt.log"; exit 3; }

root=$work/root
mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc,tmp,root,proc,sys,dev,run,mnt,var/log,var/lib,holdfast,data}
for p in bin sbin lib lib64; do ln -s "usr/$p" "$root/$p"; done
ln -s ../run "$root/var/run"
for deb in "$work"/debs/*.deb; do
  name=$(basename "$deb")
  name=${name%%_*}
  ! [[ $name =~ $unused ]] || continue
  dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --no-same-owner --exclude='./usr/share/doc*' \
    --exclude='./usr/share/man*' --exclude='./usr/share/locale*' --exclude='./usr/lib/x86_64-linux-gnu/gconv*'
done
for program in $("$root/bin/busybox" --list); do
  [ -e "$root/usr/bin/$program" ] || [ -e "$root/usr/sbin/$program" ] || ln -s busybox "$root/usr/bin/$program"
done
printf '%s\n' root:x:0:0::/root:/bin/bash nobody:x:65534:65534::/:/bin/false statd:x:101:65534::/:/bin/false >"$root/etc/passwd"
printf '%s\n' root:x:0: disk:x:6: kvm:x:7: tty:x:5: dialout:x:20: nogroup:x:65534: >"$root/etc/group"
echo '127.0.0.1 localhost vm' >"$root/etc/hosts"
echo vm >"$root/etc/hostname"

kernel=$(basename "$root"/lib/modules/*)
chroot "$root" depmod "$kernel"
# What the kernel lacks to reach the root's disk.
small=$work/small
mkdir -p "$small"/{proc,dev,root}
cp "$root/bin/busybox" "$small/busybox"
chroot "$root" modprobe --show-depends --set-version "$kernel" --all virtio_pci virtio_blk ext4 |
  awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/modules"
{
  echo '#!/busybox sh'
  echo '/busybox mount -t devtmpfs dev /dev'
  while read -r module; do
    cp "$root$module" "$small/"
    echo "/busybox insmod /$(basename "$module")"
  done <"$work/modules"
  echo '/busybox mount -t ext4 /dev/vda /root && exec /busybox switch_root /root /holdfast-init'
} >"$small/init"
chmod 755 "$small/init"
cat >"$root/holdfast-init" <<'INIT'
#!/bin/bash
mount -t devtmpfs dev /dev
mount -t ext4 -o ro /dev/vdb /holdfast
exec /holdfast/guest/init.sh
INIT
chmod 755 "$root/holdfast-init"
cp "$root"/boot/vmlinuz-* "$cache/vmlinuz"
rm -r "$root/boot"
(cd "$small" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$cache/initramfs"
rm -f "$cache/root.img"
truncate -s 2G "$cache/root.img"
mkfs.ext4 -q -F -d "$root" "$cache/root.img"
echo "Linux $kernel" >"$cache/kernel"
echo "$key" >"$cache/key"
