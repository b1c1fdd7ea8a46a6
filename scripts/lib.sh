# Shared by the scripts in this folder: where things are, and how a person is told what happens.
# Sourced, never run.

root=$(cd "$(dirname "$0")/.." && pwd)
build=${MIPHA_BUILD_DIR:-$root/build/release}

say() { printf '\n== %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Packages by their Debian name. redis-server is needed by the cluster and the tests of it.
bundled_packages="libzmq3-dev libprotobuf-c-dev libhiredis-dev libjpeg-dev libpng-dev libwebp-dev
    libjansson-dev libpcre2-dev libssl-dev libxxhash-dev libcmocka-dev redis-server"
packages="build-essential cmake ninja-build pkg-config $bundled_packages"

is_installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

install_packages() {
    command -v dpkg-query >/dev/null 2>&1 ||
        die "this script installs its needs with apt (Debian 12 or Ubuntu 24.04); on another system install what docs/OPERATIONS.md lists and set MIPHA_SKIP_INSTALL=1"
    missing=
    for p in "$@"; do is_installed "$p" || missing="$missing $p"; done
    [ -n "$missing" ] || return 0
    say "installing:$missing"
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 ||
            die "these packages are missing and need root or sudo to install:$missing"
        sudo=sudo
    fi
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2 ||
        die "apt-get update failed; is this machine online?"
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        $missing >&2 || die "apt-get could not install:$missing"
}

install_needs() {
    [ "${MIPHA_SKIP_INSTALL:-0}" = 1 ] && return 0
    # shellcheck disable=SC2086
    install_packages $packages
}

# build_project DIR [cmake arguments]; MIPHA_CMAKE_OPTIONS has more of them
build_project() {
    dir=$1
    shift
    say "building in ${dir#"$root"/}"
    # shellcheck disable=SC2086
    cmake -S "$root" -B "$dir" -G Ninja "$@" ${MIPHA_CMAKE_OPTIONS:-} >"$dir.log" 2>&1 || {
        tail -n 30 "$dir.log" >&2
        die "configuring failed; the whole log is in $dir.log"
    }
    cmake --build "$dir" >"$dir.log" 2>&1 || {
        grep -E -A5 'error|FAILED' "$dir.log" | head -n 60 >&2
        die "the build failed; the whole log is in $dir.log"
    }
}
