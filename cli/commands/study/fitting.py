"""What `foldwise study create --cache NAME` says about a study that it fits to the cache, and asks about it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator

import typer
from rich.console import Console

from services.cache_presets import choose_preset
from services.contracts import DatasetView, StudySpec
from services.errors import InvalidInput
from services.folds import KFold, LeaveOneSubjectOut, protocol_words


def agree_on_study(
    build: Callable[[list[str]], StudySpec],
    dataset: DatasetView,
    named: Collection[str],
    *,
    is_local: bool,
    yes: bool,
    console: Console,
) -> StudySpec:
    """Describe the study, forecast its hours on this machine, and offer a smaller one if a CPU takes too long.

    Args:
        build: makes the study with further settings, each as KEY=VALUE.
        dataset: the clip cache.
        named: keys of the settings that the user chose, such as `trials`.
        is_local: whether the study will run on this machine.
        yes: take the smaller study without asking.
        console: where to print.

    Raises:
        InvalidInput: the user wants no smaller study, or cannot be asked.
    """
    spec = build([])

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    for line in _description(spec, dataset, is_chosen="protocol" not in {key.split(".")[0] for key in named}):
        say(line)
    if not is_local or not isinstance(spec.protocol, LeaveOneSubjectOut | KFold):
        say("for a forecast of its hours, run where its workers run: foldwise plan --cache NAME --calibrate")
        return spec
    # torch takes seconds to load.
    from cli.forecast.dataset_shape import described_shape
    from cli.forecast.hours_here import hours_here
    from cli.forecast.smaller import MAX_CPU_HOURS, make_smaller

    here = hours_here(spec, described_shape(dataset))
    hours = None if here is None else here.of(spec)
    if here is None or hours is None:
        say("no forecast of its hours on this GPU; measure it with: foldwise plan --cache NAME --calibrate")
        return spec
    say(f"forecast: {_duration(hours)} on {here.device}{here.how}")
    if not here.on_cpu or hours <= MAX_CPU_HOURS:
        return spec
    smaller = make_smaller(build, named, dataset.subjects, here)
    if not smaller.settings:
        say(f"this is more than {MAX_CPU_HOURS} hours, and you chose every setting that could make it smaller")
        _agree("create it anyway?", yes=yes, otherwise="lower trials, folds or training.width, or use a GPU")
        return spec
    options = " ".join(f"--set '{setting}'" for setting in smaller.settings)
    duration = "unknown" if smaller.hours is None else _duration(smaller.hours)
    say(f"this is more than {MAX_CPU_HOURS} hours; with smaller settings it takes {duration}:")
    say(f"    {options}")
    say("clips with fewer pixels would also help: foldwise preprocess ... --frame-size 48")
    _agree(
        "create it with the smaller settings?",
        yes=yes,
        otherwise=f"to create it as it is, add --preset {spec.protocol.kind}",
    )
    return smaller.spec


def _description(spec: StudySpec, dataset: DatasetView, *, is_chosen: bool) -> Iterator[str]:
    counts = ", ".join(f"{name} {clips}" for name, clips in dataset.class_counts.items())
    copies = {
        name: counted.flip + counted.rotation + counted.contrast
        for name in dataset.class_counts
        for counted in [spec.training.augmentation.counts_for(name)]
    }
    augmented = sum(clips * (1 + copies[name]) for name, clips in dataset.class_counts.items())
    yield (
        f"clip cache {dataset.dataset}/{dataset.fingerprint[:12]}: {dataset.clips} clips of "
        f"{len(dataset.class_counts)} classes ({counts}) by {dataset.subjects} subjects; {augmented} with "
        "augmented copies"
    )
    if isinstance(spec.protocol, LeaveOneSubjectOut | KFold):
        folds = spec.protocol.k if isinstance(spec.protocol, KFold) else dataset.subjects
        words = protocol_words(spec.protocol, folds)
    else:
        words = f"protocol {spec.protocol.kind}"
    why = f" ({choose_preset(dataset)[1]})" if is_chosen else ""
    yield f"study {spec.name}: {spec.trials} trials; {words}{why}"


def _agree(question: str, *, yes: bool, otherwise: str) -> None:
    """Ask, unless the answer is known."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput(
            f"no study was created, because nobody can be asked: {question} Add --yes to agree; {otherwise}",
            field="yes",
        )
    if not typer.confirm(question, err=True):
        raise InvalidInput(f"no study was created; {otherwise}", field="yes")


def _duration(hours: float) -> str:
    """Such as `about 3 minutes`, `about 7.5 hours` or `about 84 hours (3.5 days)`."""
    if hours < 1:
        minutes = max(1, round(60 * hours))
        return f"about {minutes} minute{'' if minutes == 1 else 's'}"
    return f"about {hours:.3g} hours" + (f" ({hours / 24:.2g} days)" if hours >= 48 else "")
