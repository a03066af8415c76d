#!/bin/sh
# Builds the image of the pipeline's steps without a Docker engine, and says its size.
#
#   scripts/image.sh [TARGET] [TAG]      TARGET: cpu (default) or gpu
#
# Needs root and buildah (apt-get install buildah), and the Debian 13 root folder that
# scripts/debian13.sh makes: it becomes the base, so that no registry is asked for one. Steps run
# under chroot, which needs no privileges of a container's. The image stays in buildah's storage:
#
#   buildah push safelight:cpu docker://REGISTRY/safelight:TAG
set -eu

target=${1:-cpu}
tag=${2:-safelight:$target}
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$repository/.cache/debian13
base=localhost/safelight-debian:trixie

say() {
    printf '%s\n' "$@" >&2
}

[ "$(id -u)" = 0 ] || {
    say "make: building an image under chroot takes root: sudo make image"
    exit 1
}
command -v buildah >/dev/null || {
    say "make: buildah is missing: apt-get install buildah"
    exit 1
}
case $target in cpu | gpu) ;; *)
    say "make: there is no image $target; expected cpu or gpu."
    exit 1
    ;;
esac

# import_base: the root folder, without what the machine and the other lane's tests put there.
import_base() {
    [ -f "$folder/.safelight-root" ] || sh "$repository/scripts/debian13.sh" true
    say "Making the base image from .cache/debian13: about a minute."
    container=$(buildah from scratch)
    tar -C "$folder" --exclude=./safelight --exclude=./root --exclude=./proc --exclude=./sys \
        --exclude=./dev --exclude=./tmp --exclude=./var/cache --exclude=./var/lib/apt/lists \
        -cf - . | {
        mounted=$(buildah mount "$container")
        tar -C "$mounted" -xf -
        mkdir -p "$mounted/root" "$mounted/proc" "$mounted/sys" "$mounted/dev" \
            "$mounted/var/cache/apt/archives/partial" "$mounted/var/lib/apt/lists/partial"
        mkdir -p -m 1777 "$mounted/tmp"
    }
    buildah umount "$container" >/dev/null
    buildah commit --quiet "$container" "$base" >/dev/null
    buildah rm "$container" >/dev/null
}

buildah inspect --type image "$base" >/dev/null 2>&1 || import_base

# What the machine says of its network goes in for the build alone: --volume leaves no layer.
set --
for file in /etc/pip.conf /etc/uv/uv.toml /etc/ssl/certs/ca-certificates.crt; do
    if [ -f "$file" ]; then
        set -- "$@" --volume "$file:$file:ro"
    fi
done
say "Building $tag: 5 to 15 minutes, most of it the packages."
buildah bud --isolation chroot --layers --file "$repository/deploy/Dockerfile" \
    --ignorefile "$repository/.dockerignore" --target "$target" --build-arg "BASE=$base" \
    "$@" --tag "$tag" "$repository"
buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' "$tag"
