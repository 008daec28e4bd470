"""The tables of a report."""

from __future__ import annotations

from collections.abc import Iterator

from report.findings import Findings, Shown
from report.literature import clips_note, comparison_for
from report.material import Material
from report.outcome import trial_outcome
from report.table import Cell, Hours, Percent, Table
from services.contracts import TrialView
from services.score_names import READING_NAMES
from services.search_space import PARAMETERS, Range, title_of


def all_tables(material: Material, findings: Findings) -> dict[str, Table]:
    """All tables of a study that have data, by name."""
    return {table.name: table for table in _tables(material, findings)}


def _tables(material: Material, findings: Findings) -> Iterator[Table]:
    yield _space(material)
    yield _trials(material)
    shown = findings.shown
    if shown is not None:
        yield _parameters(material, shown)
        yield _scores(shown)
        yield from _confusions(findings, shown)
        yield _classes(shown)
        yield _folds(shown)
        yield _readings(shown)
    if material.best is not None and (table := _literature(material)) is not None:
        yield table
    if findings.importance:
        yield _importance(findings)
    yield _account(findings)
    if findings.account.rules:
        yield _rules(findings)
    yield _provenance(material)


def _space(material: Material) -> Table:
    def options(domain: object) -> str:
        if isinstance(domain, Range):
            return f"[{domain.low:g}, {domain.high:g}]" + (" (logarithmic)" if domain.log else "")
        assert isinstance(domain, tuple)  # noqa: S101 - a domain is a range or options
        return " / ".join(_word(option) for option in domain)

    return Table(
        name="space",
        caption="Hyper-parameters of the search space (the paper's Table 1)",
        columns=("Parameter", "Options"),
        rows=[(title_of(name), options(domain)) for name, domain in material.study.spec.space.items()],
    )


def _trials(material: Material) -> Table:
    names = [name for name, _ in material.study.spec.space.items()]
    return Table(
        name="trials",
        caption="All trials",
        columns=(
            *("Trial", "State", "Accuracy", "UAR", "UF1", "Folds", "Correct", "Clips"),
            *map(title_of, names),
            "What happened",
        ),
        rows=[
            (
                *(trial.number, trial.state.value),
                *(Percent(score if trial.value is not None else None) for score in _scores_of(trial)),
                *(trial.folds_done, trial.correct, trial.clips),
                *(trial.parameters.get(name) for name in names),
                trial_outcome(trial),
            )
            for trial in material.trials
        ],
    )


def _scores_of(trial: TrialView) -> tuple[float | None, ...]:
    return trial.running_accuracy, trial.uar, trial.uf1


def _parameters(material: Material, shown: Shown) -> Table:
    of_trial = shown.parameters
    fixed = material.study.spec.training
    rows: list[tuple[Cell, ...]] = [(title_of(name), _word(value)) for name, value in of_trial.items()]
    rows += [
        (f"{title_of(name)} (not searched)", _word(getattr(fixed, name)))
        for name in PARAMETERS
        if name not in of_trial and hasattr(fixed, name)
    ]
    whose = "the best trial" if shown.complete else "the pruned trial with the fewest errors"
    return Table(
        name="parameters",
        caption=f"Hyper-parameters of {whose}, number {shown.number} (the paper's Tables 2 and 3)",
        columns=("Hyper-parameter", "Value"),
        rows=rows,
    )


def _scores(shown: Shown) -> Table:
    return Table(
        name="scores",
        caption=f"Scores of trial {shown.number} over {shown.clips} clips, with 95 % intervals",
        columns=("Score", "Value", "Wilson, from", "to", "Bootstrap, from", "to"),
        rows=[
            (
                *(score.name, Percent(score.value)),
                *map(Percent, score.wilson or (None, None)),
                *map(Percent, score.bootstrap or (None, None)),
            )
            for score in shown.scores
        ],
    )


def _confusions(findings: Findings, shown: Shown) -> Iterator[Table]:
    classes = list(findings.data.class_counts)
    true = [sum(row) for row in shown.confusion]
    predicted = [sum(column) for column in zip(*shown.confusion, strict=True)]
    by_true = [[n / true[i] if true[i] else None for n in row] for i, row in enumerate(shown.confusion)]
    by_predicted = [
        [n / predicted[j] if predicted[j] else None for j, n in enumerate(row)] for row in shown.confusion
    ]
    for name, caption, cells in (
        ("confusion-counts", "counts of clips", shown.confusion),
        ("confusion-by-true-class", "shares of the clips of a true class", by_true),
        ("confusion-by-predicted-class", "shares of the clips predicted as a class", by_predicted),
    ):
        yield Table(
            name=name,
            caption=f"Confusion matrix of trial {shown.number}, {caption}; rows are true classes",
            columns=("True class", *classes),
            rows=[(label, *row) for label, row in zip(classes, cells, strict=True)],
        )


