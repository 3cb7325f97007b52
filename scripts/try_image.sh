#!/usr/bin/env bash
# Build docker/Dockerfile where no Docker engine and no registry of images is to be had: buildah, on a Debian root made by
# debootstrap in place of NVIDIA's image. Proves every step but the base itself; takes CPU builds of torch where pip finds
# them (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL). Needs root, `apt-get install buildah debootstrap`, 15 GB in FOLDER.
#
#     scripts/try_image.sh FOLDER [RELEASE]
set -euo pipefail

[ "$#" -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
release=${2-bookworm}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export TMPDIR=$folder/tmp CONTAINERS_STORAGE_CONF=$folder/storage.conf BUILDAH_ISOLATION=chroot
mkdir -p "$TMPDIR"
# vfs works in containers too, where overlay file systems may not be stacked.
printf '[storage]\ndriver = "vfs"\nrunroot = "%s"\ngraphroot = "%s"\n' "$folder/run" "$folder/graph" \
    >"$CONTAINERS_STORAGE_CONF"

[ -d "$folder/root/etc" ] || debootstrap --variant=minbase "$release" "$folder/root" http://deb.debian.org/debian
base=$(buildah from scratch)
buildah add --quiet "$base" "$folder/root" /
# What this machine trusts besides, such as the certificate of a proxy.
[ ! -d /usr/local/share/ca-certificates ] ||
    buildah copy --quiet "$base" /usr/local/share/ca-certificates/ /usr/local/share/ca-certificates/
buildah config --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$base"
wheels=()
if [ -n "${PIP_FIND_LINKS-}" ]; then
    buildah config --env PIP_FIND_LINKS="$PIP_FIND_LINKS" "$base"
    wheels=(--volume "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro")
fi
buildah commit --quiet --rm "$base" localhost/cuda-stand-in:13.0

# docker: the format that has health checks.
buildah bud --format docker --build-arg CUDA_IMAGE=localhost/cuda-stand-in:13.0 \
    --build-arg PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL-}" ${wheels[@]+"${wheels[@]}"} \
    --file docker/Dockerfile --tag localhost/multitalk-local .

tried=$(buildah from localhost/multitalk-local)
buildah run "$tried" -- sh -c 'id && multitalk --version && ! command -v gcc cc c++ make git'
buildah inspect --type image --format '{{.Docker.Config}}' localhost/multitalk-local
buildah rm "$tried" >/dev/null
