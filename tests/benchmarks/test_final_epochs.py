"""A final model trains for as many epochs as the folds; the median of their best epochs is too few."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from benchmarks.final_epochs import EMOTIONS, final_model, small_folds_cache, start_process
from services.contracts import ANY_CLASS, Augmentation, AugmentationCounts, TrainingSettings
from services.final_epochs import final_epochs

SUBJECTS, EPOCHS = 16, 16


@pytest.mark.long
@pytest.mark.timeout(900)
def test_folds_of_three_clips_are_perfect_long_before_the_network_is(tmp_path: Path) -> None:
    settings = TrainingSettings(
        width=6,
        frame_size=32,
        batch_size=8,
        epochs=EPOCHS,
        learning_rate=1e-3,
        bn_momentum=0.3,
        augmentation=Augmentation(counts={ANY_CLASS: AugmentationCounts(flip=1)}),
    )
    cache = small_folds_cache(tmp_path, SUBJECTS, settings.frame_size, 0.0, EMOTIONS[3])
    with ProcessPoolExecutor(2, get_context("spawn"), start_process) as pool:
        found = final_model(pool, cache, settings, SUBJECTS, seed=0)
    assert found["per_fold_best"] == 1.0
    assert found["median_epochs"] < EPOCHS
    assert found["at_median"] < found["at_last"]
    # What a final model trains for now, so its folds have at least the accuracy of the last epoch.
    assert final_epochs("best_per_fold", [int(found["median_epochs"])], EPOCHS) == EPOCHS
