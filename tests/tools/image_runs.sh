#!/bin/sh
# usage: image_runs.sh proxy|control FOLDER
# Runs what an unpacked image holds, with that folder as its root, read-only, in namespaces of its own, as the container
# would: the proxy captures with one capability, then runs as its user without any and answers. Takes root.
set -eu
image=$1 root=$2
if [ "${inside:-}" != yes ]; then
  exec env inside=yes unshare --net --mount --pid --fork --kill-child sh "$0" "$image" "$root"
fi

mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
mkdir "$root/dev/shm"
for device in null urandom; do
  : > "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t tmpfs tmpfs "$root/tmp"
mount -o remount,bind,ro "$root"
PATH="$PATH:/usr/sbin:/sbin"
ip link set lo up
ip link add eth0 type veth peer name wire
ip link set wire up
ip addr add 198.18.3.1/24 dev eth0
ip link set eth0 up
ip route add default via 198.18.3.2

# As the container: its user, its capabilities, its root.
in_root() {
  user=$1 bounding=$2
  shift 2
  # chroot itself takes a capability, so what follows it is dropped by the bounding set's next exec.
  setpriv --bounding-set="-all,+sys_chroot,+setuid,+setgid$bounding" --inh-caps=-all \
    chroot --userspec="$user:$user" "$root" "$@"
}

if [ "$image" = control ]; then
  in_root 65532 "" /usr/local/bin/outrigger-control --version
  in_root 65532 "" /usr/local/bin/outriggerctl --version
  exit
fi
in_root 1337 "" /usr/local/bin/outrigger-proxy --version
in_root 0 "" /usr/sbin/nft --version
in_root 0 "" /usr/sbin/iptables-legacy-restore --version
for backend in nft iptables; do
  in_root 0 ",+net_admin" /usr/local/bin/outrigger-proxy intercept apply --verify --backend $backend
done
in_root 0 ",+net_admin" /usr/local/bin/outrigger-proxy intercept apply --verify

# The proxy as its user, until it says that it is ready.
cat > "$root/tmp/bootstrap.yaml" <<'YAML'
node: { id: image, cluster: image }
admin: { address: { socket_address: { address: 127.0.0.1, port_value: 15000 } } }
static_resources:
  listeners: []
YAML
in_root 1337 "" /usr/local/bin/outrigger-proxy -c /tmp/bootstrap.yaml > "$root/tmp/log" 2>&1 &
pid=$!
tries=0
until grep -q "outrigger-proxy ready " "$root/tmp/log"; do
  tries=$((tries + 1))
  if [ $tries -gt 200 ] || ! kill -0 $pid 2>/dev/null; then
    cat "$root/tmp/log" >&2
    echo "the proxy did not become ready in its image" >&2
    exit 1
  fi
  sleep 0.05
done
grep "outrigger-proxy ready " "$root/tmp/log"
kill $pid
# 143 where the signal came before the proxy looked out for it.
wait $pid || [ $? = 143 ]
