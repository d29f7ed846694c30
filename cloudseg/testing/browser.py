"""A headless Chromium for tests and benchmarks: software rendering, no calls home."""

from __future__ import annotations

import os
import shutil

from cloudseg.errors import NotFoundError

ARGUMENTS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--metrics-recording-only",
    "--disable-dev-shm-usage",
    # No name but this machine's own resolves.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
"""What it is started with."""


def chromium_path() -> str:
    """Return the browser to use.

    Raises
    ------
    NotFoundError
        If there is none on the PATH, and ``CLOUDSEG_CHROMIUM`` names none.
    """
    named = os.environ.get("CLOUDSEG_CHROMIUM")
    found = (
        named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    )
    if not found:
        raise NotFoundError(
            "there is no Chromium on the PATH: run tests/browser/install-chromium.sh, or set CLOUDSEG_CHROMIUM"
        )
    return found
