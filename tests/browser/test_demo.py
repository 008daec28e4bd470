"""The study page in Chromium while `foldwise demo` runs: real workers, real clips, a real search."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.acceptance.up import foldwise, wait_for
from tests.browser.conftest import visit


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_demo_is_watched_and_steered_while_it_runs(browser: Browser, tmp_path: Path) -> None:
    state, log = tmp_path / "state", tmp_path / "demo.log"
    with log.open("w") as output:
        demo = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "demo", "--state", str(state)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: "study page: " in log.read_text() or demo.poll() is not None)
        found = re.search(r"study page: (http://[\d.:]+)(/studies/demo)", log.read_text())
        assert found is not None, log.read_text()
        token = foldwise("token", "create", "me", "--scope", "write", "--state", str(state)).stdout.strip()

        visitor = visit(browser, found[1])
        page = visitor.page
        visitor.sign_in(token)
        page.get_by_role("link", name="demo", exact=True).click()
        expect(page.get_by_role("status")).to_have_text("live")
        expect(page.locator("#panel-workers")).to_contain_text("worker-1")
        expect(page.locator("#panel-workers")).to_contain_text("cpu")
        expect(page.locator("#panel-summary dd").first).to_contain_text("1 of 12", timeout=300_000)
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("button", name="Resume")).to_be_visible()
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        expect(page.locator("#panel-summary dd").first).to_contain_text("2 of 12", timeout=300_000)
        # The search goes on: there are two trials or more by now.
        expect(page.locator("#panel-convergence use[data-trial]").nth(1)).to_be_visible()
        expect(page.locator("#parameter-panels figure").first).to_be_visible()

        visitor.open("/studies/demo/trials/0")
        expect(page.locator(".folds tbody tr")).to_have_count(5)
        moving = page.locator(".clips .moving img").first
        moving.scroll_into_view_if_needed()
        expect(moving).to_have_js_property("complete", True)
        assert page.evaluate("document.querySelector('.clips .moving img').naturalWidth") > 0
        visitor.open("/studies/demo/parameters")
        visitor.open("/studies/demo/trials?order=value")
        assert visitor.complaints == []
        demo.wait(timeout=1200)
    finally:
        demo.terminate()
        demo.wait(60)
    assert demo.returncode == 0, log.read_text()
    assert (state / "demo-report" / "report.html").stat().st_size > 100_000
