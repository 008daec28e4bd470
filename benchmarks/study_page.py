"""How fast the page of a large study is in a browser: 1,000 trials of 118 folds, 300 of them pruned.

    python -m benchmarks.study_page [--trials 1000] [--visits 5]

Results are random. Coordinator, PostgreSQL and Chromium run on this machine. Needs Debian's `chromium`.

The last line is JSON:
    first_paint_s          seconds from the request to the first paint of the study's page, median of the visits
    first_paint_cold_s     the same for the first visit, when the coordinator has not cached anything
    heat_map_s             seconds from the request to the drawn heat map, median
    interaction_ms         longest time from a key in the heat map, or from another order, to the next frame
    payload_kb             everything that the page loads, uncompressed
    page_kb, heat_map_kb, panels_kb   parts of it: the page, the cells, what is fetched when the study changes
    round_trip_ms          median of `SELECT 1` from this process, which shows how busy the machine was
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from sqlalchemy import Engine, create_engine, text

from benchmarks.bench_study import study_spec, write_cache, write_trials
from cli.local.service import LocalService, local_service
from cli.local.state import StateFolder
from services.contracts import StudySpec
from services.search_space import Range, paper_space

FOLDS = 118
PRUNED_AFTER = 40
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--visits", type=int, default=5)
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        state = StateFolder(folder / "state")
        write_cache(state.caches, subjects=FOLDS)
        with local_service(state, devices=(), port=0, notify=console.print) as service:
            engine = create_engine(service.service.database_url)
            _write_study(service, engine, arguments.trials)
            figures = _visit(service, arguments.visits) | {"round_trip_ms": _round_trip(engine)}
            engine.dispose()
    for key, value in figures.items():
        console.print(f"  {key:20} {value}")
    print(json.dumps(figures))


def _write_study(service: LocalService, engine: Engine, trials: int) -> None:
    pruning = [{"rule": "bound", "threshold": 0.5}]
    spec = study_spec("bench", trials=trials + 200, pruning=pruning, start=False)
    service.client.create(StudySpec.model_validate(spec))
    pruned = trials * 3 // 10
    with engine.connect() as connection:
        study = connection.execute(text("SELECT id FROM foldwise.studies")).scalar_one()
    complete = trials - pruned
    write_trials(engine, study, first=0, trials=complete, folds_done=FOLDS, folds=FOLDS, state="complete")
    write_trials(
        engine, study, first=complete, trials=pruned, folds_done=PRUNED_AFTER, folds=FOLDS, state="pruned"
    )
    rng = random.Random(0)
    drawn = [
        {
            "number": number,
            "parameters": json.dumps(
                {
                    name: round(rng.uniform(domain.low, domain.high), 4)
                    if isinstance(domain, Range)
                    else rng.choice(domain)
                    for name, domain in paper_space().items()
                }
            ),
        }
        for number in range(trials)
    ]
    decision = json.dumps({"rule": "bound", "fold": PRUNED_AFTER - 1, "numbers": {}})
    with engine.begin() as connection:
        update = "UPDATE foldwise.trials SET parameters = :parameters WHERE number = :number"
        connection.execute(text(update), drawn)
        update = "UPDATE foldwise.trials SET pruned = :decision WHERE state = 'pruned'"
        connection.execute(text(update), {"decision": decision})


def _visit(service: LocalService, visits: int) -> dict[str, float]:
    url = service.service.url
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.fill("#token", service.service.admin_token)
        page.click("button.primary")
        page.wait_for_url(f"{url}/")
        paints, maps = [], []
        for _ in range(visits + 1):
            page.goto(f"{url}/studies/bench")
            page.wait_for_selector("#heat[data-drawn]")
            maps.append(page.evaluate("performance.getEntriesByName('heat map drawn')[0].startTime") / 1000)
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            paints.append(page.evaluate(paint) / 1000)
        page.wait_for_selector("#parameter-panels figure")
        sizes: dict[str, int] = page.evaluate(_SIZES)
        slowest = max(_interactions(page))
        browser.close()
    return {
        "first_paint_s": round(statistics.median(paints[1:]), 3),
        "first_paint_cold_s": round(paints[0], 3),
        "heat_map_s": round(statistics.median(maps[1:]), 3),
        "interaction_ms": round(slowest, 1),
        "payload_kb": round(sum(sizes.values()) / 1000),
        "page_kb": round(sizes["/studies/bench"] / 1000),
        "heat_map_kb": round(sizes["/studies/bench/heat-map"] / 1000),
        "panels_kb": round(sizes["/studies/bench/panels"] / 1000),
    }


_SIZES = """() => {
    const sizes = {};
    for (const entry of ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind))) {
        const path = new URL(entry.name).pathname;
        sizes[path] = Math.max(sizes[path] ?? 0, entry.decodedBodySize);
    }
    return sizes;
}"""

_UNTIL_NEXT_FRAME = """([what, value]) => new Promise((resolve) => {
    const started = performance.now();
    if (what === "key")
        document.getElementById("heat").dispatchEvent(new KeyboardEvent("keydown", { key: value }));
    else {
        const order = document.getElementById("heat-order");
        order.value = value;
        order.dispatchEvent(new Event("change"));
    }
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - started)));
})"""


def _interactions(page: Page) -> list[float]:
    inputs: list[tuple[str, Any]] = [("key", key) for key in ["ArrowDown", "PageDown", "End", "ArrowUp"] * 5]
    inputs += [("order", order) for order in ("best", "number", "newest")]
    return [page.evaluate(_UNTIL_NEXT_FRAME, list(one)) for one in inputs]


def _round_trip(engine: Engine) -> float:
    seconds = []
    with engine.connect() as connection:
        for _ in range(200):
            started = time.perf_counter()
            connection.execute(text("SELECT 1"))
            seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds), 3)


if __name__ == "__main__":
    main()
