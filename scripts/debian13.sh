#!/bin/sh
# Runs a command in a Debian 13 root folder that holds a copy of this repository.
#
#   scripts/debian13.sh COMMAND [ARGUMENT]...
#
# For a machine whose glibc is too old for the current lane (TFX 1.21). Needs root and debootstrap;
# where that is not installed, apt's copy of it is unpacked into .cache/ and nothing is installed.
# SHARE names a folder of this machine that the command sees under the same path, and writes to.
# The folder `.cache/debian13` is made once (about 700 MB; 5 GB with the lane's packages) and used
# again; removing it starts afresh. DEBIAN_MIRROR names another mirror than debootstrap's own.
set -eu

release="trixie 1"  # raise the number when `packages` changes: the folder is then made anew
packages=python3,python3-venv,python3-dev,g++,git,make,ca-certificates
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$repository/.cache/debian13
stamp=$folder/.safelight-root

say() {
    printf '%s\n' "$@" >&2
}

[ "$(id -u)" = 0 ] || {
    say "make: a root folder of another Debian takes root: run it as root (sudo make …)."
    exit 1
}

# find_debootstrap: sets `debootstrap` to the command. The package is a shell script and its data.
find_debootstrap() {
    debootstrap=$(command -v debootstrap || true)
    [ -z "$debootstrap" ] || return 0
    unpacked=$repository/.cache/debootstrap
    mkdir -p "$unpacked/lists/partial"
    # Lists of its own: those of the system may be empty, as in a container, and stay as they are.
    (cd "$unpacked" &&
        apt-get -o Dir::State::Lists="$unpacked/lists" -qq update &&
        apt-get -o Dir::State::Lists="$unpacked/lists" -qq download debootstrap &&
        dpkg-deb --extract debootstrap_*.deb .) >"$unpacked/log.txt" 2>&1 || {
        tail -n 5 "$unpacked/log.txt" >&2
        say "make: debootstrap is missing, and apt can't fetch it: apt-get install debootstrap"
        exit 1
    }
    export DEBOOTSTRAP_DIR="$unpacked/usr/share/debootstrap"
    debootstrap=$unpacked/usr/sbin/debootstrap
}

make_root() {
    find_debootstrap
    say "Making a Debian 13 root folder in .cache/debian13: about 700 MB, 1 to 5 minutes."
    # What an attempt that was broken off left there would stop debootstrap ("file already exists").
    rm -rf --one-file-system "$folder" "$folder.new"
    mkdir -p "$folder.new"
    # In a namespace of its own its mounts end with it, though it be killed.
    $alone "$debootstrap" --variant=minbase --include="$packages" trixie "$folder.new" \
        ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$folder.log" 2>&1 || {
        say "make: debootstrap failed; the end of .cache/debian13.log:"
        tail -n 5 "$folder.log" >&2
        say "It needs a Debian mirror: DEBIAN_MIRROR names another one. Then run the same command" \
            "again; it starts afresh."
        exit 1
    }
    printf '%s\n' "$release" >"$folder.new/.safelight-root"
    mv "$folder.new" "$folder"
}

# copy_in FILE...: what the machine says about its network: names, certificates, package index.
copy_in() {
    for file in "$@"; do
        if [ -f "$file" ]; then
            mkdir -p "$folder$(dirname "$file")"
            cp -L "$file" "$folder$file"
        fi
    done
}

# copy_repository: another command may be running in there, so that what is the same stays as it is
# and what is not is put in its place whole.
copy_repository() {
    inside=$folder/safelight
    mkdir -p "$inside" "$folder/tmp"
    fresh=$(mktemp -d "$folder/tmp/safelight.XXXXXX")
    trap 'rm -rf "$fresh" "$fresh.list"' EXIT
    cd "$repository"
    git ls-files -z --cached --others --exclude-standard |
        xargs -0 sh -c 'for name; do [ ! -f "$name" ] || printf "%s\0" "$name"; done' sh |
        tar --null --files-from=- --create --file=- | tar --extract --file=- -C "$fresh" || true
    [ -f "$fresh/scripts/env.sh" ] || {
        say "make: git can't list this checkout's files; its message above says why."
        exit 1
    }
    # What git ignores there (the environment, uv, caches) stays; what is gone here goes.
    cd "$inside"
    find . -mindepth 1 \( -path ./.venv -o -path ./.tools -o -path ./.cache -o -name __pycache__ \) \
        -prune -o -print0 >"$fresh.list"
    xargs -0 sh -c 'for name; do
            if [ -d "$name" ]; then [ -d "$0/$name" ]; else [ -f "$0/$name" ]; fi || rm -rf "$name"
        done' "$fresh" <"$fresh.list"
    cd "$fresh"
    find . ! -type d -exec sh -c '
        for name; do
            if ! cmp -s "$name" "$0/$name"; then
                mkdir -p "$0/${name%/*}"
                mv -f "$name" "$0/$name" || exit 1
            fi
        done' "$inside" {} +
    cd "$repository"
    rm -rf "$fresh" "$fresh.list"
    trap - EXIT
}

# Mounts live in a namespace of their own and end with the command: none is left behind, and
# removing the folder can't reach through one. Where they are refused, it works without.
alone=
! unshare --mount true 2>/dev/null || alone="unshare --mount"

if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$release" ]; then
    make_root
fi
copy_in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt /etc/pip.conf \
    /etc/uv/uv.toml "${HOME:-/root}/.config/pip/pip.conf" "${HOME:-/root}/.pip/pip.conf" \
    "${HOME:-/root}/.config/uv/uv.toml" "${SSL_CERT_FILE:-}" "${PIP_CERT:-}" "${UV_CONFIG_FILE:-}"
copy_repository

enter='
    folder=$1
    shift
    exec chroot "$folder" /usr/bin/env HOME=/root USER=root TMPDIR=/tmp LANG=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        sh -c '\''cd /safelight && exec "$@"'\'' sh "$@"'
# What was asked to be shared has to be: without the mount the command would write elsewhere.
share='
    if [ -n "${SHARE:-}" ]; then
        mkdir -p "$SHARE" "$1$SHARE" && mount --bind "$SHARE" "$1$SHARE" || exit 1
    fi'
mounts='
    mount -t proc proc "$1/proc" || mount --rbind /proc "$1/proc"
    mount -t tmpfs tmpfs "$1/dev/shm"'

# The machine's own Pythons and caches have other paths in there.
unset PYENV_ROOT PYENV_VERSION UV_CACHE_DIR PIP_FIND_LINKS
if [ -n "$alone" ]; then
    # Sharing comes last: /dev/shm would hide what is shared below it.
    exec $alone sh -c "{ $mounts; } >/dev/null 2>&1 || true; $share; $enter" sh "$folder" "$@"
fi
[ -z "${SHARE:-}" ] || {
    say "make: this machine refuses mounts, and $SHARE can't be shared with the folder."
    exit 1
}
exec sh -c "$enter" sh "$folder" "$@"
