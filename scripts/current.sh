#!/bin/sh
# Runs a command in the current lane (TFX 1.21) and its locked environment, wherever this machine
# can.
#
#   scripts/current.sh COMMAND [ARGUMENT]...
#
# Natively where glibc is new enough; on an older system, as root, in a Debian 13 root folder
# (scripts/debian13.sh), where only what SHARE names is seen from outside.
set -eu

cd "$(dirname "$0")/.."
glibc=$(getconf GNU_LIBC_VERSION | sed -n 's/^glibc //p')
oldest=$(printf '%s\n2.39\n' "$glibc" | sort -V | head -n 1)
if [ "$oldest" = 2.39 ]; then
    LANE=current exec sh scripts/env.sh "$@"
fi
exec sh scripts/debian13.sh env LANE= UV_PYTHON_DOWNLOADS=never sh scripts/env.sh "$@"
