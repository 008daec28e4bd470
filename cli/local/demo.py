"""`foldwise demo`: a whole search on one machine, with synthetic faces and all processes of the service."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cli.local.service import local_service
from cli.local.state import StateFolder
from cli.terminal.consoles import bold
from cli.terminal.progress import preprocessing_progress, writing_progress
from cli.terminal.tables import confusion_table, digest_line, study_summary, trials_table
from cli.terminal.watch import watch
from client.local_service import default_state
from client.study_client import StudyClient
from preprocessing.clips import ClipSettings
from preprocessing.datasets.synthetic import write_ckplus_tree
from preprocessing.job import preprocess
from services.contracts import StudySpec, StudyView, TrialState
from services.presets import DEMO_SUBJECTS, get_preset

DIFFICULTY = 0.35
SEED = 7


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What `foldwise demo --json` prints."""

    study: str
    trials: int
    pruned: int
    folds_run: int
    best_accuracy: float | None
    digest: str
    """Equal for two runs on machines of one kind; see `foldwise replay`."""

    report: str
    """Path of the report, an HTML file."""

    chance: float
    seconds: float


def run_demo(state: StateFolder, *, devices: Sequence[str], new: bool, console: Console) -> DemoResult:
    """Draw faces, preprocess them, run a search, and show the result; finished work is not repeated.

    Args:
        state: state folder for all files.
        devices: torch device of each worker.
        new: start another study instead of continuing the last one.
        console: where to print.
    """
    started = time.monotonic()
    spec = get_preset("demo")
    tree = state.folder / "faces"

    console.print(
        bold("1/5"),
        f"synthetic faces: {DEMO_SUBJECTS} subjects with 7 emotions each, and some unlabelled "
        f"sequences, in the folder layout of CK+: {tree}",
        soft_wrap=True,
    )
    with writing_progress(console) as progress:
        write_ckplus_tree(tree, subjects=DEMO_SUBJECTS, seed=SEED, difficulty=DIFFICULTY, progress=progress)

    console.print(bold("2/5"), "preprocessing: find the faces with YuNet, crop them, apply CLAHE")
    with preprocessing_progress(console) as report:
        outcome = preprocess(
            "ckplus",
            tree,
            state.caches,
            settings=ClipSettings(frames=spec.training.frames, frame_size=spec.training.frame_size),
            processes=os.cpu_count() or 1,
            report=report,
        )
    console.print(
        f"    {outcome.manifest.clips} clips of {outcome.manifest.subjects} subjects in {outcome.folder}",
        highlight=False,
        soft_wrap=True,
    )

    spec = spec.model_copy(update={"cache": f"ckplus/{outcome.manifest.fingerprint}"})
    console.print(bold("3/5"), f"search: PostgreSQL, a coordinator and {len(devices)} workers over HTTP")
    threads = None if spec.compute.threads == "auto" else spec.compute.threads
    with local_service(state, devices=(), port=0, notify=_indented(console), threads=threads) as service:
        client = service.client
        study = _find_or_create(client, spec, new=new, console=console)
        _indented(console)(f"study page: {service.service.url}/studies/{study.name}")
        _indented(console)(
            f"token to sign in there: {_program()} token create me --scope write --state {state.folder}"
        )
        if not study.state.over:
            service.study = study.name
            for number, device in enumerate(devices, start=1):
                service.start_worker(f"worker-{number}", device)
                _indented(console)(f"worker-{number} on {device}")
            study = watch(client, study.name, console, on_poll=service.tend)
        console.print(bold("4/5"), "result")
        _show_result(client, study, console)
        digest = client.digest(study.name)
        _indented(console)(digest_line(digest).strip())
        page = _write_report(client, study, state, console)
    seconds = time.monotonic() - started
    _print_next_steps(state, study.name, page, console)
    return DemoResult(
        study=study.name,
        trials=sum(study.trials.values()),
        pruned=study.trials[TrialState.PRUNED],
        folds_run=study.folds_done,
        best_accuracy=study.best.value if study.best else None,
        digest=digest.digest,
        report=str(page),
        chance=round(study.chance, 4),
        seconds=round(seconds, 1),
    )


def _find_or_create(client: StudyClient, spec: StudySpec, *, new: bool, console: Console) -> StudyView:
    earlier = [s for s in client.studies() if s.name == spec.name or s.name.startswith(f"{spec.name}-")]
    if earlier and not new:
        study = earlier[-1]
        if study.state == "paused":
            study = client.change_state(study.name, "resume")
        status = "is finished; --new starts another one" if study.state.over else "continues where it stopped"
        console.print(f"    study {study.name} {status}")
        return study
    name = spec.name if not earlier else f"{spec.name}-{len(earlier) + 1}"
    study = client.create(spec.model_copy(update={"name": name, "seed": spec.seed + len(earlier)}))
    size = f"{spec.trials} trials of {study.folds} folds, {len(spec.space)} hyper-parameters"
    console.print(f"    study {study.name}: {size}")
    return study


def _show_result(client: StudyClient, study: StudyView, console: Console) -> None:
    console.print(trials_table(client.trials(study.name)))
    console.print()
    study_summary(console, study)
    if study.best is not None:
        console.print()
        best = study.best.number
        console.print(confusion_table(client.confusion(study.name, best), best))


def _write_report(client: StudyClient, study: StudyView, state: StateFolder, console: Console) -> Path:
    from report.write import PAGE, write_report

    console.print(bold("5/5"), "report: figures, tables and every number of the search")
    folder = state.folder / f"{study.name}-report"
    write_report(client, study.name, folder)
    return folder / PAGE


def _print_next_steps(state: StateFolder, study: str, report: Path, console: Console) -> None:
    program = _program()
    new = "" if state.folder == demo_state() else f" --state {state.folder}"
    console.print(
        f"""
where to look next
  {report}
      the report: settings, results, and how certain they are
  {program} up --state {state.folder} --workers 0
      serves the page of this study until Ctrl-C
  {program} dashboard --state {state.folder}
      serves Optuna's dashboard of this study
  {state.logs}/worker-1.log
      what worker 1 did, one line per event
  {program} replay {study}{new}
      runs the same study again and compares the two, number by number
  {program} demo --new{new}
      runs another study with another seed
  {program} up
      runs the service for your own videos, see README.md""",
        highlight=False,
        soft_wrap=True,
    )


def _program() -> str:
    # `make demo` runs the program from .venv/bin, which is not always on the user's PATH.
    return sys.argv[0] if Path(sys.argv[0]).name == "foldwise" else "foldwise"


def _indented(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(f"    {text}", highlight=False, soft_wrap=True)


def demo_state() -> Path:
    """The default state folder of the demo."""
    return default_state() / "demo"
