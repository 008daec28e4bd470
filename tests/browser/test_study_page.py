"""The study page in Chromium, against a coordinator process whose folds are reported meanwhile."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from services.contracts import TokenScope
from tests.browser.conftest import Coordinator, visit

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def test_a_study_is_watched_and_steered_through_a_restart(browser: Browser, coordinator: Coordinator) -> None:
    worker = coordinator.worker("gpu-1")
    worker.run(5)
    visitor = visit(browser, coordinator.url)
    page = visitor.page
    visitor.sign_in(coordinator.token(TokenScope.WRITE))
    page.get_by_role("link", name="s", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("live")
    ended = page.locator("#panel-summary dd").first
    expect(ended).to_contain_text("1 of 6")
    expect(page.locator("#parameter-panels figure")).to_have_count(2)

    # What is reported now appears without a reload.
    page.evaluate("window.loadedOnce = true")
    worker.run(5)
    expect(ended).to_contain_text("2 of 6")
    expect(page.locator("#panel-latest")).to_contain_text("complete")
    expect(page.locator("#panel-workers")).to_contain_text("gpu-1")
    expect(page.locator("#panel-convergence use[data-trial]")).to_have_count(2)
    assert visitor.complaints == []

    coordinator.kill()
    expect(page.get_by_role("status")).to_have_text("reconnecting …")
    coordinator.start()
    expect(page.get_by_role("status")).to_have_text("live")
    # While nobody answers, the browser says so.
    assert all("ERR_" in complaint for complaint in visitor.complaints), visitor.complaints
    visitor.complaints.clear()
    worker.run(5)
    expect(ended).to_contain_text("3 of 6")
    assert page.evaluate("window.loadedOnce"), "the page was loaded again"

    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert coordinator.get("/studies/s")["state"] == "paused"
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()

    page.get_by_role("link", name="trial 0").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Trial 0")
    expect(page.locator(".folds tbody tr")).to_have_count(5)
    page.get_by_text("% of true class", exact=True).click()
    expect(page.locator(".matrix-true")).to_be_visible()
    expect(page.locator(".matrix-counts")).to_be_hidden()
    moving = page.locator(".clips .moving img").first
    moving.scroll_into_view_if_needed()
    expect(moving).to_have_js_property("naturalWidth", 112)
    assert visitor.complaints == []
    worker.close()


@pytest.mark.long
def test_every_action_does_what_it_says(browser: Browser, coordinator: Coordinator) -> None:
    visitor = visit(browser, coordinator.url)
    page = visitor.page
    visitor.sign_in(coordinator.token(TokenScope.WRITE))
    visitor.open("/studies/s")
    page.get_by_label("CLAHE").select_option("false")
    page.get_by_label("Dropout").fill("0.125")
    page.get_by_role("button", name="Enqueue").click()
    expect(page.get_by_role("status")).to_have_text("live")
    page.get_by_role("spinbutton", name="Workers").fill("4")
    page.get_by_role("button", name="Set").click()
    expect(page.get_by_role("spinbutton", name="Workers")).to_have_value("4")
    assert coordinator.get("/studies/s")["spec"]["workers"] == 4
    worker = coordinator.worker("gpu-1")
    worker.run(15)
    worker.close()
    parameters = [trial["parameters"] for trial in coordinator.get("/studies/s/trials")]
    assert {"clahe": False, "dropout": 0.125} in parameters
    page.get_by_text("Stop …").click()
    page.get_by_role("button", name="Stop permanently").click()
    expect(page.locator("#panel-summary h1")).to_contain_text("stopped")
    expect(page.get_by_text("stopped by a person")).to_be_visible()
    assert visitor.complaints == []
    # What is not possible now is said on a page.
    assert page.get_by_role("button", name="Pause").count() == 0
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    visitor.open("/studies/s")
    expect(page).to_have_url(f"{coordinator.url}/sign-in?next=/studies/s")


@pytest.mark.long
def test_a_reader_sees_no_action_and_can_force_none(browser: Browser, coordinator: Coordinator) -> None:
    visitor = visit(browser, coordinator.url)
    page = visitor.page
    visitor.sign_in(coordinator.token(TokenScope.READ))
    visitor.open("/studies/s")
    expect(page.get_by_role("status")).to_have_text("live")
    for name in ("Pause", "Stop …", "Enqueue", "Set"):
        assert page.get_by_text(name, exact=True).count() == 0
    assert visitor.complaints == []
    # The reader's own session and its own word of forms.
    status = page.evaluate(
        """async () => {
            const word = document.querySelector("[name=form_token]").value;
            const body = new URLSearchParams({ form_token: word });
            return (await fetch("/studies/s/stop", { method: "POST", body })).status;
        }"""
    )
    assert (status, coordinator.get("/studies/s")["state"]) == (403, "running")


@pytest.mark.long
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_view_fits_its_screen(
    browser: Browser, coordinator: Coordinator, size: dict[str, int], theme: str
) -> None:
    worker = coordinator.worker("gpu-1")
    worker.run(12)
    visitor = visit(browser, coordinator.url, viewport=size, color_scheme=theme)
    page = visitor.page
    visitor.sign_in(coordinator.token(TokenScope.WRITE))
    for path in ("", "s", "s/trials?order=value", "s/parameters", "s/trials/1"):
        visitor.open(f"/studies/{path}" if path else "/")
        page.wait_for_load_state("load")
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{path} is {wide} px too wide"
        paper, ink = (
            page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
            for name in ("backgroundColor", "color")
        )
        assert (sum(paper) > sum(ink)) == (theme == "light")
        # Whatever can be pressed has a name.
        assert page.evaluate(WITHOUT_A_NAME) == []
    assert visitor.complaints == []
    worker.close()


WITHOUT_A_NAME = """() => [...document.querySelectorAll("a, button, input, select, [tabindex='0']")]
    .filter((node) => node.type !== "hidden" && !node.ariaHidden)
    .filter((node) => !(node.ariaLabel || node.labels?.[0]?.textContent || node.textContent).trim())
    .map((node) => node.outerHTML)"""


@pytest.mark.long
def test_the_heat_map_is_read_by_keyboard_and_follows_folds(browser: Browser, coordinator: Coordinator) -> None:
    worker = coordinator.worker("gpu-1")
    worker.run(5)
    visitor = visit(browser, coordinator.url, viewport=DESKTOP, reduced_motion="reduce")
    page = visitor.page
    visitor.sign_in(coordinator.token(TokenScope.READ))
    visitor.open("/studies/s")
    expect(page.locator("#heat")).to_have_attribute("data-drawn", re.compile("[1-9]"))
    assert page.locator("#live").evaluate("node => getComputedStyle(node, '::before').animationName") == "none"
    page.locator("#heat-order").select_option("number")
    heat, tip = page.locator("#heat"), page.locator("#heat-tip")
    heat.focus()
    heat.press("ArrowRight")
    expect(tip).to_have_text(re.compile(r"^trial 0 \(complete, [\d.]+ %\) · S000 · [012] of 2 clips correct$"))
    before = coordinator.get("/studies/s/trials/0/folds")
    heat.press("ArrowRight")
    expect(tip).to_contain_text(f"S001 · {before[1]['correct']} of 2")
    expect(page.locator("#heat canvas")).to_be_visible()
    worker.claim()
    worker.run(1)
    heat.press("Home")
    heat.press("ArrowDown")
    expect(tip).to_contain_text("trial 1")

    def shown() -> Any:
        heat.press("ArrowUp")
        heat.press("ArrowDown")
        return tip.text_content()

    expect(page.locator("#panel-latest")).to_contain_text("1 of 5 folds")
    assert "of 2 clips correct" in shown()
    heat.press("Enter")
    page.wait_for_url("**/studies/s/trials/1")
    still = page.locator("picture source").first.get_attribute("media")
    assert still == "(prefers-reduced-motion: reduce)"
    assert visitor.complaints == []
    worker.close()
