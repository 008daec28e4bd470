"""Seeds never change silently; presets hold the settings of the paper."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts import Augmentation, BoundRule, MedianRule, StudySpec, TpeSampler
from services.errors import InvalidInput, NotFound
from services.folds import KFold, LeaveOneSubjectOut
from services.presets import (
    CACHE_PRESETS,
    CKPLUS_AUGMENTATION,
    OULU_AUGMENTATION,
    PRESETS,
    clip_preset,
    get_preset,
)
from services.pruning.rule import warmup
from services.search_space import Hyperparameters, Range, paper_space
from services.seeds import augmentation_seed, canonical_json, derive_seed, fold_seed, sha256_of

CKPLUS_COUNTS = {
    "anger": 45,
    "contempt": 18,
    "disgust": 59,
    "fear": 25,
    "happy": 69,
    "sadness": 28,
    "surprise": 83,
}
PAPER_PRESETS = ["ckplus-loso", "ckplus-10fold", "oulu-10fold"]

# --- seeds --------------------------------------------------------------------------------------------------


def test_canonical_json_is_one_text_per_value() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"é": "x y"}}
    assert canonical_json(value) == '{"a":{"\\u00e9":"x y"},"b":[1,2.5,null,true]}'


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, [1, {"x": math.nan}]])
def test_canonical_json_refuses_what_json_cannot_say(bad: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(bad)


# These values are stored with results and promised for replay: a change of one is a change of format.


def test_the_hash_of_a_value_is_pinned() -> None:
    assert (
        sha256_of({"b": 1, "a": [0.2511, "ReLU", True]})
        == "6f956d2bef57f6c3579c5da6c6ee996898ba22ba4ff0a7e8899a1d383c24966a"
    )


def test_the_seed_of_a_fold_is_pinned() -> None:
    seed = fold_seed(study_seed=7, parameters=Hyperparameters().model_dump(), fold=3, fingerprint="f" * 64)
    assert seed == 4261107891078940705


def test_the_seed_of_an_augmented_clip_is_pinned() -> None:
    assert augmentation_seed(study_seed=7, clip_id="S005_001") == 6782380686287629390


def test_derived_seeds_are_pinned() -> None:
    assert derive_seed("sampler", 0, 0) == 8535555821896032625
    assert derive_seed() == 2858069222894195974


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)),
    )
)
@settings(max_examples=50, deadline=None)
def test_the_order_of_parameters_does_not_matter(parameters: dict[str, object]) -> None:
    backwards = dict(reversed(parameters.items()))
    assert canonical_json(backwards) == canonical_json(parameters)
    seeds = {fold_seed(study_seed=1, parameters=p, fold=0, fingerprint="f") for p in (parameters, backwards)}
    assert len(seeds) == 1


def test_everything_a_fold_hangs_on_changes_its_seed() -> None:
    def seed(study_seed: int = 1, dropout: float = 0.5, fold: int = 0, fingerprint: str = "f") -> int:
        parameters = {"dropout": dropout}
        return fold_seed(study_seed=study_seed, parameters=parameters, fold=fold, fingerprint=fingerprint)

    seeds = {seed(), seed(study_seed=2), seed(dropout=0.5001), seed(fold=1), seed(fingerprint="e")}
    assert len(seeds) == 5


def test_an_augmentation_seed_hangs_on_study_and_clip_alone() -> None:
    seeds = {
        augmentation_seed(study_seed=study, clip_id=clip)
        for study in (0, 1)
        for clip in ("S005_001", "S005_002")
    }
    assert len(seeds) == 4


@given(st.lists(st.integers() | st.text(max_size=3), max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_seed_fits_a_signed_64_bit_number_and_knows_the_order_of_its_parts(parts: list[int | str]) -> None:
    assert 0 <= derive_seed(*parts) < 2**63
    if parts != parts[::-1]:
        assert derive_seed(*parts) != derive_seed(*reversed(parts))
    assert derive_seed(*parts) != derive_seed(*parts, "")


# --- presets ------------------------------------------------------------------------------------------------


def augmented(augmentation: Augmentation, counts: dict[str, int]) -> dict[str, int]:
    """Clips of each class after augmentation."""
    grown = {}
    for name, clips in counts.items():
        kinds = augmentation.counts_for(name)
        grown[name] = clips * (1 + kinds.flip + kinds.rotation + kinds.contrast)
    return grown


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_a_valid_study_that_survives_json(name: str) -> None:
    preset = get_preset(name)
    assert preset.name == name
    assert StudySpec.model_validate_json(preset.model_dump_json()) == preset


def test_an_unknown_preset_is_told_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"no preset 'ckplus'; there are: .*ckplus-loso.*oulu-10fold") as refused:
        get_preset("ckplus")
    assert refused.value.field == "preset"


@pytest.mark.parametrize("name", PAPER_PRESETS)
def test_the_settings_of_the_paper(name: str) -> None:
    preset = get_preset(name)
    assert preset.trials == 800
    assert preset.space == paper_space()
    training = preset.training
    assert (training.batch_size, training.learning_rate, training.epochs) == (30, 1e-4, 16)
    assert (training.frames, training.frame_size, training.width) == (10, 112, 64)
    assert training.bn_momentum == 0.1
    augmentation = training.augmentation
    assert augmentation.rotation_degrees == 30.0
    assert (augmentation.contrast_low, augmentation.contrast_high) == (0.22, 2.2)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"demo"}))
def test_the_papers_tpe_fits_each_parameter_for_itself(name: str) -> None:
    sampler = get_preset(name).sampler
    assert isinstance(sampler, TpeSampler)
    assert not sampler.multivariate


@pytest.mark.parametrize(
    ("name", "protocol"), [("ckplus-best", LeaveOneSubjectOut()), ("ckplus-best-10fold", KFold(k=10))]
)
def test_table_2_alone_runs_every_epoch_of_every_fold(name: str, protocol: LeaveOneSubjectOut | KFold) -> None:
    preset = get_preset(name)
    assert (preset.cache, preset.protocol, preset.trials, preset.pruning) == ("ckplus", protocol, 1, ())
    assert preset.enqueue == (Hyperparameters().model_dump(),)
    assert not preset.economies.stop_when_perfect
    assert preset.training == get_preset("ckplus-loso").training


@pytest.mark.parametrize("name", CACHE_PRESETS)
def test_a_preset_for_any_clips_is_nothing_without_them(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"the preset {name} fits any clips"):
        clip_preset(name)


def test_protocols_and_caches_of_the_paper() -> None:
    assert get_preset("ckplus-loso").protocol == LeaveOneSubjectOut()
    assert get_preset("ckplus-10fold").protocol == get_preset("oulu-10fold").protocol == KFold(k=10)
    assert [get_preset(name).cache for name in PAPER_PRESETS] == ["ckplus", "ckplus", "oulu-casia"]


def test_the_loso_search_prunes_what_cannot_reach_96_5_percent() -> None:
    assert get_preset("ckplus-loso").pruning == (BoundRule(threshold=0.965),)
    assert get_preset("ckplus-loso").fold_order == "hardest_first"


@pytest.mark.parametrize("name", ["ckplus-10fold", "oulu-10fold"])
def test_the_ten_fold_searches_prune_by_the_median_after_three_folds(name: str) -> None:
    preset = get_preset(name)
    (rule,) = preset.pruning
    assert isinstance(rule, MedianRule)
    assert (rule.startup_trials, rule.warmup_folds, warmup(None, preset.protocol)) == (5, None, 3)


@pytest.mark.parametrize(
    ("emotion", "flip", "rotation", "contrast"),
    [
        ("contempt", 1, 7, 4),
        ("fear", 1, 4, 4),
        ("sadness", 1, 4, 3),
        ("anger", 1, 2, 1),
        ("happy", 1, 1, 1),
        ("disgust", 1, 1, 1),
        ("surprise", 1, 1, 0),
    ],
)
def test_the_augmentation_of_section_4_1(emotion: str, flip: int, rotation: int, contrast: int) -> None:
    kinds = CKPLUS_AUGMENTATION.counts_for(emotion)
    assert (kinds.flip, kinds.rotation, kinds.contrast) == (flip, rotation, contrast)


def test_ckplus_grows_to_1722_quasi_balanced_clips() -> None:
    assert sum(CKPLUS_COUNTS.values()) == 327
    grown = augmented(CKPLUS_AUGMENTATION, CKPLUS_COUNTS)
    assert grown == {
        "anger": 225,
        "contempt": 234,
        "disgust": 236,
        "fear": 250,
        "happy": 276,
        "sadness": 252,
        "surprise": 249,
    }
    assert sum(grown.values()) == 1722


def test_oulu_grows_to_4320_clips() -> None:
    emotions = ("anger", "disgust", "fear", "happy", "sadness", "surprise")
    assert sum(augmented(OULU_AUGMENTATION, dict.fromkeys(emotions, 80)).values()) == 4320


def test_the_demo_searches_a_part_of_table_1() -> None:
    table = dict(paper_space().items())
    for name, domain in get_preset("demo").space.items():
        whole = table[name]
        if isinstance(domain, Range):
            assert isinstance(whole, Range)
            assert whole.low <= domain.low < domain.high <= whole.high
        else:
            assert not isinstance(whole, Range)
            assert set(domain) <= set(whole)


def test_the_demo_depends_on_neither_cores_nor_workers() -> None:
    preset = get_preset("demo")
    assert preset.compute.threads == 1
    assert preset.feedback_delay is not None
    # Three workers can have a trial each, and the sampler models some trials.
    assert preset.feedback_delay >= 2
    assert isinstance(preset.sampler, TpeSampler)
    assert preset.sampler.startup_trials + preset.feedback_delay <= preset.trials // 2


def test_presets_augment_as_their_section_says() -> None:
    assert get_preset("ckplus-loso").training.augmentation == CKPLUS_AUGMENTATION
    assert get_preset("ckplus-10fold").training.augmentation == CKPLUS_AUGMENTATION
    assert get_preset("oulu-10fold").training.augmentation == OULU_AUGMENTATION
