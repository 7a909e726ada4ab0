#!/bin/sh
# Makes sure that Prometheus for its end-to-end test (tests/e2e/test_prometheus.py) is in the folder that is given.
# Debian's package is unpacked there and not installed: only the programs are wanted, and no service on this machine.
# Status 0: it is there. Status 1: it is not, and what was printed says which tests that concerns and how to get it.
set -eu

target=${1:?usage: install-prometheus.sh FOLDER}

if [ -x "$target/prometheus" ] && [ -x "$target/promtool" ]; then
    exit 0
fi

without_prometheus() {
    echo "$1"
    echo "The tests with Prometheus, tests/e2e/test_prometheus.py, will not run; all others will."
    echo "To run them, put Prometheus' programs 'prometheus' and 'promtool' into $target, then run 'make test' again."
    exit 1
}

if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-deb >/dev/null 2>&1; then
    without_prometheus "Prometheus is not in $target, and this is not a Debian system, where it would be fetched now."
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt fetches as a user of its own

echo "Fetching Prometheus for its end-to-end test ..."
fetch() {
    (cd "$work" && apt-get download -q prometheus >/dev/null 2>"$work/why")
}
if ! fetch && { [ "$(id -u)" -ne 0 ] || ! apt-get update -q >/dev/null || ! fetch; }; then
    cat "$work/why"
    without_prometheus "Prometheus could not be fetched; apt-get says why above."
fi
dpkg-deb -x "$work"/prometheus_*.deb "$work/unpacked"
mkdir -p "$target"
cp "$work/unpacked/usr/bin/prometheus" "$work/unpacked/usr/bin/promtool" "$target"

if ! "$target/promtool" --version >/dev/null 2>&1; then
    rm -f "$target/prometheus" "$target/promtool"
    without_prometheus "The package prometheus of this system does not bring programs that start."
fi
