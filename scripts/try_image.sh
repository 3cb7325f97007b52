#!/usr/bin/env bash
# Build an image where no Docker engine and no registry of images is to be had: buildah, on a Debian root made by
# debootstrap in place of NVIDIA's image or Python's. Proves every step but the base itself, and runs the worker's
# self-test in it; takes CPU builds of torch where pip finds them (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL). Needs root,
# `apt-get install buildah debootstrap`, 15 GB in FOLDER.
#
#     scripts/try_image.sh FOLDER [Dockerfile|docker/Dockerfile.cpu] [RELEASE]
set -euo pipefail

[ "$#" -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
recipe=${2-Dockerfile}
release=${3-bookworm}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case $recipe in
    *.cpu)
        # What python:3.11-slim has.
        root=$folder/python base=PYTHON_IMAGE packages=ca-certificates,python3,python3-pip,python3-venv ;;
    *)
        root=$folder/root base=CUDA_IMAGE packages=ca-certificates ;;
esac

export TMPDIR=$folder/tmp CONTAINERS_STORAGE_CONF=$folder/storage.conf BUILDAH_ISOLATION=chroot
mkdir -p "$TMPDIR"
# vfs works in containers too, where overlay file systems may not be stacked.
printf '[storage]\ndriver = "vfs"\nrunroot = "%s"\ngraphroot = "%s"\n' "$folder/run" "$folder/graph" \
    >"$CONTAINERS_STORAGE_CONF"

[ -d "$root/etc" ] || debootstrap --variant=minbase --include="$packages" "$release" "$root" http://deb.debian.org/debian
stand_in=$(buildah from scratch)
buildah add --quiet "$stand_in" "$root" /
# What this machine trusts besides, such as the certificate of a proxy.
if [ -d /usr/local/share/ca-certificates ]; then
    buildah copy --quiet "$stand_in" /usr/local/share/ca-certificates/ /usr/local/share/ca-certificates/
    buildah run "$stand_in" -- update-ca-certificates
fi
buildah config --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$stand_in"
wheels=()
if [ -n "${PIP_FIND_LINKS-}" ]; then
    buildah config --env PIP_FIND_LINKS="$PIP_FIND_LINKS" "$stand_in"
    wheels=(--volume "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro")
fi
buildah commit --quiet --rm "$stand_in" localhost/stand-in:13.0

# docker: the format that has health checks.
buildah bud --format docker --build-arg "$base=localhost/stand-in:13.0" \
    --build-arg PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL-}" ${wheels[@]+"${wheels[@]}"} \
    --file "$recipe" --tag localhost/multitalk-local .

tried=$(buildah from localhost/multitalk-local)
buildah run "$tried" -- sh -c 'id && multitalk --version && ! command -v make git'
# README's try-out.
buildah run --env MULTITALK_OVERRIDES=model=tiny "$tried" -- \
    multitalk runpod --test-input '{"input": {"action": "selftest"}}'
buildah inspect --type image --format '{{.Docker.Config}}' localhost/multitalk-local
buildah rm "$tried" >/dev/null
