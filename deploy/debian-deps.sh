#!/bin/bash
# Installs the Debian packages that Weir is built, run and tested with, only those that are missing.
# As a plain user, or without apt, it says what is missing and ends well: what needs a missing
# package later says so itself.
set -euo pipefail

packages=(
    # BPF programs and libbpf
    clang llvm libelf-dev zlib1g-dev m4 pkg-config gcc make libc6-dev linux-libc-dev
    # etcd's client is built from its protos; the store's tests start etcd
    protobuf-compiler libprotobuf-dev etcd-server etcd-client
    # network namespaces, traffic, containers' commands
    iproute2 ethtool iputils-ping iperf3 tcpdump netsniff-ng busybox-static
    # instruction counts
    valgrind
    # clocks that jump, of one program alone
    faketime
    # sFlow collectors
    pmacct nfdump nfdump-sflow tshark
)
# Container runtimes and what drives them: tests that need one that cannot be installed are ignored,
# and counted as such.
runtimes=(
    podman runc containerd containernetworking-plugins
    # a client of libcni is built from its packaged source
    golang-go golang-github-appc-cni-dev
)

if ! command -v cargo >/dev/null; then
    echo "deps: no cargo in PATH; install Rust 1.95 or later (https://rustup.rs)" >&2
    exit 1
fi

if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    echo "deps: no rustfmt or clippy; run: rustup component add rustfmt clippy" >&2
    exit 1
fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "deps: not a Debian system; these packages, by whatever name, are needed: ${packages[*]} ${runtimes[*]}"
    exit 0
fi

missing=()
for package in "${packages[@]}" "${runtimes[@]}"; do
    status=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $status == ii* ]] || missing+=("$package")
done

if ((${#missing[@]} == 0)); then
    echo "deps: all $((${#packages[@]} + ${#runtimes[@]})) packages are installed"
    exit 0
fi
if ((EUID != 0)); then
    echo "deps: not root, so these stay missing: ${missing[*]}"
    exit 0
fi

# tshark and pmacct ask questions or start services unless told not to.
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
try() {
    if ! "$@" </dev/null >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        echo "deps: failed: $*" >&2
        return 1
    fi
}

echo "deps: updating the package lists"
try apt-get update -q
count=0
for package in "${missing[@]}"; do
    count=$((count + 1))
    echo "deps: installing $package ($count of ${#missing[@]})"
    if ! try apt-get install -q -y --no-install-recommends "$package"; then
        [[ " ${runtimes[*]} " == *" $package "* ]] || exit 1
        echo "deps: tests that need $package will be ignored" >&2
    fi
done
