# Sourced after plan.sh: starts, enters and ends a machine of the cluster.
#
# A machine is a set of namespaces (mount, PID, UTS, IPC, cgroup, and a named network namespace made before) with its own
# /run, /var/lib, /var/log and cgroups. When its first process is killed, all in it dies and its mounts are gone: that
# is power-off and clean-up in one.

# machine_pid NAME: the id of its first process, if it runs. The command line guards against an id that is used again.
machine_pid() {
  local pid
  pid=$(cat "$state/$1/pid" 2>/dev/null) || return 1
  { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qE "(machine-init\.sh|pause) $1 " && echo "$pid"
}

# This shell's place in each hierarchy of cgroup v1: controller and directory.
cgroups_here() {
  local controller path
  while IFS=: read -r _ controller path; do
    controller=${controller#name=}
    [ -n "$controller" ] && [ -d "/sys/fs/cgroup/$controller" ] || continue
    echo "$controller /sys/fs/cgroup/$controller${path%/}"
  done </proc/self/cgroup
}

# Moves this shell into the machine's cgroups.
join_cgroups() {
  local directory
  while read -r _ directory; do echo "$BASHPID" >"$directory/wirevip-$1/cgroup.procs"; done <"$state/$1/cgroups"
}

make_cgroups() {
  local controller directory file
  cgroups_here >"$state/$1/cgroups"
  while read -r controller directory; do
    mkdir -p "$directory/wirevip-$1"
    [ "$controller" = cpuset ] || continue
    # Empty at first, and then no process may join.
    for file in cpuset.cpus cpuset.mems; do cat "$directory/$file" >"$directory/wirevip-$1/$file"; done
  done <"$state/$1/cgroups"
}

# machine_start NAME NETNS SCRIPT [ARGUMENT …]: the script is sourced by the machine's first process.
machine_start() {
  local name=$1 netns=$2 outer
  shift 2
  ! machine_pid "$name" >/dev/null || fail "$name is on already"
  mkdir -p "$state/$name/lib" "$state/$name/log"
  make_cgroups "$name"
  (
    join_cgroups "$name"
    exec setsid nsenter --net="/run/netns/$netns" \
      unshare --mount --propagation private --pid --fork --kill-child=KILL --uts --ipc --cgroup \
      bash lab/setup/cluster/machine-init.sh "$name" "$@" </dev/null >"$state/$name/log/boot.log" 2>&1
  ) &
  outer=$!
  within 5 is_unshare "$outer" || fail "$name does not start: $(cat "$state/$name/log/boot.log")"
  tr -d ' ' <"/proc/$outer/task/$outer/children" >"$state/$name/pid"
}

# Once it has become unshare, its only child is the machine's first process: before, it has passing ones.
is_unshare() { grep -qx unshare "/proc/$1/comm" && grep -q . "/proc/$1/task/$1/children"; }

# machine_enter NAME COMMAND …: runs it in all of the machine's namespaces and cgroups.
machine_enter() {
  local name=$1 pid
  pid=$(machine_pid "$name") || fail "$name is off"
  shift
  (
    # nsenter -C alone would leave the process in the cgroups outside.
    join_cgroups "$name"
    exec nsenter --target "$pid" --mount --net --pid --uts --ipc --cgroup env PATH="$machine_path" "$@"
  )
}

# machine_kill NAME: all of it ends at once, as by a power cut. Its disk stays.
machine_kill() {
  local pid directory
  pid=$(machine_pid "$1") || return 0
  kill -KILL "$pid"
  within 10 test ! -d "/proc/$pid" || fail "$1 does not end"
  rm "$state/$1/pid"
  while read -r _ directory; do
    # Cgroups stay behind, and a killed process may take a moment to leave its own.
    within 5 remove_cgroup "$directory/wirevip-$1" || note "left behind: $directory/wirevip-$1"
  done <"$state/$1/cgroups"
}

remove_cgroup() { [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +; }
