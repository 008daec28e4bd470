"""Kill, stop, freeze and cut off everything, many times, and count what is lost.

    python -m tests.chaos.run [--seeds 20] [--first-seed 0] [--digests]

For each seed: PostgreSQL, two coordinators on it, 24 simulated workers, one Leave-One-Subject-Out study with
`bound` pruning. Until the study is over, workers and coordinators are killed (SIGKILL) or stopped for about as
long as a lease (SIGSTOP), PostgreSQL is brought down as by a power cut (SIGQUIT, `immediate`) and frozen
(SIGSTOP of all its processes), the machine of one coordinator is cut off from the network for longer than a
leader's term (root only), a study is imported beside it all, results come twice or late and differ between two
attempts at a fold, claims come twice or much later. What dies is started again. Then the tables are compared
with what the workers sent and were told, with the rules of the study, and with Optuna's.

With `--digests`, two attempts at a fold have the same result, only a thousand expired leases fail a fold, and
`median` prunes beside `bound`. One worker first runs the same study without any fault; the study under fire
must then have the same digest.

Prints a table in Markdown, and one last line of JSON with the sums, or the largest where the name begins with
`overdue`:
    kills, stops, database_crashes, freezes, cuts, imports   what was done
    folds             results that were run and counted
    lost, doubled, altered, wrong_answers, wrong_trials, optuna_mismatches, over_budget, wrong_imports,
    other_digests     violations; the exit code is 0 if all of them are zero
    overdue_p99_s, overdue_max_s   seconds that expired leases waited for their end, in the worst seed
    seeds             number of seeds
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

from rich.console import Console

from cli.local.embedded_postgres import embedded_postgres
from client.connection import Connection
from client.study_client import StudyClient
from services.contracts import BoundRule, FoldAssignment, FoldResult, MedianRule, StudySpec
from services.errors import StudyOver
from services.folds import LeaveOneSubjectOut
from tests.chaos.arena import ADMIN, BOUND, SUBJECTS, TRIALS, WORKER, WORKERS, Arena, arena
from tests.chaos.check import Findings, check
from tests.chaos.storm import Harm, settle, storm
from tests.harness import lost_machine
from tests.harness.simulated_results import leased_predictions, make_result
from tests.harness.simulated_worker import SimulatedWorker
from tests.harness.tiny_cache import write_tiny_cache

VIOLATIONS = (
    "lost",
    "doubled",
    "altered",
    "wrong_answers",
    "wrong_trials",
    "optuna_mismatches",
    "over_budget",
    "wrong_imports",
    "other_digests",
)
IMPORTED_TRIALS = 10


@dataclass(frozen=True)
class Outcome:
    """What was done to a study, and what became of it."""

    seed: int
    harm: Harm
    findings: Findings
    seconds: float

    def figures(self) -> dict[str, float]:
        """All figures by name."""
        return {**asdict(self.harm), **asdict(self.findings), "seconds": self.seconds}

    @property
    def violations(self) -> float:
        """Zero, or there is a bug."""
        return sum(self.figures()[name] for name in VIOLATIONS)


def main() -> None:
    """Run all seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--digests", action="store_true", help="compare each study with a run without faults")
    arguments = parser.parse_args()
    console = Console()
    try:
        with lost_machine.namespace():
            two_machines = True
    except PermissionError as error:
        two_machines = False
        console.print(f"no machine is cut off: {error}", highlight=False)
    outcomes = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        outcomes.append(_run(seed, two_machines=two_machines, digests=arguments.digests))
        console.print(outcomes[-1], highlight=False)
    names = list(outcomes[0].figures())
    print(f"| seed | {' | '.join(name.replace('_', ' ') for name in names)} |")
    print("|---" * (len(names) + 1) + "|")
    for outcome in outcomes:
        figures = (f"{value:.1f}".removesuffix(".0") for value in outcome.figures().values())
        print(f"| {outcome.seed} | {' | '.join(figures)} |")
    sums = {
        name: round((max if name.startswith("overdue") else sum)(o.figures()[name] for o in outcomes), 2)
        for name in names
    }
    print(json.dumps({**sums, "seeds": len(outcomes)}))
    sys.exit(1 if any(outcome.violations for outcome in outcomes) else 0)


def _run(seed: int, *, two_machines: bool, digests: bool) -> Outcome:
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as name,
        lost_machine.namespace() if two_machines else nullcontext(),
    ):
        folder = Path(name)
        folder.chmod(0o755)
        write_tiny_cache(folder / "caches", subjects=SUBJECTS)
        with (
            embedded_postgres(folder / "postgres") as postgres,
            arena(
                folder, postgres, f"chaos-{seed}", two_machines=two_machines, repeatable=digests
            ) as processes,
        ):
            exported = _exported(processes)
            spec = _spec(processes.study, seed=seed, trials=TRIALS)
            if digests:
                rules = (MedianRule(startup_trials=3, warmup_folds=3), *spec.pruning)
                spec = spec.model_copy(update={"max_expired_leases": 1000, "pruning": rules})
            calm = _calm(processes, spec) if digests else None
            with Connection(processes.url(0), ADMIN, give_up_after=60) as connection:
                StudyClient(connection).create(spec)
            for number in range(WORKERS):
                processes.start(f"worker-{number}")
            harm = storm(processes, random.Random(seed), exported)
            settle(processes)
            findings = check(processes, exported, calm)
    return Outcome(seed, harm, findings, time.monotonic() - started)


def _exported(processes: Arena) -> bytes:
    """A study that has run, as a file."""
    with Connection(processes.url(0), ADMIN, give_up_after=60) as connection:
        client = StudyClient(connection)
        _work(processes, client, _spec("template", seed=0, trials=IMPORTED_TRIALS))
        file = BytesIO()
        client.export("template", file)
        return file.getvalue()


def _calm(processes: Arena, spec: StudySpec) -> str:
    """The digest of the study when one worker runs it without any fault."""
    with Connection(processes.url(0), ADMIN, give_up_after=60) as connection:
        client = StudyClient(connection)
        _work(processes, client, spec.model_copy(update={"name": "calm"}))
        digest = client.digest("calm")
        client.delete("calm", "calm")
        return digest.digest


def _work(processes: Arena, client: StudyClient, spec: StudySpec) -> None:
    """Create a study and run all its folds, one after the other."""

    def result(assignment: FoldAssignment) -> FoldResult:
        predicted = leased_predictions(assignment, repeatable=processes.repeatable)
        return make_result(assignment, predicted)

    client.create(spec)
    with Connection(processes.url(0), WORKER, give_up_after=60) as connection:
        worker = SimulatedWorker(connection, "first", spec.name, result)
        try:
            while True:
                worker.report()
        except StudyOver:
            return


def _spec(name: str, *, seed: int, trials: int) -> StudySpec:
    return StudySpec(
        name=name,
        cache="tiny",
        protocol=LeaveOneSubjectOut(),
        trials=trials,
        seed=seed,
        pruning=(BoundRule(threshold=BOUND),),
        training={"frames": 2, "frame_size": 16},
        workers_per_trial=2,
    )


if __name__ == "__main__":
    main()
