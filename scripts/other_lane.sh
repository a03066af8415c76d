#!/bin/sh
# The part of `make test` that is about the other lane: on a machine of the legacy lane, the smoke
# test of the current one, in its Debian 13 root folder. Where a machine can't make that folder
# (no root, no network), it says so and is content: that is no fault of the code's.
set -eu

cd "$(dirname "$0")/.."

# limited COMMAND...: for 20 minutes at most. `timeout` gives a command a process group of its own,
# which the terminal's Ctrl-C does not reach: so it is handed on.
limited() {
    timeout 1200 "$@" &
    running=$!
    trap 'kill -INT "$running" 2>/dev/null || true; wait "$running" || true; exit 130' INT
    trap 'kill -TERM "$running" 2>/dev/null || true; wait "$running" || true; exit 143' TERM
    wait "$running"
}

eval "$(sh scripts/env.sh sh scripts/lane.sh 2>/dev/null)"
if [ "${lane:-}" != legacy ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "NOT TRIED: the current lane (TFX 1.21). It needs root here: sudo make smoke-current" >&2
    exit 0
fi
echo "The current lane (TFX 1.21): a small run and the tests marked \`current\`." >&2
if ! limited sh scripts/current.sh true; then
    echo "NOT TRIED: the current lane (TFX 1.21). What it lacks here stands above." >&2
    exit 0
fi
limited sh scripts/current.sh sh scripts/smoke.sh
