"""What is loaded ahead comes in order, is loaded while the caller works, and ends with the caller."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from worker.training.prefetch import prefetched


def test_results_come_in_order() -> None:
    assert list(prefetched(lambda n: n * n, range(20), ahead=3)) == [n * n for n in range(20)]
    assert list(prefetched(lambda n: n, [], ahead=3)) == []
    assert list(prefetched(lambda n: n, [1], ahead=3)) == [1]


def test_the_next_ones_are_loaded_while_the_caller_works() -> None:
    loaded = [threading.Event() for _ in range(10)]

    def load(number: int) -> int:
        loaded[number].set()
        return number

    with closing(prefetched(load, range(10), ahead=2)) as results:  # type: ignore[type-var]
        assert next(results) == 0
        assert loaded[2].wait(10)
        assert not loaded[3].wait(0.05)
        assert next(results) == 1
        assert loaded[3].wait(10)


def test_nothing_is_loaded_after_the_caller_stopped() -> None:
    started: list[int] = []
    second, going_on = threading.Event(), threading.Event()

    def load(number: int) -> int:
        started.append(number)
        if number == 1:
            second.set()
            going_on.wait(10)
        return number

    results = prefetched(load, range(100), ahead=5)
    assert next(results) == 0
    assert second.wait(10)
    threading.Timer(0.05, going_on.set).start()
    results.close()  # type: ignore[attr-defined]
    assert started == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_an_error_is_raised_in_its_place() -> None:
    def load(number: int) -> float:
        return 1 / (3 - number)

    results = prefetched(load, range(9), ahead=2)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
