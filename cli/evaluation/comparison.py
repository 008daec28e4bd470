"""`foldwise compare`: configurations on the same folds, pretrained or not (paper section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict

from cli.evaluation.paired_tests import PairedTests, paired_tests
from cli.evaluation.readings import ReadingOfRuns, given_away, number_of_clips, readings_of_runs, readings_table
from cli.evaluation.runs import CompletedTrial, run_studies, spec_of_configurations
from cli.spec_files import read_file
from client.study_client import StudyClient
from report.selection import check_cross_validated
from report.table import Cell, Percent, Table
from services.contracts import StudySpec, StudyView
from services.contracts.base import EpochChoice
from services.errors import Conflict, InvalidInput, NotFound
from services.folds import AllClips, HeldOut, Holdout
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
    """A configuration to compare, with its name in the table."""

    name: str
    source: str
    """Name of a study, whose best trial is used, or a YAML or JSON file."""

    pretrained: str | None
    """Id of the model that its training starts from, or a beginning of it that no other id has, or None."""


class ComparedConfiguration(BaseModel):
    """A configuration of a comparison, with its results."""

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
    """Accuracy in each fold."""

    mean: float
    """Mean of the fold accuracies, as in the paper's tables; `correct` / `clips` is the pooled accuracy."""

    readings: tuple[ReadingOfRuns, ...]
    """Pooled accuracy under each reading of the best epoch."""

    tests: PairedTests | None
    """Tests of the first configuration against this one; null for the first."""

    selected_here: bool
    """Whether a study on this dataset selected it as its best trial."""


class ComparisonResult(BaseModel):
    """What `foldwise compare --json` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    fingerprint: str
    split_hash: str
    epoch_choice: EpochChoice
    subjects: int | None
    sides: tuple[ComparedConfiguration, ...]


def read_candidate(text: str) -> Candidate:
    """Read a configuration written as NAME=SOURCE or NAME=SOURCE@MODEL.

    Raises:
        InvalidInput: the text has another form.
    """
    name, equals, rest = text.partition("=")
    source, _, model = rest.partition("@")
    if not (name and equals and source):
        raise InvalidInput(
            f"{text!r}: write NAME=STUDY or NAME=FILE.yaml, and append @MODEL to start from a model",
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

    Configurations that start from the same model are trials of one study, `NAME-` and digits of the model;
    those that start from no model are trials of the study `NAME`.

    Args:
        client: a client with the scope write.
        candidates: two configurations or more; the first one is tested against each of the others.
        spec: gives cache, protocol, training settings, seed and name; its space is ignored.
        watch: a function that waits until a study is over, and returns it.

    Raises:
        InvalidInput: fewer than two configurations, a name given twice, an invalid configuration, or a protocol
            that is not a cross-validation.
        NotFound: a study, file or model does not exist, or the study has no complete trial.
        Conflict: the folds do not test the same clips, or a study of the same name exists and differs.
        FoldwiseError: a study or a trial has not completed.
    """
    if len(candidates) < 2:
        raise InvalidInput(
            "a comparison needs more than one configuration; give two configurations or more",
            field="configurations",
        )
    if isinstance(spec.protocol, AllClips | HeldOut | Holdout):
        raise InvalidInput(
            f"protocol is {spec.protocol.kind}, which has no folds to pair; use loso, kfold or given_folds",
            field="protocol",
        )
    names = [candidate.name for candidate in candidates]
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise InvalidInput(f"two configurations are called {duplicates[0]}; rename one", field="configurations")
    candidates = [_with_whole_id(client, candidate) for candidate in candidates]
    configurations, selected_on = {}, {}
    for candidate in candidates:
        configurations[candidate.name], selected_on[candidate.name] = _configuration(client, candidate)
    _fill_defaults(configurations, spec)
    by_model: dict[str | None, list[str]] = {}
    for candidate in candidates:
        by_model.setdefault(candidate.pretrained, []).append(candidate.name)
    specs = [
        one_model_spec([configurations[name] for name in members], spec, pretrained=model)
        for model, members in by_model.items()
    ]
    completed: dict[str, CompletedTrial] = {}
    for members, trials in zip(by_model.values(), run_studies(client, specs, watch=watch), strict=True):
        completed.update(zip(members, trials, strict=True))
    first = completed[candidates[0].name]
    return ComparisonResult(
        dataset=first.study.dataset,
        fingerprint=first.study.fingerprint,
        split_hash=first.study.split_hash,
        epoch_choice=first.study.spec.counted_epoch,
        subjects=first.readings.subjects,
        sides=tuple(
            _compared(candidate, completed[candidate.name], selected_on[candidate.name], first)
            for candidate in candidates
        ),
    )


def one_model_spec(
    configurations: Sequence[Mapping[str, ParameterValue]], spec: StudySpec, *, pretrained: str | None
) -> StudySpec:
    """Build a study that runs configurations which start from the same model, and nothing else.

    Args:
        configurations: values of the same parameters in each.
        spec: the spec to start from.
        pretrained: id of the model; None keeps the start that `spec.training` gives.
    """
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
    return spec_of_configurations(spec, configurations, name=name, space=space, training=training)


