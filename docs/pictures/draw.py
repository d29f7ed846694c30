"""Draw the pictures of the site anew: python docs/pictures/draw.py FOLDER, where FOLDER is that of the tutorials.

Run docs/launch.md there first. Needs the extra [test] and Chromium. page.png comes from elsewhere: it is
test-artifacts/soma-page-light.png, which the browser tests of the soma page leave.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from cloudseg.server.app import create_app, running
from cloudseg_viewer.links import build_link, mounts
from cloudseg_viewer.roots import read_root

HERE = Path(__file__).parent
CHROMIUM = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
]
# True when nothing is being fetched any more.
IS_QUIET = """async () => {
  const all = await window.viewer.chunkQueueManager.getStatistics();
  let busy = 0;
  for (const [, numbers] of all) for (const state of [3, 4, 5]) busy += numbers[state * 9];
  return busy === 0 && window.viewer.isReady();
}"""


def wait(page: Page) -> None:
    """Wait until all that the viewer wants to show is there."""
    page.wait_for_function("() => window.viewer !== undefined", timeout=240_000)
    quiet = 0
    for _ in range(600):
        quiet = quiet + 1 if page.evaluate(IS_QUIET) else 0
        if quiet == 5:
            return
        page.wait_for_timeout(400)
    raise SystemExit("the viewer did not come to rest in four minutes")


def browse(page: Page, folder: Path) -> None:
    """The link of the tutorial's run."""
    found = read_root(str(folder / "run"))
    with running(create_app(mounts(found.uri, found.layers))) as base:
        page.set_viewport_size({"width": 1200, "height": 800})
        page.goto(build_link(found.uri, found.layers, server=base, focus_nm=found.focus_nm).url)
        wait(page)
        page.screenshot(path=HERE / "browse.png")


def main() -> None:
    """Draw all of them."""
    folder = Path(sys.argv[1]).absolute()
    command = ["cloudseg", "compare", "run/segmentation", "run/supervoxels", "--truth", "data/truth"]
    command += ["--image", "data/image", "--picture", str(HERE / "sections.png"), "--sections", "2"]
    subprocess.run(command, cwd=folder, check=True)
    with sync_playwright() as playwright:
        path = os.environ.get("CLOUDSEG_CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM, timeout=120_000)
        page = browser.new_page()
        page.set_default_timeout(240_000)
        browse(page, folder)
        browser.close()


if __name__ == "__main__":
    main()
