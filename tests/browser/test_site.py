"""The documentation's site in Chromium: its search works, and nothing is asked of another host."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import visit
from tests.harness.site_build import build_site


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    site = tmp_path_factory.mktemp("documentation") / "site"
    done = build_site(site)
    assert done.returncode == 0, done.stderr
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_search_finds_the_order_of_folds(browser: Browser, address: str, colours: str) -> None:
    visitor = visit(browser, address, color_scheme=colours)
    page = visitor.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    visitor.open("/index.html")
    scheme = {"light": "default", "dark": "slate"}[colours]
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", scheme)

    results = page.locator(".md-search-result__item")
    # Keys, as the page listens to them: a value that is set without a key is not searched for.
    page.get_by_role("textbox", name="Search").press_sequentially("fold order")
    expect(results.first).to_contain_text("order")
    results.first.get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.url != f"{address}/index.html"

    assert visitor.complaints == []
    assert any(url.endswith("/search_index.json") for url in asked)
    assert [url for url in asked if not url.startswith((f"{address}/", "data:", f"blob:{address}/"))] == []
