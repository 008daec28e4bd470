"""Studies, trials, folds, workers and confusion matrices as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.terminal.consoles import bold
from report.outcome import trial_outcome
from report.selection import selection_warning
from services.contracts import (
    ConfusionView,
    FoldRecord,
    FoldView,
    StudyDigest,
    StudyView,
    StudyWorkersView,
    TrialState,
    TrialView,
    WorkerView,
)
from services.score_names import OBJECTIVE_NAMES, epoch_choice_words
from services.search_space import title_of

if TYPE_CHECKING:
    # torch takes seconds to load, and not every image has it.
    from cli.doctor.machine import Finding
    from cli.evaluation.repetition import Repetition
    from cli.evaluation.replay import ReplayComparison

_STYLES = {
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "yellow",
    TrialState.RUNNING: "cyan",
    TrialState.FAILED: "red",
    TrialState.CANCELLED: "red",
    TrialState.READY: "dim",
}

_NAMES_PER_REASON = 3
"""Maximum number of skipped files to name for each reason."""


def percent(value: float | None) -> str:
    """Format 0.9755 as `97.55 %`, and None as a dash."""
    return "-" if value is None else f"{100 * value:.2f} %"


def skipped_lines(skipped: Mapping[str, str]) -> Iterator[str]:
    """A line for each reason why a reader skipped files, the most frequent first, with a few names."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
        more = ", ... (all in manifest.json)" if len(names) > _NAMES_PER_REASON else ""
        yield f"not read: {len(names)} x {reason}: {', '.join(names[:_NAMES_PER_REASON])}{more}"


def studies_table(studies: Sequence[StudyView]) -> Table:
    """One row per study."""
    table = Table("study", "state", "cache", "trials", "pruned", "folds done", "best", box=None, pad_edge=False)
    for study in studies:
        ended = sum(count for state, count in study.trials.items() if state.over)
        table.add_row(
            study.name,
            study.state,
            f"{study.dataset}/{study.fingerprint[:8]}",
            f"{ended}/{study.spec.trials}",
            str(study.trials[TrialState.PRUNED]),
            str(study.folds_done),
            percent(study.best.value if study.best else None),
        )
    return table


def trials_table(trials: Sequence[TrialView]) -> Table:
    """One row per trial: folds done, scores so far, and its worker or how it ended."""
    table = Table("trial", "state", "folds", "accuracy", "UAR", "UF1", "details", box=None, pad_edge=False)
    for trial in trials:
        state = Text(trial.state, style=_STYLES[trial.state])
        folds = f"{trial.folds_done}/{trial.folds}"
        scores = (percent(score) for score in (trial.running_accuracy, trial.uar, trial.uf1))
        table.add_row(str(trial.number), state, folds, *scores, trial_outcome(trial))
    return table


def parameters_table(parameters: dict[str, object]) -> Table:
    """A configuration in the form of the paper's Table 2."""
    table = Table("Hyper-parameter", "Value", box=None, pad_edge=False)
    for name, value in parameters.items():
        table.add_row(title_of(name), str(value).lower() if isinstance(value, bool) else str(value))
    return table


def folds_table(folds: Sequence[FoldView]) -> Table:
    """One row per fold; the column `reused from` appears only if a fold was reused from another trial."""
    table = Table("fold", "tests", "state", "correct", "counted epoch", "epochs", "seconds", "worker", box=None)
    reused = any(fold.reused_from is not None for fold in folds)
    if reused:
        table.add_column("reused from")
    for fold in folds:
        origin = "-" if fold.reused_from is None else f"trial {fold.reused_from}"
        table.add_row(
            str(fold.index + 1),
            fold.name,
            "done, not counted" if fold.beyond_verdict else fold.state,
            "-" if fold.correct is None else f"{fold.correct}/{fold.clips}",
            "-" if fold.best_epoch is None else str(fold.best_epoch + 1),
            "-" if fold.epochs is None else str(fold.epochs),
            "-" if fold.seconds is None else f"{fold.seconds:.1f}",
            fold.worker or "-",
            *([origin] if reused else []),
        )
    return table


