#!/usr/bin/env bash
# machine-init.sh NAME SCRIPT [ARGUMENT …]: the first process of a machine. Lays out what it sees of the file system, has
# SCRIPT start the daemons, and then becomes `pause`, which reaps orphans.
. "$(dirname "$0")/../lib.sh"
. lab/setup/cluster/plan.sh
name=$1
script=$2
shift 2

hostname "$name"
mount -t proc proc /proc
# A sysfs of its own shows the devices of this network namespace, and hides the mounts of the cgroups.
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
while read -r controller _; do
  mkdir "/sys/fs/cgroup/$controller"
  kind=$controller
  [ "$controller" != systemd ] || kind=none,name=systemd
  mount -t cgroup -o "$kind" cgroup "/sys/fs/cgroup/$controller"
done <"$state/$name/cgroups"

# The kubelet sets three sysctls that are the whole machine's, and ends where it cannot. Here it finds files that have
# its values already. /proc/sys/net is writable: it is this network namespace's own.
mkdir -p "$state/$name/sysctl"
for tree in vm kernel; do mount --bind "/proc/sys/$tree" "/proc/sys/$tree"; done
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  file=$state/$name/sysctl/$(basename "${setting%=*}")
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done
for tree in vm kernel; do mount -o remount,ro,bind "/proc/sys/$tree"; done

mount --bind "$state/$name/lib" /var/lib
mount --bind "$state/$name/log" /var/log
mount -t tmpfs -o mode=755 tmpfs /run
mount --make-rshared /
export PATH=$machine_path GOMAXPROCS=2
. "lab/setup/cluster/$script" "$@"
exec "$work/pause" "$name" running
