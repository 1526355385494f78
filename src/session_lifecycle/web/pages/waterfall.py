"""The waterfall of a session: its runs and their steps as bars on one line of time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from session_lifecycle.models import RunDetail, Step

STEPS_SHOWN = 20
"""The most steps of one run in the waterfall of a session. The page of the run has them all."""
MOST_DEPTH = 8
"""The deepest indentation."""
_LEAST_WIDTH = 0.4
"""Percent: a bar of no duration is still seen."""


@dataclass(frozen=True)
class Bar:
    """One line of the waterfall."""

    run: RunDetail
    step: Step | None
    """The step; None: the line is the run's."""
    depth: int
    left: float
    """Percent of the line of time before the bar."""
    width: float
    """Percent of the line of time that the bar takes."""
    duration_s: float | None
    """None while it is open."""
    failed: bool


@dataclass(frozen=True)
class Waterfall:
    """The bars of a page."""

    starts_at: datetime | None
    duration_s: float
    bars: list[Bar]
    left_out: dict[str, int]
    """The number of steps that follow those shown, by the id of their run."""


def waterfall(runs: Sequence[RunDetail], now: datetime, first_step: int = 0) -> Waterfall:
    """The bars of runs, each followed by its steps.

    Args:
        runs: The runs, in their order, each with the steps that are shown.
        now: Where the bars of open runs and steps end.
        first_step: How many steps of each run come before those.
    """
    if not runs:
        return Waterfall(None, 0.0, [], {})
    starts_at, ends_at = _span(runs, now)
    length = max(ends_at - starts_at, timedelta(milliseconds=1))
    depths = _depths((run.run_id, run.parent_run_id) for run in runs)
    bars: list[Bar] = []
    left_out: dict[str, int] = {}

    def add(run: RunDetail, step: Step | None, depth: int) -> None:
        timed = step or run
        ends = timed.ended_at or max(now, timed.started_at)
        left = 100 * ((timed.started_at - starts_at) / length)
        width = min(max(100 * ((ends - timed.started_at) / length), _LEAST_WIDTH), 100 - min(left, 100 - _LEAST_WIDTH))
        duration = None if timed.ended_at is None else max(0.0, (timed.ended_at - timed.started_at).total_seconds())
        failed = run.status == "failed" if step is None else has_errors(step)
        bars.append(Bar(run, step, min(depth, MOST_DEPTH), round(left, 3), round(width, 3), duration, failed))

    for run in runs:
        add(run, None, depths[run.run_id])
        inner = _depths((step.step_id, step.parent_step_id) for step in run.steps)
        for step in run.steps:
            add(run, step, depths[run.run_id] + 1 + inner[step.step_id])
        rest = run.steps_count - first_step - len(run.steps)
        if rest > 0:
            left_out[run.run_id] = rest
    return Waterfall(starts_at, length.total_seconds(), bars, left_out)


def has_errors(step: Step) -> bool:
    """Whether the step counts as an error."""
    return step.errors is not None and step.errors != []


def _span(runs: Iterable[RunDetail], now: datetime) -> tuple[datetime, datetime]:
    starts: list[datetime] = []
    ends: list[datetime] = []
    for run in runs:
        timed_parts: list[RunDetail | Step] = [run, *run.steps]
        for timed in timed_parts:
            starts.append(timed.started_at)
            ends += [timed.started_at, timed.ended_at or max(now, timed.started_at)]
    return min(starts), max(ends)


def _depths(parents: Iterable[tuple[str, str | None]]) -> dict[str, int]:
    """How deep each is below those that have no parent here."""
    known = dict(parents)
    found: dict[str, int] = {}
    for one in known:
        way: list[str] = []
        above: str | None = one
        # Any source may name any parent, so a circle ends where it meets itself.
        while above is not None and above in known and above not in found and above not in way:
            way.append(above)
            above = known[above]
        depth = found[above] + 1 if above in found else 0
        for passed in reversed(way):
            found[passed] = depth
            depth += 1
    return found
