"""`foldwise compare`: configurations on one dataset and split, pretrained or not (paper section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict

from cli.evaluation.paired_tests import PairedTests, paired_tests
from cli.evaluation.runs import Evaluated, evaluate, exactly
from cli.spec_files import read_file
from client.study_client import StudyClient
from report.selection import check_cross_validated
from report.table import Cell, Percent, Table
from services.contracts import StudySpec, StudyView
from services.errors import Conflict, InvalidInput, NotFound
from services.folds import AllClips, HeldOut
from services.model_catalogue import ID_DIGITS
from services.search_space import (
    PARAMETERS,
    Hyperparameters,
    ParameterValue,
    SearchSpace,
    check_value,
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that takes part, under the name that the table gives it."""

    name: str
    source: str
    """A study, whose best trial is meant, or a YAML file."""

    pretrained: str | None
    """Model of the catalogue that it starts from."""


class Side(BaseModel):
    """A configuration of a comparison, and what it gave."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    pretrained: str | None
    study: str
    trial: int
    parameters: dict[str, ParameterValue]
    correct: int
    clips: int
    folds: tuple[float, ...]
    """Accuracy in each."""

    mean: float
    """Of the folds, as the paper's tables have it; `correct` over `clips` is the pooled accuracy."""

    tests: PairedTests | None
    """Of the first configuration against this one; null for the first."""

    selected_here: bool
    """It is the best trial of a study on this very dataset."""


class ComparisonResult(BaseModel):
    """What `foldwise compare --json` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    fingerprint: str
    split_hash: str
    sides: tuple[Side, ...]


def read_candidate(text: str) -> Candidate:
    """A configuration from NAME=SOURCE or NAME=SOURCE@MODEL.

    Raises:
        InvalidInput: it is neither.
    """
    name, equals, rest = text.partition("=")
    source, _, model = rest.partition("@")
    if not (name and equals and source):
        raise InvalidInput(
            f"{text!r}: write NAME=STUDY or NAME=FILE.yaml, with @MODEL behind it to start from a model",
            field="configurations",
        )
    return Candidate(name=name, source=source, pretrained=model or None)


def compare(
    client: StudyClient,
    candidates: Sequence[Candidate],
    spec: StudySpec,
    *,
    watch: Callable[[StudyView], StudyView],
) -> ComparisonResult:
    """Run every configuration on the folds of `spec`, and test the first against each of the others.

    Those that start from the same model, or from none, are the trials of one study: `NAME`, or `NAME-` and
    digits of the model.

    Args:
        client: with the scope write.
        candidates: two or more; the first is the one that the others are compared with.
        spec: gives cache, protocol, training settings, seed and name. What it searches does not matter.
        watch: waits until a study is over, and returns it.

    Raises:
        InvalidInput: fewer than two, two of one name, a configuration that is none, or no cross-validation.
        NotFound: a study or file is not there, or the study has no complete trial.
        Conflict: the folds do not test the same clips, or a study's name is taken.
        FoldwiseError: a fold could not be run.
    """
    if len(candidates) < 2:
        raise InvalidInput("give two configurations or more to compare", field="configurations")
    if isinstance(spec.protocol, AllClips | HeldOut):
        raise InvalidInput(
            f"protocol is {spec.protocol.kind}, which has no folds to pair; give loso or kfold",
            field="protocol",
        )
    names = [candidate.name for candidate in candidates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidInput(f"two configurations are called {twice[0]}", field="configurations")
    configurations, selected_on = {}, {}
    for candidate in candidates:
        configurations[candidate.name], selected_on[candidate.name] = _configuration(client, candidate)
    _complete(configurations, spec)
    by_model: dict[str | None, list[str]] = {}
    for candidate in candidates:
        by_model.setdefault(candidate.pretrained, []).append(candidate.name)
    specs = [
        study_of([configurations[name] for name in members], spec, pretrained=model)
        for model, members in by_model.items()
    ]
    results = evaluate(client, specs, watch=watch)
    found: dict[str, Evaluated] = {}
    for members, of_study in zip(by_model.values(), results, strict=True):
        found.update(zip(members, of_study, strict=True))
    first = found[candidates[0].name]
    return ComparisonResult(
        dataset=first.study.dataset,
        fingerprint=first.study.fingerprint,
        split_hash=first.study.split_hash,
        sides=tuple(
            _side(candidate, found[candidate.name], selected_on[candidate.name], first)
            for candidate in candidates
        ),
    )


def study_of(
    configurations: Sequence[Mapping[str, ParameterValue]], spec: StudySpec, *, pretrained: str | None
) -> StudySpec:
    """A study that runs these configurations, each with the same parameters, and nothing else."""
    options: dict[str, list[ParameterValue]] = {}
    for configuration in configurations:
        for name, value in configuration.items():
            if value not in options.setdefault(name, []):
                options[name].append(value)
    training = (
        spec.training if pretrained is None else spec.training.model_copy(update={"pretrained": pretrained})
    )
    name = spec.name if pretrained is None else f"{spec.name}-{pretrained[-ID_DIGITS:]}"
    space = SearchSpace.model_validate(options)
    return exactly(spec, configurations, name=name, space=space, training=training)


def pair(first: Evaluated, second: Evaluated) -> PairedTests:
    """Test two configurations that ran the same folds.

    Raises:
        Conflict: their folds test other clips.
    """
    if first.study.split_hash != second.study.split_hash:
        raise Conflict(
            f"studies {first.study.name} and {second.study.name} test other clips in their folds "
            f"(split {first.study.split_hash[:12]} and {second.study.split_hash[:12]}); "
            "run both on one clip cache with one protocol",
            field="split_hash",
        )
    tested = fmean(fold.clips for fold in first.folds)
    share = tested / (first.study.clips - tested)
    return paired_tests(first.accuracies, second.accuracies, tested_share=share)


def comparison_table(result: ComparisonResult) -> Table:
    """A comparison in the shape of the paper's Tables 4 and 5, with the tests that it leaves out."""
    folds = len(result.sides[0].folds)
    # Leave-One-Subject-Out has more folds than a page has columns.
    shown = folds if folds <= 12 else 0
    rows: list[Sequence[Cell]] = []
    for side in result.sides:
        tests = side.tests
        rows.append(
            (
                side.name,
                *(Percent(share) for share in side.folds[:shown]),
                Percent(side.mean),
                Percent(side.correct / side.clips),
                *((None,) * 4 if tests is None else _p_values(tests)),
            )
        )
    return Table(
        name="comparison",
        caption=f"{result.sides[0].name} against each of the others on {result.dataset}: accuracy in each "
        "fold, and p values of paired tests",
        columns=(
            "",
            *(str(fold + 1) for fold in range(shown)),
            *("Average", "Pooled", "t, one-sided", "t, two-sided", "t, corrected", "Wilcoxon"),
        ),
        rows=rows,
    )