def paired_tests_of(first: CompletedTrial, second: CompletedTrial) -> PairedTests:
    """Test two configurations that ran the same folds.

    Raises:
        Conflict: their folds test different clips.
    """
    if first.study.split_hash != second.study.split_hash:
        raise Conflict(
            f"the folds of studies {first.study.name} and {second.study.name} test different clips "
            f"(split {first.study.split_hash[:12]} and {second.study.split_hash[:12]}); "
            "run both on one clip cache with one protocol",
            field="split_hash",
        )
    tested = fmean(fold.clips for fold in first.folds)
    share = tested / (first.study.clips - tested)
    return paired_tests(first.accuracies, second.accuracies, tested_share=share)


def comparison_table(result: ComparisonResult) -> Table:
    """A comparison in the form of the paper's Tables 4 and 5, with further tests."""
    folds = len(result.sides[0].folds)
    # The many folds of Leave-One-Subject-Out would not fit on a page.
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


def compared_readings_table(result: ComparisonResult) -> Table:
    """A row for each reading of the best epoch of each configuration."""
    return readings_table(
        "readings", ["Pooled"], {side.name: side.readings for side in result.sides}, result.epoch_choice
    )


def folds_table(result: ComparisonResult) -> Table:
    """The accuracies with one row per fold, for programs."""
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
    """Sentences that a reader needs in order to interpret the numbers."""
    warnings = [f"{number_of_clips(result.sides[0].clips, result.subjects)}, in the same folds for all."]
    if result.epoch_choice == "best_per_fold":
        warnings.append(
            "Each fold counts at its best epoch, which is selected on the fold's own test clips. This makes "
            "every accuracy too high, for all configurations alike."
        )
    elif result.epoch_choice == "best_common":
        warnings.append(
            "All folds count at the epoch that is best on their test clips together. This makes every accuracy "
            "a little too high, for all configurations alike."
        )
    for side in result.sides:
        if (gained := given_away(side.readings, result.epoch_choice)) is not None:
            warnings.append(f"For {side.name}, {gained}")
    selected = [side.name for side in result.sides if side.selected_here]
    if selected:
        warnings.append(
            f"{', '.join(selected)}: selected by a search on {result.dataset} itself; a lead over the others "
            "is partly luck of that selection."
        )
    warnings.append(
        "Quote the corrected t-test: the training sets of the folds overlap, and the plain tests treat them as "
        "independent."
    )
    return warnings


def _with_whole_id(client: StudyClient, candidate: Candidate) -> Candidate:
    """The candidate with the whole id of the model that it names."""
    wanted = candidate.pretrained
    if wanted is None:
        return candidate
    known = [card.id for card in client.models()]
    matching = [wanted] if wanted in known else [name for name in known if name.startswith(wanted)]
    if len(matching) != 1:
        raise NotFound(
            f"{candidate.name}: {len(matching)} models have the id {wanted!r} or begin with it; there are: "
            f"{', '.join(known) or 'none'}",
            field="configurations",
        )
    return replace(candidate, pretrained=matching[0])


def _configuration(client: StudyClient, candidate: Candidate) -> tuple[dict[str, ParameterValue], str | None]:
    """The parameters of a candidate, and the dataset on which a study selected them (None for a file)."""
    path = Path(candidate.source)
    if path.suffix in {".yaml", ".yml", ".json"}:
        return _check_parameters(read_file(path, candidate.name), candidate), None
    study = client.get(candidate.source)
    check_cross_validated(study)
    if study.best is None or study.best.value is None:
        raise NotFound(
            f"{candidate.name}: study {candidate.source} has no complete trial to compare",
            field="configurations",
        )
    return dict(study.best.parameters), study.dataset


def _check_parameters(content: Any, candidate: Candidate) -> dict[str, ParameterValue]:
    if not isinstance(content, dict):
        raise InvalidInput(
            f"{candidate.source} has no mapping of parameters; write NAME: VALUE", field=candidate.name
        )
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


def _fill_defaults(configurations: dict[str, dict[str, ParameterValue]], spec: StudySpec) -> None:
    """Give all configurations the same parameters; defaults come from Table 2, or from `spec.training`."""
    named = set(Hyperparameters.model_fields).union(*configurations.values())
    defaults = Hyperparameters()
    for name, configuration in configurations.items():
        configurations[name] = {
            parameter: configuration.get(
                parameter,
                getattr(defaults if parameter in Hyperparameters.model_fields else spec.training, parameter),
            )
            for parameter in PARAMETERS
            if parameter in named
        }


def _compared(
    candidate: Candidate, completed: CompletedTrial, selected_on: str | None, first: CompletedTrial
) -> ComparedConfiguration:
    return ComparedConfiguration(
        name=candidate.name,
        source=candidate.source,
        pretrained=candidate.pretrained,
        study=completed.study.name,
        trial=completed.trial.number,
        parameters=completed.trial.parameters,
        correct=completed.trial.correct,
        clips=completed.trial.clips,
        folds=tuple(completed.accuracies),
        mean=fmean(completed.accuracies),
        readings=readings_of_runs([completed.readings]),
        tests=None if completed is first else paired_tests_of(first, completed),
        selected_here=selected_on == completed.study.dataset,
    )
