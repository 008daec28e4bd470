"""Take the coordinator's safeguards away, one at a time, and see whether the tests notice.

    python -m tests.mutants

Each mutant is a copy of the code with one safeguard removed; the tests of the protocol must fail on it. One
that they let live is a hole in the tests. The last line is JSON: `mutants`, `killed`, `alive`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.harness.source_copy import PACKAGES, PROJECT, copy_package

TESTS = (
    "tests/coordinator/scheduling/test_feedback_delay.py",
    "tests/coordinator/leader/test_election.py",
    "tests/coordinator/scheduling/test_scheduling.py",
    "tests/coordinator/scheduling/test_failpoints.py",
    # Last, because Hypothesis shrinks its failure before it reports it.
    "tests/coordinator/scheduling/test_protocol.py",
)
SCHEDULING = "coordinator/scheduling"


@dataclass(frozen=True)
class Mutant:
    """A safeguard, and how the code looks without it."""

    without: str
    file: str
    code: str
    instead: str


MUTANTS = (
    Mutant(
        "the fence: an old term may write",
        f"{SCHEDULING}/leases.py",
        'if fold.term != lease.term or lease.outcome == "superseded":',
        "if False:",
    ),
    Mutant(
        "the fence of the leader: a replaced one may write",
        "coordinator/leader/election.py",
        "if session.scalar(held.with_for_update(read=True, key_share=True)) is None:",
        "if False:",
    ),
    Mutant(
        "the leader's row is held: another leads while it writes",
        "coordinator/leader/election.py",
        "held.with_for_update(read=True, key_share=True)",
        "held",
    ),
    Mutant(
        "the hash check: a second, other result",
        f"{SCHEDULING}/reports.py",
        "if stored.sha256 != sha256:",
        "if False:",
    ),
    Mutant(
        "the outbox: counted folds are not handed on",
        "coordinator/store/fold_writes.py",
        '    outbox_row(_counted("trial_id")).cte("outbox"),\n',
        "",
    ),
    Mutant(
        "the outbox: the ends of trials are not handed on",
        f"{SCHEDULING}/trials.py",
        "    session.execute(outbox_row(trial.id))",
        "    pass",
    ),
    Mutant(
        "the expiry test: a lease that was renewed is ended",
        f"{SCHEDULING}/failures.py",
        "    if session.scalar(over) is None:\n        return\n",
        "",
    ),
    Mutant(
        "the idempotency key of a claim",
        f"{SCHEDULING}/claims.py",
        "    if answered is not None:\n        return _replay_claim(",
        "    if False:\n        return _replay_claim(",
    ),
    Mutant(
        "the replay of a report",
        f"{SCHEDULING}/reports.py",
        "if stored is not None and stored.lease_id == lease.id:",
        "if False:",
    ),
    Mutant(
        "the secret of a lease",
        f"{SCHEDULING}/leases.py",
        "if lease.term != key.term or not compare_digest(lease.secret.encode(), key.secret.encode()):",
        "if lease.term != key.term:",
    ),
    Mutant(
        "the budget's check in the transaction that adds a trial",
        f"{SCHEDULING}/trials.py",
        "    if count != number or number >= spec.trials:\n        return None\n",
        "",
    ),
    Mutant(
        "the lock of a trial",
        f"{SCHEDULING}/leases.py",
        "    .with_for_update()\n",
        "",
    ),
    Mutant(
        "the second look at a trial once its lock is held",
        f"{SCHEDULING}/claims.py",
        "        if not _can_take(session, trial, spec):\n            continue\n",
        "",
    ),
    Mutant(
        "that a fold which lapsed and is handed in late is no longer pending",
        f"{SCHEDULING}/leases.py",
        "            _Pending.fold != LeaseRow.fold,\n",
        "",
    ),
    Mutant(
        "the feedback delay of the sampler: it is told of every trial that has ended",
        "coordinator/leader/asking.py",
        "if TrialState(t.state).over and (below is None or t.number < below)}",
        "if TrialState(t.state).over}",
    ),
    Mutant(
        "the wait for the trials that the next one must know",
        "coordinator/leader/asking.py",
        "if below is not None and any(other < below for other in search.under_way):",
        "if False:",
    ),
    Mutant(
        "the feedback delay of the rules: they compare with every complete trial",
        "coordinator/pruning/fold_table.py",
        "known_below(spec, trial.number)",
        "None",
    ),
    Mutant(
        "the verdict on each length: only the longest prefix is judged",
        "coordinator/pruning/rules.py",
        "for length in range(judged + 1, min(len(folds), len(order) - 1) + 1):",
        "for length in range(len(folds), min(len(folds), len(order) - 1) + 1):",
    ),
    Mutant(
        "the order of failures: a fold that fails early ends its trial before the folds that come first",
        f"{SCHEDULING}/failed_folds.py",
        "    if spec.feedback_delay is None:",
        "    if spec.trials:",
    ),
    Mutant(
        "that folds beyond a verdict enter nothing",
        "coordinator/scheduling/counting.py",
        "beyond.values(beyond_verdict=True)",
        "beyond.values(beyond_verdict=False)",
    ),
    Mutant(
        "the exact bound: only the first epoch is asked what it can still reach",
        "services/pruning/bound.py",
        "max(best_reachable(counts, remaining, metric) for counts in at_epochs)",
        "best_reachable(at_epochs[0], remaining, metric)",
    ),
    Mutant(
        "one epoch for all folds: the counts of earlier folds stay at their old epoch",
        f"{SCHEDULING}/judging.py",
        "if judgement.common_epoch is not None:",
        "if judgement.common_epoch is None:",
    ),
)


def main() -> None:
    """Try them all."""
    console = Console()
    table = Table("without", "tests", "seconds")
    alive = []
    for mutant in MUTANTS:
        started = time.monotonic()
        failed = _tests_fail(mutant)
        if not failed:
            alive.append(mutant.without)
        table.add_row(mutant.without, "fail" if failed else "pass", f"{time.monotonic() - started:.0f}")
        console.print(f"{mutant.without}: {'killed' if failed else 'ALIVE'}", highlight=False)
    console.print(table)
    print(json.dumps({"mutants": len(MUTANTS), "killed": len(MUTANTS) - len(alive), "alive": alive}))
    sys.exit(1 if alive else 0)


def apply(mutant: Mutant, root: Path) -> None:
    """Change the copy of the code in `root`.

    Raises:
        ValueError: the code of the safeguard is not there, or more than once: it has changed.
    """
    path = root / mutant.file
    code = path.read_text(encoding="utf-8")
    if code.count(mutant.code) != 1:
        raise ValueError(f"{mutant.file} has {code.count(mutant.code)} times what {mutant.without!r} removes")
    path.write_text(code.replace(mutant.code, mutant.instead), encoding="utf-8")


def _tests_fail(mutant: Mutant) -> bool:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for package in (*PACKAGES, "tests"):
            copy_package(package, root)
        shutil.copy(PROJECT / "pyproject.toml", root)
        apply(mutant, root)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-m",
            "not long",
            "-p",
            "no:cacheprovider",
            *TESTS,
        ]
        outcome = subprocess.run(
            [*command, f"--basetemp={root / 'tmp'}"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
    # 1: tests failed. Anything else is not what was asked: no tests, wrong usage, a broken copy.
    if outcome.returncode not in {0, 1}:
        raise SystemExit(
            f"pytest ended with {outcome.returncode}:\n{outcome.stdout[-2000:]}{outcome.stderr[-500:]}"
        )
    return outcome.returncode == 1


if __name__ == "__main__":
    main()