def _classes(shown: Shown) -> Table:
    return Table(
        name="classes",
        caption=f"Scores of each class, trial {shown.number}",
        columns=("Class", "Clips", "Recall", "Precision", "F1"),
        rows=[
            (one.name, one.clips, Percent(one.recall), Percent(one.precision), Percent(one.f1))
            for one in shown.classes
        ],
    )


def _folds(shown: Shown) -> Table:
    return Table(
        name="folds",
        caption=f"Each fold of trial {shown.number}",
        columns=("Fold", "Tests", "Subjects", "Correct", "Clips", "Accuracy", "Best epoch", "Epochs", "Was"),
        rows=[
            (
                *(fold.index + 1, fold.name, fold.subjects, fold.correct, fold.clips),
                *(Percent(fold.accuracy), fold.best_epoch, fold.epochs, fold.state),
            )
            for fold in shown.folds
        ],
    )


def _readings(shown: Shown) -> Table:
    return Table(
        name="best-epoch",
        caption=f"Readings of the best epoch, over {shown.clips} clips",
        columns=("Reading", "Epoch", "Correct", "Accuracy", "UAR", "UF1"),
        rows=[
            (
                READING_NAMES[reading.choice]
                + (" (what counts here)" if reading.choice == shown.counted_epoch else ""),
                reading.epoch,
                reading.correct,
                *(
                    (f"not recorded: {reading.not_recorded}", None, None)
                    if reading.accuracy is None
                    else map(Percent, (reading.accuracy, reading.uar, reading.uf1))
                ),
            )
            for reading in shown.readings
        ],
    )


def _literature(material: Material) -> Table | None:
    comparison, best = comparison_for(material.study), material.best
    if comparison is None or best is None:
        return None
    note = clips_note(material.study, comparison)
    rows = sorted(
        [*comparison.approaches, (f"study {material.study.name}", 100 * (best.running_accuracy or 0.0))],
        key=lambda pair: pair[1],
    )
    return Table(
        name="literature",
        caption=comparison.title if note is None else f"{comparison.title}; {note}",
        columns=("Approach", "Accuracy"),
        rows=[(name, Percent(percent / 100)) for name, percent in rows],
        marked=next(index for index, (name, _) in enumerate(rows) if name.startswith("study ")),
    )


def _importance(findings: Findings) -> Table:
    return Table(
        name="importance",
        caption=f"Importance of the parameters (PED-ANOVA over {findings.importance_trials} complete trials)",
        columns=("Parameter", "Share"),
        rows=[(title_of(name), Percent(share)) for name, share in findings.importance.items()],
    )


def _account(findings: Findings) -> Table:
    account = findings.account
    spent = sum(account.seconds.values())
    saved = sum(rule.seconds_saved for rule in account.rules)
    rows: list[tuple[Cell, ...]] = [
        ("run", account.run, Hours(spent)),
        ("reused from a trial with equal parameters", account.reused, Hours(account.seconds_saved_by_reuse)),
        ("saved by pruning (time estimated)", account.pruned, Hours(saved)),
        ("never run (failed or cancelled trials)", account.abandoned, None),
        ("not run yet", account.to_come, None),
        ("all", account.folds, None),
    ]
    return Table(
        name="account",
        caption="Folds and device time",
        columns=("Folds", "Number", "Device time"),
        rows=rows,
    )


def _rules(findings: Findings) -> Table:
    return Table(
        name="pruning",
        caption="What each pruning rule saved",
        columns=("Rule", "Trials ended", "Folds saved", "Device time saved (estimated)"),
        rows=[
            (rule.rule, rule.trials, rule.folds_saved, Hours(rule.seconds_saved))
            for rule in findings.account.rules
        ],
    )


def _provenance(material: Material) -> Table:
    study = material.study
    rows: list[tuple[Cell, ...]] = [
        ("study", study.name),
        ("seed of the study", str(study.spec.seed)),
        ("sampler", study.spec.sampler.kind),
        ("clip cache", f"{study.dataset}/{study.fingerprint}"),
        ("split hash", study.split_hash),
        ("compute plan", str(study.plan or study.spec.compute)),
    ]
    records = list(material.folds.values())
    for title, field in (
        ("device", "device"),
        ("torch", "torch"),
        ("CUDA", "cuda"),
        ("cuDNN", "cudnn"),
        ("threads", "threads"),
        ("memory format", "memory_format"),
        ("revision of the workers", "revision"),
    ):
        values = {_word(getattr(record.result.provenance, field)) for record in records}
        if values:
            rows.append((title, ", ".join(sorted(values))))
    if records:
        seeds = [record.task.seed for record in records]
        rows.append(
            ("seeds of the folds", ", ".join(map(str, seeds[:3])) + (", ..." if len(seeds) > 3 else ""))
        )
    return Table(
        name="provenance",
        caption="Seeds and provenance"
        + (
            f'; rows from "device" on are about the folds of trial {material.shown.number}'
            if material.shown and records
            else ""
        ),
        columns=("What", "Value"),
        rows=rows,
    )


def _word(value: object) -> str:
    """A parameter's value in the paper's format."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)
