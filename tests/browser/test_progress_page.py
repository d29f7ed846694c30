"""The page of runs in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudseg.server.app import create_app, running
from cloudseg.testing.books import write_books
from cloudseg.volumes import open_objects

pytestmark = pytest.mark.browser

ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"


def test_steps_failures_and_cost_are_shown_and_followed(new_page, tmp_path):
    write_books(open_objects(tmp_path))
    page = new_page()
    page.set_viewport_size({"width": 1200, "height": 700})
    with running(create_app([], runs=[str(tmp_path)])) as base:
        page.goto(f"{base}/page/progress.html")
        page.wait_for_selector("#steps tbody tr")
        rows = page.locator("#steps tbody tr")
        assert [row.get_attribute("data-step") for row in rows.all()] == ["first", "second", "third"]
        assert "4/4" in rows.nth(0).inner_text()
        assert "0.5 Mvx/s" in rows.nth(0).inner_text()
        assert "20 s" in rows.nth(1).inner_text()
        assert page.inner_text("#summary").startswith(
            "1 task gave up: 5 of 8 tasks. So far 0.014 core hours, $0.00"
        )
        page.locator("#failures summary").click()
        trace = page.locator("#failures pre")
        assert trace.is_visible()
        assert trace.inner_text().endswith("RuntimeError: <b>poisoned</b>")
        ARTIFACTS.mkdir(exist_ok=True)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=ARTIFACTS / f"progress-{scheme}.png")
        # What is asked again while it is open keeps the failure open that one reads.
        page.evaluate("() => window.progress.look()")
        assert trace.is_visible()
        page.route("**/v1/**", lambda route: route.abort())
        page.evaluate("() => window.progress.look()")
        assert "is `cloudseg serve` still running" in page.inner_text("#problem")
        assert rows.count() == 3, "what was there stays"
    page.close()


def test_without_a_run_the_page_says_how_to_start_one(new_page, tmp_path):
    page = new_page()
    with running(create_app([], runs=[str(tmp_path)])) as base:
        page.goto(f"{base}/page/progress.html")
        page.wait_for_function("() => document.documentElement.dataset.state === 'ready'")
        assert "cloudseg run FILE" in page.inner_text("#problem")
    page.close()
