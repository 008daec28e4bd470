"""Parses the values of reader settings, which are text."""

from __future__ import annotations

from collections.abc import Sequence

from preprocessing.datasets.reader import Span
from preprocessing.datasets.video_list import NotAClip, parse_span
from services.errors import InvalidInput


def one_of(field: str, value: str, known: Sequence[str]) -> str:
    """The known name that a value is, in upper or lower case.

    Raises:
        InvalidInput: it is none of them.
    """
    for name in known:
        if value.casefold() == name.casefold():
            return name
    raise InvalidInput(f"{field} is {value!r}; use one of: {', '.join(known)}.", field=field)


def some_of(field: str, value: str, known: Sequence[str]) -> tuple[str, ...]:
    """The known names that a list with commas holds, in the order of `known`, each once.

    Raises:
        InvalidInput: the list is empty, or holds another name.
    """
    names = [name.strip().casefold() for name in value.split(",")]
    if unknown := [name for name in names if name not in {one.casefold() for one in known}]:
        raise InvalidInput(
            f"{field} is {value!r}, but {unknown[0]!r} is not known; use one or several of these, separated by "
            f"commas: {', '.join(known)}.",
            field=field,
        )
    return tuple(name for name in known if name.casefold() in names)


def yes_or_no(field: str, value: str) -> bool:
    """Whether a value is `yes`.

    Raises:
        InvalidInput: it is neither `yes` nor `no`.
    """
    if value not in {"yes", "no"}:
        raise InvalidInput(f"{field} is {value!r}; use yes or no.", field=field)
    return value == "yes"


def span_until(field: str, value: str) -> Span:
    """The part of a video up to a frame counted from 0, or seconds like `2.5s`; empty: the whole video.

    Raises:
        InvalidInput: the value is none of them.
    """
    try:
        return parse_span("", value)
    except NotAClip:
        raise InvalidInput(
            f"{field} is {value!r}; give seconds like 2.5s, or the number of a frame, counted from 0.",
            field=field,
        ) from None
