"""What a trial knows of the others, where its study has a feedback delay.

With a delay of d, trial n is suggested and judged by the trials with numbers below n - d, all of which have
ended before it is suggested. The sampler knows only the parameters of the d trials before n. What is chosen and
pruned is therefore a function of numbers: it does not depend on which worker reports first.
"""

from __future__ import annotations

from services.contracts import StudySpec


def known_below(spec: StudySpec, number: int) -> int | None:
    """The lowest number whose trial is not known to trial `number`; None without a feedback delay.

    Without one, a trial knows what has ended at that moment.
    """
    return None if spec.feedback_delay is None else max(0, number - spec.feedback_delay)
