#!/usr/bin/env bash
# archive.sh OUT ROOT…: an OCI image archive of directories that are the images' whole file systems, one each, without an
# engine or a registry. In the environment: NAME, as host/path:tag; ENTRYPOINT and CMD, JSON lists; ARCHITECTURES, one word a
# directory (amd64, arm64). Same input, same bytes. `docker load`, `podman load` and `ctr images import` take it.
# Docker's own store knows no OCI layout, but a list of its own beside it, with the image of one architecture.
. "$(dirname "$0")/lib.sh"

out=${1:?"usage: NAME=… ENTRYPOINT=… archive.sh OUT ROOT…"}
shift
read -ra architectures <<<"${ARCHITECTURES:-amd64}"
[ ${#architectures[@]} = $# ] || fail "as many directories as ARCHITECTURES are needed"
layout=$(mktemp -d)
trap 'rm -rf "$layout"' EXIT
blobs=$layout/blobs/sha256
mkdir -p "$blobs"

# Takes a file in among the blobs and prints its descriptor, with MORE members: blob FILE TYPE [MORE]
blob() {
  local digest size
  digest=$(sha256sum "$1" | cut -d ' ' -f 1)
  size=$(stat -c %s "$1")
  mv "$1" "$blobs/$digest"
  printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s%s}' "$2" "$digest" "$size" "${3:-}"
}

# of_docker CONFIG LAYER: what docker's list says of the image with these descriptors.
of_docker() {
  local path='s/.*"sha256:\([0-9a-f]*\)".*/blobs\/sha256\/\1/'
  printf '[{"Config":"%s","RepoTags":["%s"],"Layers":["%s"]}]' "$(sed "$path" <<<"$1")" "${NAME:?}" "$(sed "$path" <<<"$2")"
}

manifests=
legacy=
for root; do
  architecture=${architectures[0]}
  architectures=("${architectures[@]:1}")
  tar -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -cf "$layout/layer" .
  unpacked=$(sha256sum "$layout/layer" | cut -d ' ' -f 1)
  gzip -n "$layout/layer"
  layer=$(blob "$layout/layer.gz" layer.v1.tar+gzip)
  cat >"$layout/config" <<JSON
{"architecture":"$architecture","os":"linux","config":{"User":"0:0","Env":["PATH=/bin"],"Entrypoint":${ENTRYPOINT:?},"Cmd":${CMD:-[]}},"rootfs":{"type":"layers","diff_ids":["sha256:$unpacked"]}}
JSON
  config=$(blob "$layout/config" config.v1+json)
  case $(uname -m):$architecture in
    x86_64:amd64 | aarch64:arm64) legacy=$(of_docker "$config" "$layer") ;;
    *) legacy=${legacy:-$(of_docker "$config" "$layer")} ;;
  esac
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
    "$config" "$layer" >"$layout/manifest"
  platform=",\"platform\":{\"architecture\":\"$architecture\",\"os\":\"linux\"}"
  manifests+=${manifests:+,}$(blob "$layout/manifest" manifest.v1+json "$platform")
done

printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' "$manifests" >"$layout/all"
# containerd names the image by the one annotation, docker and podman by the other.
names=",\"annotations\":{\"io.containerd.image.name\":\"${NAME:?}\",\"org.opencontainers.image.ref.name\":\"$NAME\"}"
printf '{"schemaVersion":2,"manifests":[%s]}' "$(blob "$layout/all" index.v1+json "$names")" >"$layout/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
printf '%s' "$legacy" >"$layout/manifest.json"
mkdir -p "$(dirname "$out")"
tar -C "$layout" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$out.new" oci-layout index.json manifest.json blobs
mv "$out.new" "$out"
