"""YAML as people write it, and JSON as programs do."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import InvalidInput
from services.yaml_text import parse_yaml

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=0xD7FF)),
    lambda part: st.lists(part) | st.dictionaries(st.text("abc", min_size=1), part),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("1E5", 100000.0),
        ("-2.5e-3", -0.0025),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("1e5x", "1e5x"),
        ("e5", "e5"),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("[1e-4, 1e-3]", [0.0001, 0.001]),
        ("{low: 1e-5, high: 1e-2}", {"low": 1e-5, "high": 0.01}),
    ],
)
def test_numbers_with_an_exponent(text: str, value: object) -> None:
    read = parse_yaml(text, "it")
    assert (read, type(read)) == (value, type(value))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_as_python_writes_it(number: float) -> None:
    for text in (repr(number), f"{number:e}", f"{number:g}"):
        read = parse_yaml(text, "it")
        assert math.isclose(read, number, rel_tol=1e-5, abs_tol=0.0) or read == number == 0, text


@given(JSON)
def test_json_is_read_as_it_was_written(value: object) -> None:
    assert parse_yaml(json.dumps(value), "it") == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("space: {a: [1]}\ntrials: 3\nspace: {b: [2]}\n", 3),
        ("training:\n  epochs: 3\n  width: 2\n  epochs: 4\n", 4),
        ('{"trials": 1,\n "trials": 2}', 2),
        ("- {a: 1, a: 1}\n", 1),
    ],
)
def test_a_key_given_twice_is_an_error(text: str, line: int) -> None:
    with pytest.raises(
        InvalidInput, match=rf"spec\.yaml is neither YAML nor JSON at line {line}: the key .* twice"
    ):
        parse_yaml(text, "spec.yaml")


def test_merged_keys_and_keys_of_other_types_are_no_duplicates() -> None:
    assert parse_yaml("base: &b {a: 1, c: 3}\nit: {<<: *b, a: 2}\n", "it")["it"] == {"a": 2, "c": 3}
    assert parse_yaml("{1: a, '1': b}", "it") == {1: "a", "1": "b"}


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: !!python/object:os.system {}", "2026-13-45"])
def test_what_is_not_yaml_is_an_error(text: str) -> None:
    with pytest.raises(InvalidInput, match="spec"):
        parse_yaml(text, "spec")
