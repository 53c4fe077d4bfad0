#!/usr/bin/env bash
# Makes or refreshes .venv with everything the project needs; does nothing when it is up to date.
# With --with-screen also a virtual screen for the tests of the viewer, where there is none, and what
# the tests of the GPU's kernels need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv

fail() {
    echo "bootstrap: $*" >&2
    exit 1
}

# Debian packages that something here needs and a bare machine lacks; installed when we may,
# named when we may not.
require_packages() {
    local what=$1
    shift
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "$what is missing; install it first, on Debian or Ubuntu with: sudo apt-get install $*"
    fi
    echo "bootstrap: installing $* with apt-get"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install $* ($what is missing)"
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    fail "Python 3.11 or newer is needed and was not found; name one with: make PYTHON=/path/to/python"
}

# Where the tree lies is part of it, since an environment that was moved does not work.
fingerprint() {
    { cat pyproject.toml constraints.txt "${BASH_SOURCE[0]}"; pwd; "$1" -VV; } | cksum
}

# What a screen without a monitor needs, for the tests of the viewer: Xvfb, software OpenGL, and the
# libraries that Qt loads at run time. Asked for by file, since package names differ.
screen_is_missing() {
    ! command -v xvfb-run >/dev/null || ! command -v xauth >/dev/null ||
        ! ldconfig -p | grep -q 'libxcb-cursor\.so' || ! ldconfig -p | grep -q 'libEGL\.so' ||
        ! ldconfig -p | grep -q 'libxkbcommon-x11\.so' || ! ldconfig -p | grep -q 'libGL\.so'
}
if [ "${1:-}" = --with-screen ] && [ "$(uname)" = Linux ] && [ -z "${DISPLAY:-}" ] && screen_is_missing; then
    require_packages "A virtual screen for the tests of the viewer" \
        xvfb xauth libgl1 libgl1-mesa-dri libegl1 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 \
        libxcb-keysyms1 libxcb-image0 libxcb-randr0 libxcb-render-util0 libxcb-shape0 \
        libxcb-xinerama0 libdbus-1-3 libfontconfig1
fi

# Interprets the GPU's kernels in their tests. Apart, since torch would load it beside Mesa, whose LLVM
# is another: that crashes the process.
add_kernels() {
    local version
    version=$(grep '^triton==' constraints.txt)
    if [ "${1:-}" = --with-screen ] && [ "$(uname)" = Linux ] &&
        [ ! -d "$venv/kernels/triton-${version#triton==}.dist-info" ]; then
        rm -rf "$venv/kernels"
        pip install --quiet --quiet --no-deps --target "$venv/kernels" "$version"
    fi
}
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}

python=$(find_python)
wanted=$(fingerprint "$python")
if [ "$wanted" = "$(cat "$venv/.bootstrapped" 2>/dev/null)" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    add_kernels "$@"
    exit 0
fi

echo "bootstrap: preparing $venv (a few minutes the first time)"
if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    ! grep -qsF "$PWD/$venv" "$venv/bin/pip"; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        require_packages "Python's venv module" \
            "$("$python" -c 'import sys; print("python{}.{}-venv".format(*sys.version_info))')"
    fi
    "$python" -m venv --clear "$venv"
fi
# torch first and alone, so that pip takes the tested release, where it is at hand as a CPU
# build that one, before another package asks for the newest with its accelerator libraries.
pip install --quiet --quiet "$(grep '^torch==' constraints.txt)"
pip install --quiet --quiet --editable '.[dev]' --constraint constraints.txt
# Read again: pyproject.toml may have been edited while pip was at work.
[ "$wanted" = "$(fingerprint "$python")" ] && echo "$wanted" >"$venv/.bootstrapped"
add_kernels "$@"
echo "bootstrap: $venv is ready"
