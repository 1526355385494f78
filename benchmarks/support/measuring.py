"""How calls are timed: callers that each await one call after another."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import count
from statistics import median
from typing import NamedTuple

Call = Callable[[int], Awaitable[object]]
"""What a caller awaits: its argument is the number of the call."""
WARM_UP_CALLS = 12
"""How often a side of `in_turns` is called before it is timed."""


def percentile(times: Sequence[float], percent: int) -> float:
    """A percentile of sorted times, in milliseconds."""
    return times[len(times) * percent // 100] * 1e3


class Measured(NamedTuple):
    """How fast calls were."""

    per_second: float
    p50_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None


class Line(NamedTuple):
    """One line of a table: a side, the callers or rows it was measured with, and its speed."""

    name: str
    size: int
    measured: Measured


async def measure(
    call: Call, seconds: float, *, callers: int = 1, least: int = 1, numbers: Iterator[int] | None = None
) -> Measured:
    """Times the calls of all callers together.

    Args:
        call: The call to time; it is given the number of the call.
        seconds: No caller begins another call after this time.
        callers: How many callers there are at once.
        least: The calls that each caller makes, however long they take.
        numbers: The numbers of the calls; by default 1, 2, 3, …
    """
    given = numbers or count(1)
    times: list[float] = []
    began = time.perf_counter()

    async def caller() -> None:
        made = 0
        while made < least or time.perf_counter() < began + seconds:
            called = time.perf_counter()
            await call(next(given))
            times.append(time.perf_counter() - called)
            made += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    per_second = len(times) / (time.perf_counter() - began)
    times.sort()
    return Measured(per_second, percentile(times, 50), percentile(times, 90), percentile(times, 99))


async def measure_warm(call: Call, seconds: float, callers: int) -> tuple[Measured, int]:
    """Times the calls after a second of warming up; the speed, and how many calls there were in both together."""
    numbers = count(1)
    await measure(call, 1.0, callers=callers, numbers=numbers)
    measured = await measure(call, seconds, callers=callers, numbers=numbers)
    return measured, next(numbers) - 1


async def in_turns(sides: Mapping[str, Callable[[], Awaitable[object]]], seconds: float) -> dict[str, float]:
    """The median milliseconds of a call of each side; the sides take turns."""
    for call in sides.values():
        for _ in range(WARM_UP_CALLS):
            await call()
    turns: dict[str, list[float]] = {side: [] for side in sides}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for side, call in sides.items():
            began = time.perf_counter()
            await call()
            turns[side].append(time.perf_counter() - began)
    return {side: median(found) * 1e3 for side, found in turns.items()}
