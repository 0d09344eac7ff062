#!/usr/bin/env bash
# vm-run.sh [COMMAND …]: boots a virtual machine with a kernel that has WireGuard, runs the command in it (bash reads it
# from stdin if there is none), and ends with its exit status. The host's files are there, read-only for the host: what
# is written stays in the machine's memory. No network but its own. Emulated, so 10 times slower, unless
# WIREVIP_VM_ACCEL=kvm says that KVM works here: that it is there does not mean so within another virtual machine.
. "$(dirname "$0")/lib.sh"

dir=$(lab/setup/vm-kernel.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/vm"
{
  echo "export PATH=$PATH HOME=/root"
  for name in "${!WIREVIP_@}"; do [ -z "${!name:-}" ] || printf 'export %s=%q\n' "$name" "${!name}"; done
  printf 'cd %q || exit 1\n' "$top"
  if [ $# -gt 0 ]; then printf '%q ' "$@"; else cat; fi
} >"$work/vm/job"
# A second archive behind the first: the kernel unpacks both.
(cd "$work" && find vm -type f | cpio -o -H newc --quiet | gzip -1 | cat "$dir/initrd" -) >"$work/initrd"

accel=${WIREVIP_VM_ACCEL:-tcg,thread=multi}
status=0
timeout --foreground "${WIREVIP_VM_LIMIT:-3600}" qemu-system-x86_64 \
  -accel "$accel" -cpu max -smp 2 -m 3072 -display none -serial stdio -monitor none -no-reboot \
  -kernel "$dir/kernel" -initrd "$work/initrd" -append 'console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off' \
  -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap -nic none </dev/null |
  sed -u 's|\r$||' | tee "$work/log" | grep --line-buffered -v '^vm: exit' || status=$?
told=$(sed -nE 's/.*vm: exit ([0-9]+)$/\1/p' "$work/log" | tail -n 1)
[ -n "$told" ] || fail "the virtual machine did not get to its end (status $status)"
exit "$told"
