#!/bin/sh
# Runs a command in the locked environment of the machine's lane, which it first sets up.
#
#   scripts/env.sh COMMAND [ARGUMENT]...
#
# Set-up is uv in `.tools/` and, from uv.lock, the packages in `.venv/` (scripts/lane.sh says
# which lane). It is done again when uv.lock or pyproject.toml has changed.
set -eu

uv_version=0.13.9
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

# Bytecode is compiled at install: without it TensorFlow takes 22 s to import, not 5.
unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME VIRTUAL_ENV
# pip, where it has to be used as root, warns of what a folder of our own does not risk.
export PIP_ROOT_USER_ACTION=ignore
export UV_PYTHON_DOWNLOADS="${UV_PYTHON_DOWNLOADS:-never}"

say() {
    printf '%s\n' "$@" >&2
}

# install_uv FOLDER: a virtual environment where Debian's python3-venv is there, else pip alone.
install_uv() {
    say "Installing uv $uv_version into ${1#"$root"/}: a few seconds."
    python=$(command -v python3 || true)
    [ -n "$python" ] || {
        say "make: there is no python3 to install uv with: apt-get install python3 python3-venv"
        exit 1
    }
    rm -rf "$1.new"
    if "$python" -m venv "$1.new" >/dev/null 2>&1; then
        "$1.new/bin/python" -m pip install --quiet "uv==$uv_version" || failed=yes
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --quiet --target "$1.new" "uv==$uv_version" || failed=yes
    else
        say "make: $python has neither venv nor pip: apt-get install python3-venv"
        exit 1
    fi
    if [ -n "${failed:-}" ]; then
        say "make: uv $uv_version could not be installed; pip's message above says why." \
            "It needs a package index: pip's own configuration says which one is asked."
        exit 1
    fi
    rm -rf "$1"
    mv "$1.new" "$1"
}

# Says what a failed installation most often lacks; uv's own message stands above.
diagnose() {
    say "make: the locked environment could not be installed; uv's message above says why."
    command -v g++ >/dev/null || say \
        "There is no g++, and pyfarmhash is built from source: apt-get install g++"
    interpreter=$(PATH="${python_path:+$python_path:}$PATH" \
        "$UV" python find --system --no-project "$python" 2>/dev/null || true)
    [ -z "$interpreter" ] || "$interpreter" - <<'PYTHON' || say \
        "Python $python has no headers (Python.h): apt-get install python$python-dev"
import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").is_file())
PYTHON
    say "If no package could be fetched, tell uv your package index (UV_DEFAULT_INDEX) and" \
        "your certificates (SSL_CERT_FILE), and run the same command again."
}

UV=$root/.tools/uv-$uv_version/bin/uv
[ -x "$UV" ] || install_uv "$root/.tools/uv-$uv_version"
export UV

if [ -n "${SAFELIGHT_QUIET:-}" ]; then
    assignments=$(sh scripts/lane.sh 2>/dev/null) || sh scripts/lane.sh
else
    assignments=$(sh scripts/lane.sh)
fi
eval "$assignments"

# What was installed: the sum of what decides it with the lane's Python (`.venv` is another lane's
# once the system or its Pythons have changed), and the extras (EXTRAS="gpu s3"), which are
# remembered.
stamp=$environment/.safelight-locked
extras=${EXTRAS-$(sed -n 2p "$stamp" 2>/dev/null || true)}
chosen=
for extra in $(printf '%s' "$extras" | tr ',' ' '); do
    chosen="$chosen --extra $extra"
done
wanted=$(printf '%s %s\n%s' "$(cat uv.lock pyproject.toml | cksum)" "$python" "$extras")
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    if [ -f "$stamp" ]; then
        say "Bringing ${environment#"$root"/} up to uv.lock: seconds, or minutes where much has changed."
        # Broken off, it is neither what it was nor what is wanted.
        printf 'unfinished\n%s\n' "$extras" >"$stamp"
    else
        say "Installing the locked packages into ${environment#"$root"/}: about 2 GB, 2 to 8 minutes." \
            "Nothing is printed meanwhile."
    fi
    PATH="${python_path:+$python_path:}$PATH" UV_PROJECT_ENVIRONMENT=$environment \
        "$UV" sync --quiet --locked --python "$python" --compile-bytecode \
        $chosen || {
        diagnose
        exit 1
    }
    printf '%s\n' "$wanted" >"$stamp"
fi

export PATH="$environment/bin:$PATH"
exec "$@"
