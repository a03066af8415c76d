#!/bin/sh
# Picks the lane: which TFX the machine can run, and with which Python (docs/decisions/0001).
#
#   legacy   TFX 1.16 on Python 3.10, glibc 2.17 or newer
#   current  TFX 1.21 on Python 3.11-3.13, glibc 2.39 or newer; preferred where both fit
#
# Reads:   LANE (legacy|current, or empty: chosen here), UV (the uv to ask for Pythons) and
#          UV_PYTHON_DOWNLOADS (automatic: uv may fetch a Python that is missing).
# Prints:  shell assignments of lane, python (a version), python_path (a directory for PATH, may
#          be empty) and environment (the folder of the virtual environment) on stdout; one line
#          for people on stderr. Exits with 1 and the fix when no lane fits.
set -eu

uv=${UV:-uv}
wanted=${LANE:-}
downloads=${UV_PYTHON_DOWNLOADS:-never}
current_needs=39  # glibc 2.39: what the wheels of TFDV and ML Metadata 1.21 were built against
root=$(cd "$(dirname "$0")/.." && pwd)

refuse() {
    printf 'make: %s\n' "$@" >&2
    exit 1
}

# pyenv's Pythons answer on PATH only where a version file names them: look into pyenv's folder.
pyenv_folder() {
    for folder in "${PYENV_ROOT:-${HOME:-/}/.pyenv}"/versions/"$1".[0-9]*/bin; do
        if [ -x "$folder/python$1" ]; then
            printf '%s' "$folder"
            return
        fi
    done
}

# find_python VERSION...: sets python and python_path to the first that is there.
find_python() {
    for version in "$@"; do
        folder=$(pyenv_folder "$version")
        if PATH="${folder:+$folder:}$PATH" "$uv" python find --system --no-project \
            --no-python-downloads "$version" >/dev/null 2>&1; then
            python=$version
            python_path=$folder
            return 0
        fi
    done
    [ "$downloads" = automatic ] || return 1
    python=$1
    python_path=
}

machine=$(uname -s)-$(uname -m)
[ "$machine" = Linux-x86_64 ] || refuse \
    "no lane fits $machine: TFX has wheels for Linux on x86-64 alone." \
    "Use such a machine, or a container of one."

glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc \([0-9]*\.[0-9]*\).*/\1/p') || true
[ -n "$glibc" ] || refuse \
    "no lane fits: this system's C library is not glibc (Alpine's musl, perhaps)." \
    "TFX's wheels need glibc 2.17 or newer: use Debian or Ubuntu, or a container of one."
major=${glibc%%.*}
minor=${glibc#*.}

new_enough() {
    [ "$major" -gt 2 ] || [ "$minor" -ge "$current_needs" ]
}

case $wanted in
'' | legacy | current) ;;
*) refuse "LANE=$wanted is no lane; expected LANE=legacy or LANE=current." ;;
esac

# What the machine would take by itself; that lane's environment is `.venv`.
native=
if new_enough && find_python 3.13 3.12 3.11; then
    native=current
elif find_python 3.10; then
    native=legacy
fi

lane=${wanted:-$native}
case $lane in
'')
    if new_enough; then
        refuse "no lane fits: glibc $glibc is fine, but there is no Python 3.10 to 3.13." \
            "Install one (apt-get install python3 python3-dev python3-venv), or let uv fetch" \
            "one: UV_PYTHON_DOWNLOADS=automatic make demo"
    fi
    refuse "no lane fits: TFX 1.21 needs glibc 2.$current_needs (here: $glibc), and TFX 1.16" \
        "needs Python 3.10, which is not here. Install one (Ubuntu 22.04: apt-get install" \
        "python3.10 python3.10-dev; elsewhere: pyenv install 3.10), or let uv fetch one:" \
        "UV_PYTHON_DOWNLOADS=automatic make demo"
    ;;
current)
    new_enough || refuse \
        "LANE=current needs glibc 2.$current_needs or newer; this system has $glibc." \
        "Use LANE=legacy, or try the lane in a Debian 13 root folder: make smoke-current"
    find_python 3.13 3.12 3.11 || refuse \
        "LANE=current needs Python 3.11, 3.12 or 3.13, and none is here. Install one" \
        "(apt-get install python3 python3-dev, or pyenv install 3.13), or let uv fetch one:" \
        "UV_PYTHON_DOWNLOADS=automatic make demo LANE=current"
    tfx=1.21
    why="glibc $glibc is 2.$current_needs or newer"
    ;;
legacy)
    find_python 3.10 || refuse \
        "LANE=legacy needs Python 3.10, which is not here. Install one (pyenv install 3.10)," \
        "or let uv fetch one: UV_PYTHON_DOWNLOADS=automatic make demo LANE=legacy"
    tfx=1.16
    why="glibc $glibc is older than the 2.$current_needs that TFX 1.21 needs"
    ! new_enough || why="there is no Python 3.11 to 3.13 for TFX 1.21"
    ;;
esac

[ -z "$wanted" ] || why="as LANE asks"
environment=$root/.venv
[ "$lane" = "${native:-$lane}" ] || environment=$root/.venv-$lane
echo "Lane $lane: TFX $tfx on Python $python ($why)." >&2
printf "lane='%s'\npython='%s'\npython_path='%s'\nenvironment='%s'\n" \
    "$lane" "$python" "$python_path" "$environment"
