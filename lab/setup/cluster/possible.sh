#!/usr/bin/env bash
# possible.sh: can this machine have a cluster? Exit 1, with the reason on stdout, where it cannot.
. "$(dirname "$0")/../lib.sh"
. lab/setup/cluster/plan.sh

no() { echo "$*"; exit 1; }

is_root && unshare --net --mount --pid --fork mount -t proc proc /proc 2>/dev/null || no "a cluster of containers needs root: sudo make cluster"
case $work in
  /run/* | /var/lib/* | /var/log/*) no "machines of the cluster have their own /run, /var/lib and /var/log: clone this to another place" ;;
esac
[ "$(uname -m)" = x86_64 ] || no "the cluster is made for x86_64 only"
[ -d /sys/fs/cgroup/memory ] || no "the cluster is made for cgroup v1 only, and this machine has none"
have_go || no "Kubernetes is built from its Go modules: install Go 1.26 or newer (https://go.dev/dl)"
[ -e /proc/sys/net/bridge ] || modprobe br_netfilter 2>/dev/null || no "the nodes' bridges need the kernel module br_netfilter"
