"""What a study's feedback delay costs: time of workers, and quality of the search.

    python -m benchmarks.delay [--searches 3] [--trials 400] [--seeds 60] [--long-seeds 4] [--processes 2]

The first part runs searches with simulated workers (`benchmarks/delay/workers.py`), by the coordinator's policy
and its own pruning functions, for each protocol, rule, number of workers and delay. The durations of trials
differ 20-fold. `waits` is the share of the workers' time without a fold until the last trial was suggested;
`thrown away` the share of the time spent on folds that went to folds beyond a verdict, finished or abandoned;
`idle at the end` the share of the whole study's time without a fold after the last trial was suggested.

The second part runs searches with the coordinator's own sampler in simulated spaces of the paper's shape
(`benchmarks/delay/spaces.py`), and compares the best values with those of a sequential search (d = 0) and of
searches without a delay, with the same seeds.

Nothing is timed: the same options give the same figures. The last line is JSON:
    waiting_share_default       largest share that workers wait with the default delay (twice the workers) over
                                protocols, rules and numbers of workers; each is a mean over searches
    thrown_away_share_default   the same of the share that is thrown away
    best_value_loss_points      best value after 200 trials of a sequential search, minus that with a delay of 8
                                (the default of 4 workers); mean over the spaces, in percentage points, negative
                                where the delay was better
    best_value_loss_error       its standard error
    waiting                     a row for each protocol, rule, number of workers, delay and kind of help
                                (`on`: while no trial can start; `off`; `not at the end`: only until all trials
                                have been suggested, which foldwise does not offer). `waiting`,
                                `thrown_away`, `at_end` and `time`, which is the length of the study divided by
                                that without a delay, are means; each has its lowest and highest as `_range`
    losses                      a row for each variant, number of trials and search `against` which it is
                                compared: the mean loss `points` of the best value and its standard `error`, the
                                same of the best trial without its noise (`noiseless_points`,
                                `noiseless_error`), and the number of `spaces`
    best_values                 mean best value in percent, by variant and number of trials
    machine, versions           where it ran
    seconds                     of the whole run
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import chain, product

from rich.console import Console

from benchmarks.delay.search_cost import SEQUENTIAL, VARIANTS, Found, Variant, found_after, run_search
from benchmarks.delay.summary import (
    COMPARED_AFTER,
    best_values,
    default_tables,
    delay_tables,
    loss_rows,
    loss_tables,
    waiting_rows,
    with_default_delay,
)
from benchmarks.delay.waiting import PROTOCOLS, RULES, WORKERS, Setting, default_delay, measure

DEFAULT = Variant(delay=default_delay(4))
"""The variant of which the JSON line gives the loss."""


def main() -> None:
    """Measure both parts and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--searches", type=int, default=3, help="searches that workers run (default: 3)")
    parser.add_argument("--trials", type=int, default=400, help="trials of each of them (default: 400)")
    parser.add_argument("--seeds", type=int, default=60, help="spaces that are searched (default: 60)")
    parser.add_argument(
        "--long-seeds", type=int, default=4, help="spaces searched with 800 trials, not 200 (default: 4)"
    )
    parser.add_argument("--processes", type=int, default=2, help="processes (default: 2)")
    arguments = parser.parse_args()
    began = time.monotonic()
    settings = [
        Setting(protocol=protocol, rule=rule, workers=workers, trials=arguments.trials, seed=seed)
        for seed, protocol, rule, workers in product(range(arguments.searches), PROTOCOLS, RULES, WORKERS)
    ]
    # The long ones first, so that no process is left with one at the end.
    seeds = range(max(arguments.seeds, arguments.long_seeds))
    searches = [
        (variant, COMPARED_AFTER[-1] if seed < arguments.long_seeds else COMPARED_AFTER[-2], seed)
        for seed, variant in product(seeds, VARIANTS)
    ]
    found: dict[Variant, dict[int, Sequence[Found]]] = defaultdict(dict)
    with ProcessPoolExecutor(arguments.processes) as pool:
        measured = pool.map(measure, settings)
        steps = pool.map(_search, searches)
        waiting = waiting_rows(dict(zip(settings, measured, strict=True)))
        for (variant, _, seed), found_by_trial in zip(searches, steps, strict=True):
            found[variant][seed] = found_by_trial
    losses = loss_rows(found)
    # Also in a file, where the tables would otherwise be cut to 80 columns.
    console = Console(width=130)
    for table in chain(default_tables(waiting), delay_tables(waiting), loss_tables(losses)):
        console.print(table)
    defaults = with_default_delay(waiting, "on")
    loss = next(
        row
        for row in losses
        if (row["variant"], row["against"], row["trials"]) == (DEFAULT.name, SEQUENTIAL.name, 200)
    )
    print(
        json.dumps(
            {
                "waiting_share_default": max(row["waiting"] for row in defaults),
                "thrown_away_share_default": max(row["thrown_away"] for row in defaults),
                "best_value_loss_points": loss["points"],
                "best_value_loss_error": loss["error"],
                "waiting": waiting,
                "losses": losses,
                "best_values": best_values(found),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("numpy", "optuna")},
                },
                "seconds": round(time.monotonic() - began),
            }
        )
    )


def _search(search: tuple[Variant, int, int]) -> list[Found]:
    variant, trials, seed = search
    return found_after(run_search(variant, trials=trials, seed=seed), seed=seed)


if __name__ == "__main__":
    main()
