"""The paper's search space, and what a space of one's own may hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.contracts import StudySpec, TrainingSettings
from services.errors import InvalidInput, NotFound
from services.search_space import (
    Hyperparameters,
    Range,
    SearchSpace,
    load_space,
    paper_space,
    title_of,
)

TABLE_1: list[tuple[str, list[Any] | Range]] = [
    ("Optimization", ["Lookahead+Adam", "Adam"]),
    ("CLAHE", [True, False]),
    ("Normalization", [True, False]),
    ("Activation", ["ReLU", "ELU", "pReLU", "leaky ReLU", "Mish"]),
    ("Loss weights", [True, False]),
    ("Temporal size", [1, 3, 5, 7, 9]),
    ("Initializer", ["Xavier uniform", "Xavier normal"]),
    ("Pooling layer", ["AvgPooling", "MaxPooling"]),
    ("Second ConvLayer", [True, False]),
    ("Dropout", Range(low=0.0, high=1.0)),
]

TABLE_2 = {
    "optimization": "Adam",
    "clahe": True,
    "normalization": False,
    "activation": "ReLU",
    "loss_weights": False,
    "temporal_size": 3,
    "initializer": "Xavier uniform",
    "pooling_layer": "AvgPooling",
    "second_conv_layer": False,
    "dropout": 0.2511,
}


def space(**domains: Any) -> SearchSpace:
    return SearchSpace.model_validate(domains)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# --- the paper's --------------------------------------------------------------------------------------------


def test_the_paper_space_is_table_1() -> None:
    ours = [
        (title_of(name), domain if isinstance(domain, Range) else list(domain))
        for name, domain in paper_space().items()
    ]
    assert ours == TABLE_1
    assert len(paper_space()) == 10


def test_true_and_false_are_booleans_and_sizes_whole_numbers() -> None:
    types = {
        name: {type(option) for option in domain}
        for name, domain in paper_space().items()
        if not isinstance(domain, Range)
    }
    assert types["clahe"] == types["second_conv_layer"] == {bool}
    assert types["temporal_size"] == {int}


def test_the_default_hyperparameters_are_table_2() -> None:
    assert Hyperparameters().model_dump() == TABLE_2
    assert list(TABLE_2) == [name for name, _ in paper_space().items()]


def test_every_option_of_table_1_is_a_configuration() -> None:
    for name, domain in paper_space().items():
        for option in (domain.low, domain.high) if isinstance(domain, Range) else domain:
            assert getattr(Hyperparameters(**{name: option}), name) == option


def test_a_study_searches_the_paper_space_unless_told_otherwise() -> None:
    assert StudySpec(name="s", cache="ckplus").space == paper_space()


# --- files --------------------------------------------------------------------------------------------------


def test_json_and_yaml_files_of_the_same_space_are_equal(tmp_path: Path) -> None:
    in_yaml = """
    # a comment
    activation: [ReLU, leaky ReLU]
    clahe: [true, false]
    temporal_size: [1, 3]
    dropout: {low: 0.0, high: 0.5}
    learning_rate: {low: 0.00001, high: 0.001, log: true}
    width: {low: 8, high: 64}
    """
    in_json = json.dumps(
        {
            "activation": ["ReLU", "leaky ReLU"],
            "clahe": [True, False],
            "temporal_size": [1, 3],
            "dropout": {"low": 0.0, "high": 0.5},
            "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
            "width": {"low": 8, "high": 64},
        }
    )
    loaded = load_space(write(tmp_path / "space.yaml", in_yaml))
    assert loaded == load_space(write(tmp_path / "space.json", in_json))
    assert dict(loaded.items())["learning_rate"] == Range(low=1e-5, high=1e-3, log=True)
    assert dict(loaded.items())["activation"] == ("ReLU", "leaky ReLU")


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_the_paper_space_survives_a_file(tmp_path: Path, suffix: str) -> None:
    plain = paper_space().model_dump(mode="json")
    text = json.dumps(plain) if suffix == "json" else yaml.safe_dump(plain, sort_keys=False)
    loaded = load_space(write(tmp_path / f"space.{suffix}", text))
    assert list(loaded.items()) == list(paper_space().items())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere\.yaml: No such file"):
        load_space(tmp_path / "nowhere.yaml")


def test_a_folder_is_no_space(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot read the space file"):
        load_space(tmp_path)


def test_a_file_that_is_not_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"broken\.yaml is neither YAML nor JSON at line 2"):
        load_space(write(tmp_path / "broken.yaml", "clahe: [true]\nactivation: ]\n"))


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InvalidInput, match=r"space\.yaml is not text in UTF-8"):
        load_space(path)


@pytest.mark.parametrize("text", ["", "[]", "ReLU", "{}", "null"])
def test_a_file_without_a_mapping_is_no_space(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"space\.yaml: (Input should be|a space needs)") as refused:
        load_space(write(tmp_path / "space.yaml", text))
    assert refused.value.field == "space"


def test_a_bad_space_in_a_file_names_file_parameter_and_value(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"space\.yaml: unknown option 'relu' of activation; known are ReLU"):
        load_space(write(tmp_path / "space.yaml", "activation: [relu]"))


# --- bad spaces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "domain", "message"),
    [
        ("activations", ["ReLU"], "unknown parameter 'activations'; known are optimization, clahe"),
        ("activation", ["ReLU", "relu"], "unknown option 'relu' of activation; known are ReLU, ELU"),
        ("temporal_size", [3, 4], "unknown option 4 of temporal_size; known are 1, 3, 5, 7, 9"),
        ("temporal_size", [True], "unknown option True of temporal_size"),
        ("temporal_size", [3.0], "unknown option 3.0 of temporal_size"),
        ("temporal_size", ["3"], "unknown option '3' of temporal_size"),
        ("clahe", [1], "unknown option 1 of clahe"),
        ("clahe", ["true"], "unknown option 'true' of clahe"),
        ("clahe", [None], "unknown option None of clahe"),
        ("width", [True], "unknown option True of width"),
        ("width", [0], "unknown option 0 of width"),
        ("width", [8.5], "unknown option 8.5 of width"),
        ("dropout", [1.5], "unknown option 1.5 of dropout"),
        ("dropout", [math.nan], "unknown option nan of dropout"),
        ("dropout", ["0.5"], "unknown option '0.5' of dropout"),
        ("dropout", [[0.5]], r"unknown option [0.5] of dropout"),
        ("activation", {"low": 0, "high": 1}, "activation takes a list of options, not a range"),
        ("temporal_size", {"low": 1, "high": 9}, "temporal_size takes a list of options, not a range"),
        ("clahe", {"low": 0, "high": 1}, "clahe takes a list of options, not a range"),
        ("dropout", {"low": 0.5, "high": 0.5}, "low (0.5) must be below high (0.5)"),
        ("dropout", {"low": 0.9, "high": 0.1}, "low (0.9) must be below high (0.1)"),
        ("dropout", {"low": math.nan, "high": 0.1}, "low (nan) must be below high (0.1)"),
        ("dropout", {"low": 0.0, "high": 0.5, "log": True}, "low (0.0) must be above 0 if log is true"),
        ("dropout", {"low": -0.1, "high": 0.5}, "unknown option -0.1 of dropout"),
        ("dropout", {"low": 0.1, "high": math.inf}, "unknown option inf of dropout"),
        ("dropout", {"low": 0.1}, "dropout = {'low': 0.1}: high: Field required"),
        ("dropout", {"low": 0.1, "high": 0.5, "step": 0.1}, "step: Extra inputs are not permitted"),
        ("dropout", {"low": "little", "high": 0.5}, "dropout = {'low': 'little', 'high': 0.5}: low:"),
        ("width", {"low": 1.5, "high": 8}, "unknown option 1.5 of width"),
        ("learning_rate", {"low": 0.0, "high": 0.5}, "unknown option 0.0 of learning_rate"),
        ("activation", [], "activation has no options"),
        ("activation", ["ELU", "ELU"], "activation lists the option 'ELU' twice; remove one"),
        ("dropout", [0, 0.5, 0.0], "dropout lists the option 0.0 twice; remove one"),
        ("activation", "ReLU", "activation = 'ReLU': give a list of options, or a range"),
        ("dropout", 0.5, "dropout = 0.5: give a list of options, or a range"),
        ("dropout", None, "dropout = None: give a list of options, or a range"),
    ],
)
def test_a_bad_space_names_the_parameter_and_what_is_wrong(name: str, domain: Any, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        space(pooling_layer=["AvgPooling"], **{name: domain})
    (problem,) = refused.value.errors()
    assert message in problem["msg"]
    assert name in problem["msg"]


def test_a_space_needs_a_parameter() -> None:
    with pytest.raises(ValidationError, match="at least one parameter"):
        space()


def test_a_space_may_hold_one_option_and_settings_beyond_table_1() -> None:
    mixed = space(activation=["ELU"], batch_size=[30, 60], epochs={"low": 4, "high": 16})
    assert mixed.canonicalize({"epochs": 4, "batch_size": 60, "activation": "ELU"}) == {
        "activation": "ELU",
        "batch_size": 60,
        "epochs": 4,
    }


# --- canonicalize -------------------------------------------------------------------------------------------


def test_dropout_is_kept_with_four_digits() -> None:
    assert paper_space().canonicalize({**TABLE_2, "dropout": 0.251149})["dropout"] == 0.2511
    assert paper_space().canonicalize({**TABLE_2, "dropout": 1e-9})["dropout"] == 0.0
    assert paper_space().canonicalize({**TABLE_2, "dropout": 0.999999})["dropout"] == 1.0


def test_parameters_come_back_in_the_order_of_the_space() -> None:
    shuffled = dict(sorted(TABLE_2.items(), reverse=True))
    assert list(paper_space().canonicalize(shuffled)) == list(TABLE_2)


def test_whole_numbers_are_whole() -> None:
    canonical = space(width={"low": 4, "high": 64}).canonicalize({"width": 16.0})
    assert canonical == {"width": 16}
    assert type(canonical["width"]) is int


def test_an_option_comes_back_with_the_type_it_has_in_the_space() -> None:
    canonical = space(temporal_size=[1, 3]).canonicalize({"temporal_size": 3.0})
    assert type(canonical["temporal_size"]) is int


def test_a_float_range_gives_floats_for_whole_numbers_too() -> None:
    assert type(space(dropout={"low": 0, "high": 1}).canonicalize({"dropout": 1})["dropout"]) is float


def test_a_logarithmic_range_keeps_significant_digits() -> None:
    rates = space(learning_rate={"low": 1e-6, "high": 1e-1, "log": True})
    assert rates.canonicalize({"learning_rate": 0.000012345678}) == {"learning_rate": 1.235e-05}
    assert rates.canonicalize({"learning_rate": 0.0876543}) == {"learning_rate": 0.08765}


@pytest.mark.parametrize("log", [True, False])
def test_rounding_stays_inside_the_range(log: bool) -> None:
    narrow = space(dropout={"low": 0.12344, "high": 0.65437, "log": log})
    assert narrow.canonicalize({"dropout": 0.12344}) == {"dropout": 0.12344}
    assert narrow.canonicalize({"dropout": 0.65437}) == {"dropout": 0.65437}
    assert narrow.canonicalize({"dropout": 0.65432}) == {"dropout": 0.6543}


@given(
    value=st.floats(1e-5, 1e-2),
    low=st.floats(1e-6, 1e-5),
    high=st.floats(1e-2, 1.0),
    log=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_canonical_values_stay_close_and_are_stable(value: float, low: float, high: float, log: bool) -> None:
    rates = space(learning_rate={"low": low, "high": high, "log": log})
    canonical = rates.canonicalize({"learning_rate": value})
    kept = canonical["learning_rate"]
    assert isinstance(kept, float)
    assert low <= kept <= high
    assert abs(kept - value) <= (5e-4 * value * 1.001 if log else 5.001e-5)
    assert rates.canonicalize(canonical) == canonical


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": None}, "dropout = None is outside"),
        ({"dropout": 1.0001}, r"dropout = 1\.0001 is outside"),
        ({"dropout": -0.00001}, "dropout = -1e-05 is outside"),
        ({"dropout": math.nan}, "dropout = nan is outside"),
        ({"dropout": math.inf}, "dropout = inf is outside"),
        ({"dropout": "0.5"}, r"dropout = '0\.5' is outside"),
        ({"dropout": True}, "dropout = True is outside"),
        ({"activation": "relu"}, "activation = 'relu' is outside"),
        ({"activation": None}, "activation = None is outside"),
        ({"clahe": 1}, "clahe = 1 is outside"),
        ({"temporal_size": True}, "temporal_size = True is outside"),
        ({"temporal_size": 4}, "temporal_size = 4 is outside"),
        ({"kernel": 3}, "unknown parameter 'kernel'"),
    ],
)
def test_canonicalize_refuses_what_is_not_in_the_space(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        paper_space().canonicalize({**TABLE_2, **change})
    assert refused.value.field is not None
    assert refused.value.field.startswith("parameters")


@pytest.mark.parametrize("value", [3, 65, 8.5, "8", True])
def test_canonicalize_refuses_a_whole_number_that_is_none_or_outside(value: Any) -> None:
    with pytest.raises(InvalidInput, match="width = "):
        space(width={"low": 4, "high": 64}).canonicalize({"width": value})


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(InvalidInput, match="parameter 'dropout' is missing") as refused:
        paper_space().canonicalize({name: value for name, value in TABLE_2.items() if name != "dropout"})
    assert refused.value.field == "parameters.dropout"


# --- JSON ---------------------------------------------------------------------------------------------------

OPTIONS: dict[str, list[Any]] = {
    "activation": ["ReLU", "ELU", "pReLU", "leaky ReLU", "Mish"],
    "temporal_size": [1, 3, 5, 7, 9],
    "clahe": [True, False],
    "pooling_layer": ["AvgPooling", "MaxPooling"],
    "dropout": [0.0, 0.25, 0.5, 1.0],
    "batch_size": [8, 30, 64],
}


@given(
    st.lists(st.sampled_from(sorted(OPTIONS)), min_size=1, unique=True).flatmap(
        lambda names: st.fixed_dictionaries(
            {name: st.permutations(OPTIONS[name]).map(lambda p: p[: max(1, len(p) - 1)]) for name in names}
        ).map(lambda drawn: {name: drawn[name] for name in names})
    )
)
@settings(max_examples=50, deadline=None)
def test_a_space_survives_json_with_its_order(domains: dict[str, Any]) -> None:
    before = SearchSpace.model_validate(domains)
    after = SearchSpace.model_validate_json(before.model_dump_json())
    assert list(after.items()) == list(before.items())
    assert [name for name, _ in after.items()] == list(domains)
    assert [repr(domain) for _, domain in after.items()] == [repr(tuple(d)) for d in domains.values()]


def test_a_space_within_a_study_survives_json_with_its_order() -> None:
    spec = StudySpec(
        name="s", cache="c", space=space(dropout=[0.5, 0.1], clahe=[False, True]), training=TrainingSettings()
    )
    after = StudySpec.model_validate_json(spec.model_dump_json())
    assert list(after.space.items()) == [("dropout", (0.5, 0.1)), ("clahe", (False, True))]


# --- configurations that name some parameters ---------------------------------------------------------------

PARTLY = {
    "temporal_size": [1, 3],
    "activation": ["ELU"],
    "dropout": {"low": 0.0, "high": 1.0},
    "width": [8, 16],
}


def partly(*enqueue: dict[str, Any], **changes: Any) -> StudySpec:
    given = {"name": "s", "cache": "c", "space": PARTLY, "training": {"width": 16}, **changes}
    return StudySpec.model_validate({**given, "enqueue": enqueue})


def test_an_enqueued_configuration_has_the_defaults_of_what_it_does_not_name() -> None:
    spec = partly({}, {"dropout": 0.5, "width": 8})
    # Table 2, the study's own width, and the only option where there is one.
    assert spec.enqueue[0] == {"temporal_size": 3, "activation": "ELU", "dropout": 0.2511, "width": 16}
    assert spec.enqueue[1] == {"temporal_size": 3, "activation": "ELU", "dropout": 0.5, "width": 8}
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_default_outside_the_space_must_be_named() -> None:
    words = r"enqueue\.1: temporal_size is not named, and its default 3 is outside the study's space; name it"
    with pytest.raises(ValidationError, match=words):
        partly({"temporal_size": 5}, {}, space={"temporal_size": [1, 5]})
    with pytest.raises(ValidationError, match=r"width is not named, and its default 64 is outside"):
        partly({}, training={})
    with pytest.raises(ValidationError, match=r"enqueue\.0: unknown parameter 'clahe'"):
        partly({"clahe": True})
