#!/usr/bin/env bash
# packages.sh build|lab|test|cluster|vm|fuzz|vendor|{cross,emulated}_{aarch64,x86_64}: installs what is missing of a set of Debian or Ubuntu packages, and says so.
. "$(dirname "$0")/lib.sh"

# What must be found, and the package that brings it.
build="cc:gcc ld:binutils curl:curl"
lab="$build ip:iproute2 nft:nftables nsenter:util-linux setpriv:util-linux ps:procps ping:iputils-ping wg:wireguard-tools wireguard-go:wireguard-go"
test="$lab conntrack:conntrack iperf3:iperf3 tcpdump:tcpdump jq:jq openssl:openssl"
cluster="sysctl:procps mount:mount"
fuzz="$build c++:g++"
vendor="$build patch:patch"
vm="qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio modprobe:kmod"
cross_aarch64="aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu"
cross_x86_64="x86_64-linux-gnu-gcc:gcc-x86-64-linux-gnu"
emulated_aarch64="qemu-aarch64-static:qemu-user-static"
emulated_x86_64="qemu-x86_64-static:qemu-user-static"

[ $# -gt 0 ] || fail "usage: packages.sh build|lab|test|cluster|vm|fuzz|vendor|{cross,emulated}_{aarch64,x86_64} …"
missing=()
for set in "$@"; do
  case $set in build | lab | test | cluster | vm | fuzz | vendor | cross_aarch64 | cross_x86_64 | emulated_aarch64 | emulated_x86_64) ;; *) fail "packages.sh knows no set '$set'" ;; esac
  for pair in ${!set}; do
    have "${pair%%:*}" || missing+=("${pair##*:}")
  done
done
# Recommended by the cross compiler, and left out with --no-install-recommends: the other architecture's C library.
case " $* " in *" cross_aarch64 "*) [ -e /usr/aarch64-linux-gnu/include/stdlib.h ] || missing+=(libc6-dev-arm64-cross) ;; esac
case " $* " in *" cross_x86_64 "*) [ -e /usr/x86_64-linux-gnu/include/stdlib.h ] || missing+=(libc6-dev-amd64-cross) ;; esac
# gcc alone brings no C library headers; ring's build needs them.
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
[ ${#missing[@]} -gt 0 ] || exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
have apt-get || fail "please install: ${missing[*]} (this machine has no apt-get, so it cannot be done for you)"
say "installing with apt-get: ${missing[*]}"
as_root true || fail "please run as root, or 'sudo -v' before this: apt-get update && apt-get install ${missing[*]}"
# A machine that has just started may be updating itself: then apt's lists are locked for a minute or two.
locked=30
until told=$(as_root apt-get -qq update </dev/null 2>&1 >/dev/null); do
  [[ $told == *lock* ]] && [ $((locked -= 1)) -gt 0 ] || fail "apt-get update failed: $told"
  note "another program uses apt; waiting for it"
  sleep 10
done
as_root apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --no-install-recommends -y "${missing[@]}" </dev/null >/dev/null ||
  fail "apt-get could not install ${missing[*]}: its message stands above"
