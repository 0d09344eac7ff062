#!/usr/bin/env bash
# build.sh: what a cluster consists of, into target/: Kubernetes, etcd and CoreDNS from their Go modules (9 min, once),
# containerd, runc and the CNI plugins from apt, unpacked and not installed, and the images that every node has from its
# start.
. "$(dirname "$0")/../lib.sh"
. lab/setup/cluster/plan.sh

why=$(lab/setup/cluster/possible.sh) || fail "$why"
lab/setup/packages.sh test cluster

mkdir -p "$programs" "$images"
CGO_ENABLED=0 lab/kube/build.sh target/kube cluster coredns
env -u KUBEBUILDER_ASSETS lab/kube/build.sh target/kube etcd
for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
  ln -sfn "$top/target/kube/cluster${WIREVIP_KUBERNETES:+-$WIREVIP_KUBERNETES}" "$programs/$name"
done
[ ! -x target/kube/etcd ] || ln -sfn "$top/target/kube/etcd" "$programs/etcd"

# newest PACKAGE …: what apt would install.
newest() { apt-cache policy "$@" | awk '/^[^ ]/ {name = $1} /Candidate:/ {print name $2}'; }

names=(containerd runc containernetworking-plugins)
[ "$(newest "${names[@]}" | grep -vc '(none)')" = ${#names[@]} ] || as_root apt-get -qq update </dev/null >/dev/null
version=$(newest "${names[@]}")
if [ "$version" != "$(cat "$packages/version" 2>/dev/null)" ]; then
  say "downloading ${names[*]} (50 MB, once); they are unpacked into target/ and not installed"
  rm -rf "$packages" "$packages.new"
  mkdir -p "$packages.new/deb"
  (cd "$packages.new/deb" && apt-get -qq -o APT::Sandbox::User=root download "${names[@]}") >&2
  for package in "$packages.new"/deb/*.deb; do dpkg -x "$package" "$packages.new"; done
  rm -r "$packages.new/deb"
  echo "$version" >"$packages.new/version"
  mv "$packages.new" "$packages"
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
# image NAME PROGRAM: of one static program, if that is newer.
image() {
  [ "$2" -nt "$images/$1.tar" ] || return 0
  mkdir "$root/$1"
  cp "$2" "$root/$1/$1"
  NAME=localhost/$1:1 ENTRYPOINT="[\"/$1\"]" lab/setup/archive.sh "$images/$1.tar" "$root/$1"
}
[ "$work/pause" -nt lab/setup/cluster/pause.c ] || cc -static -Os -s -o "$work/pause" lab/setup/cluster/pause.c
image pause "$work/pause"
image coredns target/kube/coredns
