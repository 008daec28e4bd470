"""Settings that make a study short enough for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from cli.forecast.hours_here import HoursHere
from services.contracts import StudySpec
from services.folds import KFold, LeaveOneSubjectOut

MAX_CPU_HOURS = 24
"""Hours on a CPU above which a study should be smaller."""

FEW_TRIALS = (100, 50, 20)
FEW_FOLDS = 5
WIDTHS = (32, 16, 8)


@dataclass(frozen=True, kw_only=True)
class SmallerStudy:
    """A study with other settings, and what it takes."""

    settings: tuple[str, ...]
    """The other settings, each as KEY=VALUE; empty if nothing is left to change."""

    spec: StudySpec
    hours: float | None


def make_smaller(
    build: Callable[[list[str]], StudySpec], named: Collection[str], subjects: int, here: HoursHere
) -> SmallerStudy:
    """Lower trials, folds and the network's width, until the study takes at most `MAX_CPU_HOURS`.

    Args:
        build: makes the study with further settings, each as KEY=VALUE.
        named: keys of the settings that the user chose and that stay, such as `trials`.
        subjects: number of subjects of the clips.
        here: forecasts the hours.
    """
    chosen: dict[str, str] = {}
    spec = build([])
    hours = here.of(spec)
    for change in _changes(spec, named, subjects):
        if hours is not None and hours <= MAX_CPU_HOURS:
            break
        chosen |= change
        spec = build([f"{key}={value}" for key, value in chosen.items()])
        hours = here.of(spec)
    settings = tuple(f"{key}={value}" for key, value in chosen.items())
    return SmallerStudy(settings=settings, spec=spec, hours=hours)


def _changes(spec: StudySpec, named: Collection[str], subjects: int) -> Iterator[dict[str, str]]:
    """Settings in the order in which they are changed; later ones replace earlier ones."""

    def is_free(key: str) -> bool:
        return key.rpartition(".")[2] not in spec.space.root and not any(
            f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in named
        )

    trials = [number for number in FEW_TRIALS if number < spec.trials and is_free("trials")]
    folds = spec.protocol.k if isinstance(spec.protocol, KFold) else subjects
    if trials:
        yield {"trials": str(trials[0])}
    if isinstance(spec.protocol, KFold | LeaveOneSubjectOut) and folds > FEW_FOLDS and is_free("protocol"):
        yield {"protocol": f"{{kind: kfold, k: {FEW_FOLDS}}}"}
    for width in WIDTHS:
        if width < spec.training.width and is_free("training.width"):
            change = {"training.width": str(width)}
            if is_free("training.learning_rate"):
                # Adam's steps are of one size; in a narrow network each weight must move further.
                rate = spec.training.learning_rate * spec.training.width / width
                change["training.learning_rate"] = f"{rate:g}"
            yield change
    for number in trials[1:]:
        yield {"trials": str(number)}