def _p_values(tests: PairedTests) -> tuple[float | None, ...]:
    return tests.one_sided, tests.two_sided, tests.corrected, tests.wilcoxon


def folds_table(result: ComparisonResult) -> Table:
    """Each fold a row, for programs."""
    return Table(
        name="comparison-folds",
        caption=f"Accuracy in each fold on {result.dataset}",
        columns=("Fold", *(side.name for side in result.sides)),
        rows=[
            (fold + 1, *(Percent(side.folds[fold]) for side in result.sides))
            for fold in range(len(result.sides[0].folds))
        ],
    )


def comparison_warnings(result: ComparisonResult) -> list[str]:
    """What must be said beside the numbers."""
    warnings = [
        "Each fold counts at its best epoch, chosen on the clips it is measured on; that favours all alike, "
        "and makes every accuracy too high."
    ]
    chosen = [side.name for side in result.sides if side.selected_here]
    if chosen:
        warnings.append(
            f"{', '.join(chosen)}: selected by a search on {result.dataset} itself, so its lead over the "
            "others is in part the luck of that selection."
        )
    warnings.append(
        "Quote the corrected t: the folds' training sets overlap, and the plain tests take them as independent."
    )
    return warnings


def _configuration(client: StudyClient, candidate: Candidate) -> tuple[dict[str, ParameterValue], str | None]:
    """The parameters of a candidate, and the dataset that they were selected on, if they were."""
    path = Path(candidate.source)
    if path.suffix in {".yaml", ".yml", ".json"}:
        return _checked(read_file(path, candidate.name), candidate), None
    study = client.get(candidate.source)
    check_cross_validated(study)
    if study.best is None or study.best.value is None:
        raise NotFound(
            f"{candidate.name}: study {candidate.source} has no complete trial to take the best of",
            field="configurations",
        )
    return dict(study.best.parameters), study.dataset


def _checked(content: Any, candidate: Candidate) -> dict[str, ParameterValue]:
    if not isinstance(content, dict):
        raise InvalidInput(f"{candidate.source} holds no mapping of parameters", field=candidate.name)
    for name, value in content.items():
        if name not in PARAMETERS:
            raise InvalidInput(
                f"{candidate.source}: unknown parameter {name!r}; known are {', '.join(PARAMETERS)}",
                field=candidate.name,
            )
        try:
            check_value(name, value)
        except ValueError as error:
            raise InvalidInput(f"{candidate.source}: {error}", field=name) from error
    return content


def _complete(configurations: dict[str, dict[str, ParameterValue]], spec: StudySpec) -> None:
    """Give all the same parameters: one left out has the value of Table 2, or of the study's training."""
    named = set(Hyperparameters.model_fields).union(*configurations.values())
    usual = Hyperparameters()
    for name, configuration in configurations.items():
        configurations[name] = {
            parameter: configuration.get(
                parameter,
                getattr(usual if parameter in Hyperparameters.model_fields else spec.training, parameter),
            )
            for parameter in PARAMETERS
            if parameter in named
        }


def _side(candidate: Candidate, found: Evaluated, selected_on: str | None, first: Evaluated) -> Side:
    return Side(
        name=candidate.name,
        source=candidate.source,
        pretrained=candidate.pretrained,
        study=found.study.name,
        trial=found.trial.number,
        parameters=found.trial.parameters,
        correct=found.trial.correct,
        clips=found.trial.clips,
        folds=tuple(found.accuracies),
        mean=fmean(found.accuracies),
        tests=None if found is first else pair(first, found),
        selected_here=selected_on == found.study.dataset,
    )
