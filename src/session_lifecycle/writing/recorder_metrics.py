"""Recorder metrics: a snapshot, and OpenTelemetry metrics where the host has OpenTelemetry.

The OpenTelemetry metrics add up all recorders of one process.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet, finalize

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation


@dataclass(frozen=True, slots=True)
class RecorderSnapshot:
    """The metrics of one recorder. Counters start at 0 when the recorder is made."""

    pending: int
    """Items accepted and not yet written or failed."""
    waiting: int
    """Calls that wait for room in the queue."""
    batches: int
    """Transactions committed."""
    items: int
    """Items written by those transactions."""
    repeats: int
    """How often a batch, or a part of one, was sent again."""
    failures: int
    """Items that could not be written."""
    oldest_waiting_seconds: float
    """Age of the oldest pending item in seconds; 0.0 when none is pending."""

    @property
    def mean_batch(self) -> float:
        """Items per transaction; 0.0 before the first transaction."""
        return self.items / self.batches if self.batches else 0.0


@dataclass(slots=True)
class RecorderCounts:
    """The counters of a recorder, which may outlive it: a sum over recorders must not fall when one is gone."""

    batches: int = 0
    items: int = 0
    repeats: int = 0
    failures: int = 0

    def add(self, other: "RecorderCounts") -> None:
        """Adds the counters of another recorder."""
        self.batches += other.batches
        self.items += other.items
        self.repeats += other.repeats
        self.failures += other.failures

    def keep(self, recorder: "Observed") -> None:
        """Adds the counters of a recorder once it is gone."""
        finalize(recorder, self.add, recorder.counts).atexit = False


class Observed(Protocol):
    """An object whose recorder metrics are exported."""

    @property
    def counts(self) -> RecorderCounts:
        """The counters now."""
        ...

    def snapshot(self) -> RecorderSnapshot:
        """The metrics now."""
        ...


_observed: "WeakSet[Observed]" = WeakSet()
_gone = RecorderCounts()
_instruments: list[object] = []


def observe(recorder: Observed) -> None:
    """Exports the recorder's metrics for as long as the recorder exists. Does nothing without `opentelemetry-api`."""
    try:
        from opentelemetry import metrics
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "opentelemetry":
            raise
        return
    _observed.add(recorder)
    _gone.keep(recorder)
    if _instruments:
        return
    meter = metrics.get_meter("session_lifecycle")
    for name, unit, description in (
        ("pending", "{item}", "Items accepted and not yet written or failed."),
        ("waiting", "{call}", "Calls that wait for room in the queue."),
    ):
        full_name = f"session_lifecycle.recorder.{name}"
        _instruments.append(meter.create_observable_up_down_counter(full_name, [_sum(name)], unit, description))
    for name, unit, description in (
        ("batches", "{transaction}", "Transactions committed."),
        ("items", "{item}", "Items written."),
        ("repeats", "{transaction}", "Transactions sent again."),
        ("failures", "{item}", "Items that could not be written."),
    ):
        full_name = f"session_lifecycle.recorder.{name}"
        _instruments.append(meter.create_observable_counter(full_name, [_sum(name)], unit, description))
    _instruments.append(
        meter.create_observable_gauge(
            "session_lifecycle.recorder.oldest_waiting",
            [_oldest],
            "s",
            "Age of the oldest pending item.",
        )
    )


def _sum(metric: str) -> "Callable[[CallbackOptions], Iterable[Observation]]":
    def callback(_options: "CallbackOptions") -> "Iterable[Observation]":
        from opentelemetry.metrics import Observation

        now = sum(getattr(recorder.snapshot(), metric) for recorder in list(_observed))
        yield Observation(now + getattr(_gone, metric, 0))

    return callback


def _oldest(_options: "CallbackOptions") -> "Iterable[Observation]":
    from opentelemetry.metrics import Observation

    yield Observation(max((one.snapshot().oldest_waiting_seconds for one in list(_observed)), default=0.0))