def confusion_table(view: ConfusionView, trial: int) -> Table:
    """The confusion matrix of a trial: counts of clips, with the recall of each class."""
    title = f"clips of trial {trial} by true class (rows) and predicted class (columns)"
    table = Table("", *view.classes, "recall", title=title, title_justify="left", box=None, pad_edge=False)
    for index, (name, row) in enumerate(zip(view.classes, view.counts, strict=True)):
        total = sum(row)
        cells = [Text(str(n), style="bold green" if i == index else "") for i, n in enumerate(row)]
        table.add_row(name, *cells, percent(row[index] / total if total else None))
    return table


def save_confusion(view: ConfusionView, path: Path, title: str) -> None:
    """Draw a confusion matrix as PNG, each row as shares of its true class (the paper's Fig. 5)."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    counts = np.asarray(view.counts, dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = 1.5 + 0.85 * len(view.classes)
    figure, axes = plt.subplots(figsize=(size + 1.2, size), layout="constrained")
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(share)):
        for column in range(len(share)):
            axes.text(
                column,
                row,
                f"{share[row, column]:.2f}\n({int(counts[row, column])})",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[row, column] > 0.5 else "black",
            )
    axes.set_xticks(range(len(share)), view.classes, rotation=40, ha="right")
    axes.set_yticks(range(len(share)), view.classes)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    figure.savefig(path, dpi=140)
    plt.close(figure)


def study_summary(console: Console, study: StudyView) -> None:
    """Print a study, its counts, and its best configuration."""
    counts = ", ".join(f"{count} {state}" for state, count in study.trials.items() if count)
    reason = f" ({study.reason})" if study.reason else ""
    console.print("study", bold(study.name), f"is {study.state}{reason}")
    console.print(
        f"  {study.clips} clips of {study.dataset}/{study.fingerprint[:12]}, {study.folds} folds, "
        f"split {study.split_hash[:12]}"
    )
    console.print(
        f"  maximises {OBJECTIVE_NAMES[study.spec.objective]}, {epoch_choice_words(study.spec.counted_epoch)}"
    )
    console.print(f"  {sum(study.trials.values())} of {study.spec.trials} trials: {counts or 'none yet'}")
    console.print(f"  {study.folds_done} folds done, computed in {_computed(study)}", highlight=False)
    if study.stalled is not None:
        console.print("  stalled: no worker can run:", study.stalled, highlight=False)
    for trouble in study.troubles:
        console.print("  trouble:", trouble, highlight=False, style="yellow")
    if study.best is None:
        console.print("  no trial has ended yet")
        return
    best = study.best
    if best.value is None:
        console.print(
            f"  no trial is complete; the pruned trial {best.number} got furthest: "
            f"{percent(best.running_accuracy)} after {best.folds_done} of {best.folds} folds"
        )
    else:
        console.print(
            f"  best: trial {best.number}, accuracy {percent(best.running_accuracy)} "
            f"({best.correct}/{best.clips} clips correct; chance {percent(study.chance)}), "
            f"UAR {percent(best.uar)}, UF1 {percent(best.uf1)}"
        )
        ended = study.trials[TrialState.COMPLETE] + study.trials[TrialState.PRUNED]
        console.print(Text(selection_warning(study.spec, ended), style="dim"))
    console.print(parameters_table(dict(best.parameters)))


DEPENDS_ON = {
    "order": "the order in which folds finished, because feedback_delay is null",
    "clock": "a clock, because the study has a time limit",
    "failures": "failures, because a trial failed",
    "stop": "the moment at which it was stopped",
}
"""What a digest can depend on, in words."""


def digest_line(digest: StudyDigest) -> str:
    """The digest of a study, with what it depends on besides spec, seed and clips."""
    others = "; ".join(DEPENDS_ON[what] for what in digest.depends_on)
    return f"  digest {digest.digest} of {digest.trials} trials" + (f"; depends on {others}" if others else "")


def _computed(study: StudyView) -> str:
    if study.plan is None:
        return f"{study.spec.compute} (decided with the first fold)"
    threads = "" if study.plan.threads is None else f", threads per worker: {study.plan.threads}"
    return f"{study.plan}{threads}"


def live_view(study: StudyView, trials: Sequence[TrialView], workers: Sequence[WorkerView]) -> RenderableType:
    """What `foldwise study watch` shows: progress, the last trials, the workers."""
    ended = sum(count for state, count in study.trials.items() if state.over)
    best = percent(study.best.value) if study.best and study.best.value is not None else "-"
    head = Text.assemble(
        (study.name, "bold"),
        f"  {study.state}  {ended}/{study.spec.trials} trials  {study.trials[TrialState.PRUNED]} pruned  "
        f"{study.folds_done} folds  best {best}  chance {percent(study.chance)}",
    )
    busy = [w for w in workers if w.fold is not None]
    foot = Text(
        "  ".join(f"{w.name} ({w.device}): trial {w.trial} fold {(w.fold or 0) + 1}" for w in busy)
        or "no worker is training a fold",
        style="dim",
    )
    bar = ProgressBar(total=study.spec.trials, completed=ended, width=60)
    return Group(head, bar, trials_table(trials[-15:]), foot)


def replay_lines(record: FoldRecord, found: ReplayComparison) -> Iterator[str]:
    """The result of a replay: whether it is bit-identical to the recorded fold, or how it differs."""
    task, result = record.task, record.result
    yield (
        f"{task.study} trial {task.trial} fold {task.fold} ({task.fold_name}): {found.epochs} epochs; "
        f"epoch {record.best_epoch + 1} counts, with {record.correct} of {len(task.test_clips)} clips correct"
    )
    for name, (recorded, here) in found.environment.items():
        yield f"{name}: {recorded} in the recorded run, {here} here"
    if found.equal:
        seconds = result.provenance.seconds
        yield f"the replay is bit-identical ({found.seconds:.1f} s; the recorded run took {seconds:.1f} s)"
        return
    yield (
        f"the replay differs from epoch {found.first_difference} on: {found.labels_changed} predicted labels "
        f"changed, and probabilities by up to {found.largest_difference:.2g}"
    )
    if found.environment:
        yield "bits are identical only if device, torch, CUDA, cuDNN and the number of threads are the same"


def repetition_lines(found: Repetition) -> Iterator[str]:
    """The result of a study's replay: whether it has the same digest, or the first difference."""
    if found.equal:
        yield f"{found.replay} is equal to {found.study}: {found.trials} trials, digest {found.digest}"
        return
    yield f"{found.replay} differs from {found.study}: digest {found.digest_of_replay}, not {found.digest}"
    first = found.difference
    if first is not None:
        where = []
        if first.trial is not None:
            where = [f"trial {first.trial}", "all folds" if first.fold is None else f"fold {first.fold}"]
        yield (
            f"first difference: {', '.join([*where, f'field {first.field}'])}: "
            f"{first.recorded} in {found.study}, {first.replayed} in {found.replay}"
        )
    for what in found.depends_on:
        yield f"the digest depends on {DEPENDS_ON[what]}"


def workers_lines(workers: StudyWorkersView) -> Iterator[str]:
    """A study's Job and pods in Kubernetes."""
    if workers.job is None:
        yield "the study has no worker Job: it is not running, or the coordinator does not start workers"
        return
    yield f"Job {workers.job}: {workers.wanted} workers requested" + (
        ", suspended" if workers.suspended else ""
    )
    if workers.stalled is not None:
        yield f"stalled: {workers.stalled}"
    for pod in workers.pods:
        gpus = ", ".join(f"{amount} x {name}" for name, amount in pod.gpus.items()) or "no GPU"
        reason = f"  {pod.reason}: {pod.message}" if pod.reason else ""
        yield f"  {pod.name}  {pod.phase}  {pod.node or 'no node yet'}  {gpus}{reason}"


def finding_lines(finding: Finding) -> Iterator[str]:
    """A finding of `foldwise doctor`, and what to do about it."""
    yield f"{'ok ' if finding.good else 'BAD'} {finding.what}: {finding.found}"
    if finding.fix is not None:
        yield f"    {finding.fix}"
