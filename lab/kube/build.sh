#!/usr/bin/env bash
# build.sh OUTDIR [NAME …]: etcd, kube-apiserver and client-go's elector, or some of them, from their Go modules, for
# the tests; `cluster`, all of Kubernetes in one program, and `coredns` for `make cluster`. WIREVIP_KUBERNETES (1.35) says
# of which release, if not of the newest: that one comes out as `cluster-1.35`.
#
# What is up to date is left alone: beside each binary lies a stamp of its sources and the Go that built it. A
# kube-apiserver or an etcd of KUBEBUILDER_ASSETS is used where it is, and one on PATH, if new enough: etcd before 3.6
# (Debian's is 3.4) cannot tell the API server's watch cache how far it is. Exit 1, with the reason, where Go is missing.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 OUTDIR [etcd] [kube-apiserver] [elector] [cluster]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- etcd kube-apiserver elector

note() { printf '   %s\n' "$*" >&2; }

# usable NAME: prints where a good one is already.
usable() {
  local name=$1 found
  if [ -x "${KUBEBUILDER_ASSETS:-/nonexistent}/$name" ] && [ "$KUBEBUILDER_ASSETS" != "$out" ]; then
    echo "$KUBEBUILDER_ASSETS/$name"
    return
  fi
  found=$(command -v "$name") || return 1
  if [ "$name" = etcd ]; then
    local version
    version=$("$found" --version | sed -nE 's/^etcd Version: ([0-9]+\.[0-9]+).*/\1/p')
    [ "$(printf '3.6\n%s\n' "$version" | sort -V | head -n 1)" = 3.6 ] || return 1
  fi
  echo "$found"
}

# build NAME DIRECTORY HOW_LONG [LINKER FLAGS [MODULE FILE]]
build() {
  local name=$1 source=$here/$2 long=$3 flags="-s -w ${4:-}" module=${5:-go.mod} found stamp started=$SECONDS
  if found=$(usable "$name"); then
    note "$name: $found is used"
    return
  fi
  if ! command -v go >/dev/null; then
    note "$name: cannot be built without Go; install it (https://go.dev/dl), or name a directory with kube-apiserver and etcd in KUBEBUILDER_ASSETS"
    return 1
  fi
  stamp=$( (go version; echo "$flags"; cat "$source/$module" "$source/${module%.mod}.sum" "$source"/*.go) | sha256sum)
  if [ -x "$out/$name" ] && [ "$(cat "$out/$name.stamp" 2>/dev/null)" = "$stamp" ]; then
    note "$name: up to date"
    return
  fi
  note "$name: building, $long the first time"
  # Into place only when whole: an interrupted build leaves nothing that looks finished.
  (cd "$source" && GOFLAGS=-mod=readonly go build -modfile="$module" -trimpath -ldflags "$flags" -o "$out/$name.new" .)
  mv "$out/$name.new" "$out/$name"
  echo "$stamp" >"$out/$name.stamp"
  note "$name: built in $((SECONDS - started)) s"
}

# versioned MODULE_FILE: linker flags that name its Kubernetes; a build of one's own calls itself v0.0.0 unless told.
versioned() {
  local kubernetes base=k8s.io/component-base/version
  kubernetes=$(sed -nE 's/^\tk8s.io\/kubernetes (v[0-9.]+).*/\1/p' "$here/$1")
  echo "-X $base.gitVersion=$kubernetes -X $base.gitMajor=1 -X $base.gitMinor=$(cut -d. -f2 <<<"$kubernetes")"
}

build_cluster() {
  local release=${WIREVIP_KUBERNETES:-} module=go.mod
  if [ -n "$release" ]; then
    module=$release.mod
    [ -e "$here/cluster/$module" ] || { note "no Kubernetes $release here: lab/kube/cluster has $(cd "$here/cluster" && echo [0-9]*.mod)"; return 1; }
  fi
  build "cluster${release:+-$release}" cluster "6 min, 1 GB of Go modules and 3 GB of Go's build cache" "$(versioned "cluster/$module")" "$module"
}

for name in "$@"; do
  case $name in
    etcd) build etcd etcd "1 min and 300 MB of Go modules" ;;
    kube-apiserver) build kube-apiserver apiserver "3 min and 1 GB of Go modules" "$(versioned apiserver/go.mod)" ;;
    cluster) build_cluster ;;
    coredns) build coredns coredns "2 min and 300 MB of Go modules" ;;
    elector) build elector elector "1 min and 300 MB of Go modules" ;;
    *) echo "$0 knows no '$name'" >&2; exit 2 ;;
  esac
done
