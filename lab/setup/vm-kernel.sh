#!/usr/bin/env bash
# vm-kernel.sh: a Debian kernel with WireGuard, and an initramfs that leads into the host's files: into target/vm/.
# Downloads apt's newest linux-image-amd64 (70 MB) and takes what is needed out of it; installs QEMU and busybox, but no
# kernel. Prints nothing but the directory: `kernel`, `initrd`, `release` and `modules` are in it.
. "$(dirname "$0")/lib.sh"

[ "$(uname -m)" = x86_64 ] || fail "the virtual machine is made for x86_64 only"
lab/setup/packages.sh vm
vm=$top/target/vm
mkdir -p "$vm"

image() { apt-cache depends --important linux-image-amd64 2>/dev/null | sed -nE 's/.*Depends: (linux-image-[0-9].*)/\1/p' | head -n 1; }
name=$(image)
[ -n "$name" ] || { as_root apt-get -qq update </dev/null >/dev/null; name=$(image); }
[ -n "$name" ] || fail "apt knows no linux-image-amd64 here: it is Debian's kernel"
release=${name#linux-image-}
dir=$vm/$release

if [ ! -e "$dir/kernel" ]; then
  say "downloading $name (70 MB, once)"
  rm -rf "$dir" "$vm/new"
  mkdir -p "$vm/new"
  (cd "$vm/new" && apt-get -qq -o APT::Sandbox::User=root download "$name") >&2 || {
    as_root apt-get -qq update </dev/null >/dev/null
    (cd "$vm/new" && apt-get -qq -o APT::Sandbox::User=root download "$name") >&2
  }
  modules=./lib/modules/$release
  dpkg-deb --fsys-tarfile "$vm/new/$name"_*.deb | tar -x -C "$vm/new" --wildcards "./boot/vmlinuz-*" "$modules/modules.*" \
    "$modules/kernel/"{net,lib,crypto,arch,fs/9p,fs/netfs,fs/fscache,fs/overlayfs,drivers/net/wireguard,drivers/virtio} \
    "$modules/kernel/drivers/net/*.ko*"
  rm "$vm/new/$name"_*.deb
  depmod -b "$vm/new" "$release" >&2
  echo "$release" >"$vm/new/release"
  mv "$vm/new/boot/vmlinuz-$release" "$vm/new/kernel"
  mv "$vm/new" "$dir"
fi

# The initramfs costs a second: made anew each time, so that it is never older than vm-init.sh.
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,proc,sys,dev,modules,vm}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh mount insmod mkdir mknod ln cp cat ip chroot sync sleep; do ln -s busybox "$root/bin/$applet"; done
for module in virtio_pci 9p 9pnet_virtio overlay; do
  modprobe -d "$dir" -S "$release" --show-depends "$module" | awk '$1 == "insmod" {print $2}'
done | awk '!seen[$0]++' | while read -r file; do
  cp "$file" "$root/modules/"
  basename "$file" >>"$root/modules/order"
done
# The kernel looks for its loader in the initramfs; the real one is among the host's files.
mkdir "$root/sbin"
printf '#!/bin/sh\nexec chroot /new /sbin/modprobe "$@"\n' >"$root/sbin/modprobe"
chmod 755 "$root/sbin/modprobe"
install -m 755 lab/setup/vm-init.sh "$root/init"
echo "$dir/lib/modules" >"$root/vm/modules"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$dir/initrd.$$"
mv "$dir/initrd.$$" "$dir/initrd"
echo "$dir"
