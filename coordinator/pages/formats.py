"""Formats numbers and parameter values for people."""

from __future__ import annotations

from services.search_space import ParameterValue, title_of

__all__ = ["ago", "duration", "percent", "title_of", "value"]


def percent(share: float | None) -> str:
    """`97.55 %`, or a dash for None."""
    return "-" if share is None else f"{100 * share:.2f} %"


def value(given: ParameterValue) -> str:
    """A parameter's value as a study file writes it."""
    return str(given).lower() if isinstance(given, bool) else str(given)


def duration(seconds: float) -> str:
    """Two units at most: `3 h 10 min`, `45 s`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{max(0, round(seconds))} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def ago(seconds: float) -> str:
    """`3 min ago`, or `now` below two seconds."""
    return "now" if seconds < 2 else f"{duration(seconds)} ago"
