"""Token buckets: never more than the burst and the rate allow, and the wait that is told is the true one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.access import rate_limit
from coordinator.access.rate_limit import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_no_stretch_of_time_lets_more_pass_than_burst_and_rate(
    rate: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    limit = RateLimit(rate=rate, burst=burst, clock=clock)
    passed = []
    for pause in pauses:
        clock.now += pause
        if limit.take("k") == 0:
            passed.append(clock.now)
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - start) + 1e-6


@given(rate=st.floats(0.1, 100), burst=st.floats(0, 20))
def test_who_waits_as_told_is_let_pass_and_who_comes_earlier_is_not(rate: float, burst: float) -> None:
    clock = Clock()
    limit = RateLimit(rate=rate, burst=burst, clock=clock)
    taken = 0
    while (wait := limit.take("k")) == 0:
        taken += 1
    assert taken == max(1, int(burst))
    clock.now += wait * 0.9
    assert limit.take("k") > 0
    clock.now += wait * 0.1 + 1e-6
    assert limit.take("k") == 0


def test_keys_do_not_share_and_what_is_put_back_is_there_again() -> None:
    limit = RateLimit(rate=1, burst=1, clock=Clock())
    assert limit.take("a") == 0
    assert limit.take("b") == 0
    assert limit.take("a") == 1
    limit.put_back("a")
    limit.put_back("a")
    assert limit.take("a") == 0
    assert limit.take("a") == 1


def test_a_rate_of_zero_is_no_limit() -> None:
    limit = RateLimit(rate=0, burst=0, clock=Clock())
    assert [limit.take("k") for _ in range(100)] == [0] * 100


def test_a_flood_of_keys_is_forgotten_and_the_one_in_use_is_not() -> None:
    limit = RateLimit(rate=0.001, burst=2, clock=Clock())
    assert limit.take("in use") == 0
    for key in range(rate_limit.MAX_KEYS):
        limit.take(key)
        if key == rate_limit.MAX_KEYS // 2:
            assert limit.take("in use") == 0
    assert limit.take("in use") > 0
    assert len(limit._buckets) == rate_limit.MAX_KEYS
