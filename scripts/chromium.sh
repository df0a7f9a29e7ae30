#!/usr/bin/env bash
# Chromium for the browser tests. Without it they are skipped, so nothing here ever fails.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done

skip() {
    echo "note: there is no Chromium, and $1; the browser tests will be skipped" >&2
    exit 0
}

command -v apt-get >/dev/null || skip "no apt-get to install it with"
as_root=()
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || skip "installing it takes root: sudo apt-get install chromium"
    as_root=(sudo -n)
fi
# Ubuntu's package of this name only sends for a snap, which containers cannot run.
grep -qi '^ID=ubuntu' /etc/os-release 2>/dev/null && skip "Ubuntu has it as a snap only: snap install chromium"

echo "Installing Chromium for the browser tests" >&2
apt=(timeout 300 "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q)
{ "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends chromium; } >/dev/null 2>&1 ||
    skip "apt-get could not install it"
