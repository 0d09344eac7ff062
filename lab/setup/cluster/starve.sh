#!/usr/bin/env bash
# starve.sh PROCESS, in a node's machine: takes memory from the process's container until the kernel's OOM killer ends it.
# The limit goes with the container. The kernel frees what it can at each step, and refuses one below what it cannot.
set -euo pipefail

process=$1
limit=/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' "/proc/$process/cgroup")/memory.limit_in_bytes
deadline=$((SECONDS + 30))
while [ -d "/proc/$process" ]; do
  [ $SECONDS -lt $deadline ] || { echo "process $process lives on $(cat "$limit") bytes" >&2; exit 1; }
  { echo $(($(cat "${limit%limit*}usage_in_bytes") - 65536)) >"$limit"; } 2>/dev/null || true
done
