#!/bin/sh
# Makes sure that the browser for the tests of the web page (tests/e2e/test_page.py) is there.
# Status 0: it is. Status 1: it is not, and what was printed says which tests that concerns and how to get it.
set -eu

if command -v chromium >/dev/null 2>&1; then
    exit 0
fi

without_browser() {
    echo "$1"
    echo "The tests of the web page, tests/e2e/test_page.py, will not run; all others will."
    echo "$2"
    exit 1
}

if [ ! -f /etc/debian_version ] || ! command -v apt-get >/dev/null 2>&1; then
    without_browser "There is no command 'chromium', and this is not a Debian system, where it would be installed now." \
        "To run them, install Chromium so that the command 'chromium' starts it, then run 'make test' again."
fi

if [ "$(id -u)" -ne 0 ]; then
    without_browser "There is no command 'chromium', and only root can install it." \
        "To run them, run 'apt-get install chromium' as root, then 'make test' again."
fi

echo "Installing Chromium for the tests of the web page ..."
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -q && apt-get install -q -y --no-install-recommends chromium; } >/dev/null; then
    without_browser "Chromium could not be installed; apt-get says why above." \
        "To run them, run 'apt-get install chromium' as root, then 'make test' again."
fi

# Ubuntu answers to this package name too, but with a stub that wants snap.
if ! chromium --version >/dev/null 2>&1; then
    without_browser "The package chromium of this system does not bring a browser that starts." \
        "To run them, install Chromium so that the command 'chromium' starts it, then run 'make test' again."
fi
