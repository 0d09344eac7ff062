#!/bin/sh
# vm-init.sh: the first process of the machine that lab/setup/vm-run.sh boots; runs in busybox. The host's files are the
# machine's too, read-only under a layer in memory that takes what is written. Runs /vm/job in them, tells its exit
# status, and powers off.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
mkdir -p /host /layer /new
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /host
mount -t tmpfs layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /new
mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t cgroup2 cgroup /new/sys/fs/cgroup
mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/shm /new/dev/pts
ln -s /proc/self/fd /new/dev/fd
for number in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${number%:*}" "/new/dev/${number#*:}"; done
mount -t devpts pts /new/dev/pts
for tree in run tmp dev/shm; do mount -t tmpfs tree "/new/$tree"; done
mkdir -p /new/lib/modules /new/run/netns /new/dev/net
[ -e /new/dev/net/tun ] || mknod /new/dev/net/tun c 10 200
mount -o bind "/new$(cat /vm/modules)" /new/lib/modules
cp /vm/job /new/run/vm-job
ip link set lo up
chroot /new /bin/bash /run/vm-job </dev/null
echo "vm: exit $?"
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
