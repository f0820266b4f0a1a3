#!/usr/bin/env bash
# Makes small stand-ins of the labs' images from Debian packages, for machines that reach no container registry.
#
#   build.sh OUT_DIR        writes OUT_DIR/{nginx,nginx-alpine,fortune}.tar, one OCI archive per image, its name inside
#
# nginx:latest and nginx:alpine  nginx, bash, curl and busybox; serves /usr/share/nginx/html on port 80
# luksa/fortune:latest           writes a fortune to /var/htdocs/index.html every 10 seconds, as in the notes
#
# Uses apt-get download and dpkg-deb only: nothing is installed, no root is needed. Equal packages give equal bytes.
set -euo pipefail
export LC_ALL=C
[ $# = 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
for tool in apt-get apt-cache dpkg-deb; do
  command -v $tool >/dev/null ||
    { echo "build.sh: needs $tool (Debian, Ubuntu); elsewhere copy archives that were made there" >&2; exit 1; }
done
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
arch=$(dpkg --print-architecture)

# All packages that the given ones need, following libraries only: no package managers, no configuration tools.
closure() {
  local todo=("$@") seen
  seen=$(printf '%s\n' "$@")
  while [ ${#todo[@]} -gt 0 ]; do
    mapfile -t todo < <(apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
      --no-enhances "${todo[@]}" | sed -nE 's/^ *\|?(Pre)?[Dd]epends: ((lib|zlib1g)[^ <]*)$/\2/p' |
      grep -vE '^lib(bsd|debian-installer|newt|slang|textwrap)' | sort -u | grep -vxF "$seen")
    seen+=$'\n'$(printf '%s\n' "${todo[@]}")
  done
  echo "$seen"
}

nginx_roots=(nginx nginx-common bash curl busybox-static)
fortune_roots=(fortune-mod fortunes-min bash busybox-static)

# fetch: the packages of both images into $work/debs; prints nothing
fetch() {
  nginx_packages=$(closure "${nginx_roots[@]}")
  fortune_packages=$(closure "${fortune_roots[@]}")
  # shellcheck disable=SC2086
  (cd "$work/debs" && apt-get download -qq $(printf '%s\n' $nginx_packages $fortune_packages | sort -u)) 2>"$work/apt.log"
}
mkdir "$work/debs"
# Package lists may be missing or old here: fetch them anew and try once more.
fetch || { apt-get update -qq && fetch; } ||
  { cat "$work/apt.log" >&2; echo "build.sh: apt-get could not fetch the packages named above" >&2; exit 1; }

# unpack ROOT PACKAGE...: a merged-/usr file system without documentation
unpack() {
  local root=$1 p deb
  shift
  mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc,tmp,root,proc,sys,dev,run,var/log,var/lib,var/cache}
  chmod 1777 "$root/tmp"
  for p in bin sbin lib lib64; do ln -s "usr/$p" "$root/$p"; done
  for p in "$@"; do
    for deb in "$work/debs/${p}"_*.deb; do
      dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --no-same-owner \
        --exclude='./usr/share/doc*' --exclude='./usr/share/man*' --exclude='./usr/share/locale*' \
        --exclude='./usr/share/lintian*' --exclude='./usr/share/bash-completion*' --exclude='./usr/lib/*/gconv*' \
        --exclude='./usr/lib/*/engines*' --exclude='./etc/init.d*' --exclude='./lib/systemd*'
    done
  done
  local busybox
  busybox=$(find "$root/usr/bin" -name busybox)
  for p in $("$busybox" --list); do
    [ -e "$root/usr/bin/$p" ] || [ -e "$root/usr/sbin/$p" ] || ln -s busybox "$root/usr/bin/$p"
  done
  printf '%s\n' 'root:x:0:0:root:/root:/bin/bash' 'www-data:x:33:33:www-data:/var/www:/bin/false' \
    'nobody:x:65534:65534:nobody:/:/bin/false' >"$root/etc/passwd"
  printf '%s\n' 'root:x:0:' 'www-data:x:33:' 'nogroup:x:65534:' >"$root/etc/group"
  printf '%s\n' 'passwd: files' 'group: files' 'hosts: files dns' >"$root/etc/nsswitch.conf"
}

# blob FILE MEDIA_TYPE: moves a file into the layout and prints its descriptor
blob() {
  local digest size
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  size=$(stat -c %s "$1")
  mkdir -p "$layout/blobs/sha256"
  mv "$1" "$layout/blobs/sha256/$digest"
  printf '{"mediaType":"%s","digest":"sha256:%s","size":%s' "$2" "$digest" "$size"
}

# archive ROOT NAME FILE CONFIG: one layer, one manifest, one name
archive() {
  local root=$1 name=$2 file=$3 config=$4 layer diff oci=application/vnd.oci.image
  layout=$work/layout
  rm -rf "$layout"
  mkdir "$layout"
  tar -c -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=pax \
    --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -f "$work/layer.tar" .
  diff=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
  gzip -n -6 -c "$work/layer.tar" >"$work/layer.gz"
  rm "$work/layer.tar"
  layer="$(blob "$work/layer.gz" $oci.layer.v1.tar+gzip)}"
  printf '{"created":"1970-01-01T00:00:00Z","architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$arch" "$config" "$diff" >"$work/config"
  printf '{"schemaVersion":2,"mediaType":"%s","config":%s},"layers":[%s]}' \
    $oci.manifest.v1+json "$(blob "$work/config" $oci.config.v1+json)" "$layer" >"$work/manifest"
  printf '{"schemaVersion":2,"mediaType":"%s","manifests":[%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    $oci.index.v1+json "$(blob "$work/manifest" $oci.manifest.v1+json)" "$arch" "$name" "${name##*:}" >"$layout/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  tar -c -C "$layout" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -f "$out/$file.part" oci-layout index.json blobs
  mv "$out/$file.part" "$out/$file"
  echo "$out/$file: $name"
}

path='"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games"]'

# shellcheck disable=SC2086
unpack "$work/nginx" $nginx_packages
rm -rf "$work/nginx/etc/nginx/sites-available" "$work/nginx/etc/nginx/modules-available" "$work/nginx/usr/share/nginx/modules-available"
mkdir -p "$work/nginx"/{usr/share/nginx/html,var/log/nginx,var/lib/nginx/body,run}
cat >"$work/nginx/etc/nginx/nginx.conf" <<'EOF'
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log notice;
events { worker_connections 512; }
http {
    include mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/access.log;
    sendfile on;
    server {
        listen 80;
        server_name localhost;
        location / { root /usr/share/nginx/html; index index.html; }
    }
}
EOF
echo '<html><body><h1>Welcome to nginx!</h1></body></html>' >"$work/nginx/usr/share/nginx/html/index.html"
ln -sf /dev/stdout "$work/nginx/var/log/nginx/access.log"
ln -sf /dev/stderr "$work/nginx/var/log/nginx/error.log"
config='{'$path',"Cmd":["nginx","-g","daemon off;"],"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT"}'
archive "$work/nginx" docker.io/library/nginx:latest nginx.tar "$config"
archive "$work/nginx" docker.io/library/nginx:alpine nginx-alpine.tar "$config"

# shellcheck disable=SC2086
unpack "$work/fortune" $fortune_packages
cat >"$work/fortune/usr/bin/fortuneloop.sh" <<'EOF'
#!/bin/bash
trap "exit" INT TERM
mkdir -p /var/htdocs
while :
do
  echo "$(date) Writing fortune to /var/htdocs/index.html"
  /usr/games/fortune > /var/htdocs/index.html
  sleep 10 & wait $!
done
EOF
chmod 755 "$work/fortune/usr/bin/fortuneloop.sh"
archive "$work/fortune" docker.io/luksa/fortune:latest fortune.tar '{'$path',"Entrypoint":["/bin/fortuneloop.sh"]}'
