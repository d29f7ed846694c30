#!/usr/bin/env bash
# Make sure that a headless Chromium and a font for its pages are there. Does nothing where they are.
set -euo pipefail

if [ -n "${CLOUDSEG_CHROMIUM:-}" ] && [ -x "${CLOUDSEG_CHROMIUM}" ]; then
    exit 0
fi
if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
        echo "The browser tests need Chromium, and this account may not install it." >&2
        echo "Ask an administrator for: apt-get install chromium fonts-dejavu-core" >&2
        echo "or name a Chromium of your own in the variable CLOUDSEG_CHROMIUM." >&2
        exit 1
    fi
    as_root=(sudo -n)
fi
if ! command -v apt-get >/dev/null; then
    echo "The browser tests need Chromium, and there is no apt-get here to install it with." >&2
    echo "Install it by your system's own means, or name one in the variable CLOUDSEG_CHROMIUM." >&2
    exit 1
fi

echo "installing chromium for the browser tests ..."
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends \
    chromium fonts-dejavu-core >/dev/null
# Debian calls it chromium; the fonts give the pages' text a shape.
command -v chromium >/dev/null
echo "installed $(chromium --version --no-sandbox 2>/dev/null || true)"
