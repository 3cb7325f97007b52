#!/usr/bin/env bash
# Build the worker's image from the last commit and push it as USER/multitalk-runpod:TAG.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/build_and_push.sh [--dry-run] USER [TAG]

  USER       account of the registry, such as a Docker Hub user or ghcr.io/NAME
  TAG        tag of the image; default: latest
  --dry-run  print the command and run nothing

Builds Dockerfile for linux/amd64 with docker buildx, labels the image with version, commit and time, and pushes
it as USER/multitalk-runpod:TAG. Needs a checkout without changes, so that the label names what is inside.
Log in first: docker login.

  DOCKERFILE  another file to build, such as docker/Dockerfile.cpu
  BUILD_ARGS  further arguments of docker buildx build, such as "--build-arg CUDA_IMAGE=nvidia/cuda:..."
TEXT
}

refuse() {
    echo "build_and_push.sh: $1" >&2
    exit 2
}

dry=false
words=()
for word in "$@"; do
    case "$word" in
    -h | --help)
        usage
        exit 0
        ;;
    --dry-run) dry=true ;;
    -*) refuse "unknown flag $word; try --help" ;;
    *) words+=("$word") ;;
    esac
done
[ "${#words[@]}" -ge 1 ] || refuse "no USER given; try --help"
[ "${#words[@]}" -le 2 ] || refuse "more than USER and TAG given: ${words[*]:2}; try --help"
user=${words[0]}
tag=${words[1]-latest}
# Docker's own message for these is 'invalid reference format', which says nothing.
[[ "$user" =~ ^[a-z0-9]+([._/:-]+[a-z0-9]+)*$ ]] ||
    refuse "'$user' cannot be an account: small letters and digits, and . _ - / : between them"
[[ "$tag" =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$ ]] ||
    refuse "'$tag' cannot be a tag: at most 128 letters, digits, _ . and -, the first no . or -"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
file=${DOCKERFILE:-Dockerfile}
[ -f "$file" ] || refuse "there is no $file"
revision=$(git rev-parse --verify --quiet HEAD) || refuse "not a git checkout with a commit"
changes=$(git status --porcelain)
[ -z "$changes" ] || refuse "the checkout has changes; commit or stash them:
$changes"

version=$(sed -n 's/^version = //p' setup.cfg)
source=$(git config --get remote.origin.url || true)
# A URL that holds a password stays out of the label.
source=$(printf '%s' "$source" | sed -E 's#^([a-z+]+://)[^/@]*@#\1#')
read -r -a more <<<"${BUILD_ARGS-}"

command=(
    docker buildx build --platform linux/amd64 --file "$file"
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision"
    --build-arg "CREATED=$(date --utc --date="@$(git log -1 --format=%ct)" +%Y-%m-%dT%H:%M:%SZ)"
    --build-arg "SOURCE=$source"
    ${more[@]+"${more[@]}"}
    --tag "$user/multitalk-runpod:$tag" --push .
)
if $dry; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
docker buildx version >/dev/null 2>&1 || refuse "docker buildx is not to be had; install Docker with buildx"
"${command[@]}"
echo "$user/multitalk-runpod:$tag is $revision"
