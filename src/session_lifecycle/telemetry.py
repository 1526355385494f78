"""How recorders are doing: a snapshot, and OpenTelemetry metrics where the host has OpenTelemetry.

As metrics, the recorders of one process are added up: a dashboard does not tell them apart.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation


@dataclass(frozen=True, slots=True)
class RecorderSnapshot:
    """How a recorder is doing, since it was made."""

    pending: int
    """Items taken in and not yet answered."""
    waiting: int
    """Calls that wait for room."""
    batches: int
    """Transactions that were written."""
    items: int
    """Items that were written by them."""
    repeats: int
    """How often a batch, or a part of one, was sent once more."""
    failures: int
    """Items that could not be written."""
    oldest_waiting_seconds: float
    """How long ago the oldest pending item was taken in; 0.0 when there is none."""

    @property
    def mean_batch(self) -> float:
        """Items per transaction; 0.0 before the first."""
        return self.items / self.batches if self.batches else 0.0


class Observed(Protocol):
    """What has figures to tell."""

    def snapshot(self) -> RecorderSnapshot:
        """The figures now."""
        ...


_observed: "WeakSet[Observed]" = WeakSet()
_instruments: list[object] = []


def observe(recorder: Observed) -> None:
    """Has the recorder's figures told as long as it exists; nothing without `opentelemetry-api`."""
    try:
        from opentelemetry import metrics
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "opentelemetry":
            raise
        return
    _observed.add(recorder)
    if _instruments:
        return
    meter = metrics.get_meter("session_lifecycle")
    for name, unit, what in (
        ("pending", "{item}", "Items taken in and not yet answered."),
        ("waiting", "{call}", "Calls that wait for room."),
    ):
        full_name = f"session_lifecycle.recorder.{name}"
        _instruments.append(meter.create_observable_up_down_counter(full_name, [_sum(name)], unit, what))
    for name, unit, what in (
        ("batches", "{transaction}", "Transactions that were written."),
        ("items", "{item}", "Items that were written."),
        ("repeats", "{transaction}", "Transactions that were sent once more."),
        ("failures", "{item}", "Items that could not be written."),
    ):
        full_name = f"session_lifecycle.recorder.{name}"
        _instruments.append(meter.create_observable_counter(full_name, [_sum(name)], unit, what))
    _instruments.append(
        meter.create_observable_gauge(
            "session_lifecycle.recorder.oldest_waiting",
            [_oldest],
            "s",
            "How long ago the oldest pending item was taken in.",
        )
    )


def _sum(figure: str) -> "Callable[[CallbackOptions], Iterable[Observation]]":
    def callback(_options: "CallbackOptions") -> "Iterable[Observation]":
        from opentelemetry.metrics import Observation

        yield Observation(sum(getattr(recorder.snapshot(), figure) for recorder in list(_observed)))

    return callback


def _oldest(_options: "CallbackOptions") -> "Iterable[Observation]":
    from opentelemetry.metrics import Observation

    yield Observation(max((one.snapshot().oldest_waiting_seconds for one in list(_observed)), default=0.0))
