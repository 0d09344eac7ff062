#!/usr/bin/env bash
# starve.sh PROCESS, in a node's machine: eats memory in the process's container until the kernel's OOM killer ends it.
. "$(dirname "$0")/../lib.sh"
. lab/setup/cluster/plan.sh

process=$1
cgroup=/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' "/proc/$process/cgroup")
limit=$(cat "$cgroup/memory.limit_in_bytes")
[ "$limit" -lt $((1 << 30)) ] || fail "the container of process $process has no memory limit"

# Of those in the container the kernel takes the process first, and then who still eats.
echo 1000 >"/proc/$process/oom_score_adj"
(
  echo "$BASHPID" >"$cgroup/cgroup.procs"
  # Keeps all that has no end of line.
  exec timeout 30 tail /dev/zero
) || true
within 5 test ! -d "/proc/$process" || fail "process $process outlived who ate its memory"
