"""The trials x folds heat map in a compact form for scripts: a thousand trials have 118,000 folds."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from typing import Any

from coordinator.store.fold_map import RUNNING, MappedTrial
from services.contracts import PRUNING_RULES


def heat_map(
    trials: Sequence[MappedTrial], fold_names: Sequence[str], clips: Sequence[int], order: Sequence[int] | None
) -> dict[str, Any]:
    """The map as JSON.

    `cells` is base64 of trials x folds unsigned 16 bit numbers, little-endian: 0 pending, 1 running, 2 failed,
    3 + n done with n clips correct. `trials` has a row per trial: number, state, accuracy and, if pruned,
    the rule and the index of the fold after which it pruned. `marks` has the colour of each rule.

    Args:
        trials: trials by number.
        fold_names: name of each fold, by fold index.
        clips: number of test clips of each fold, by fold index.
        order: fold indices in the order in which trials run them; None if no order was learnt.
    """
    cells = b"".join(_little_endian(trial) for trial in trials)
    return {
        "folds": list(fold_names),
        "clips": list(clips),
        "order": None if order is None else list(order),
        "trials": [
            [
                trial.number,
                trial.state.value,
                None if trial.accuracy is None else round(trial.accuracy, 5),
                *((trial.pruned.rule, trial.pruned.fold) if trial.pruned else ()),
            ]
            for trial in trials
        ],
        "marks": rule_marks(),
        "cells": base64.b64encode(cells).decode("ascii"),
    }


def rule_marks() -> dict[str, str]:
    """The colour of each pruning rule in the map, as the style sheet names it, by the rule's name."""
    return {rule.model_fields["rule"].default: rule.mark for rule in PRUNING_RULES}


def running_cells(trials: Sequence[MappedTrial]) -> str:
    """The folds that workers run now, as `trial:fold` separated by spaces."""
    return " ".join(
        f"{trial.number}:{fold}"
        for trial in trials
        if not trial.state.over
        for fold, cell in enumerate(trial.cells)
        if cell == RUNNING
    )


def _little_endian(trial: MappedTrial) -> bytes:
    cells = trial.cells
    if sys.byteorder == "big":
        cells = cells[:]
        cells.byteswap()
    return cells.tobytes()
