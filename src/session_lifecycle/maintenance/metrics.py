"""DatabaseMetrics: the figures of a database, its recorders and its spool, for Prometheus and OpenTelemetry.

`METRICS` has every metric once. `docs/reference/metrics.md`, the alerts and the dashboard name them; a test compares.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from session_lifecycle.errors import ConfigurationError, SessionLifecycleError, shortened
from session_lifecycle.maintenance.background import BackgroundRollUp
from session_lifecycle.models.doctor import DatabaseFigures
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.writing.recorder_metrics import RecorderCounts, RecorderSnapshot
from session_lifecycle.writing.spool import Spool
from session_lifecycle.writing.spool_directory import exists

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

PREFIX = "session_lifecycle_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DEFAULT_MAX_AGE = timedelta(seconds=60)

_logger = logging.getLogger(__name__)


class Metric(NamedTuple):
    """One metric. By Prometheus's conventions its name ends with its unit, and that of a counter with `_total`."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    """As OpenTelemetry writes units: `s`, `By`, `{item}`."""
    says: str


def _gauge(name: str, unit: str, says: str) -> Metric:
    return Metric(PREFIX + name, "gauge", unit, says)


def _counter(name: str, unit: str, says: str) -> Metric:
    return Metric(f"{PREFIX}{name}_total", "counter", unit, says)


OF_RECORDERS = {
    "pending": _gauge("recorder_pending_items", "{item}", "Items accepted and not yet written or failed."),
    "waiting": _gauge("recorder_waiting_calls", "{call}", "Calls that wait for room in a queue."),
    "oldest_waiting_seconds": _gauge("recorder_oldest_pending_seconds", "s", "Age of the oldest pending item."),
    "batches": _counter("recorder_transactions", "{transaction}", "Transactions that recorders committed."),
    "items": _counter("recorder_items", "{item}", "Items that recorders wrote."),
    "repeats": _counter("recorder_repeats", "{transaction}", "Transactions that recorders sent again."),
    "failures": _counter("recorder_failed_items", "{item}", "Items that recorders could not write."),
}
OF_ROLL_UPS = {
    "runs": _counter("background_roll_ups", "{run}", "Roll-ups in the background that succeeded."),
    "failures": _counter("background_roll_up_failures", "{run}", "Roll-ups in the background that failed."),
}
OF_SPOOL = {
    "items": _gauge("spool_items", "{item}", "Items of the spool that wait for delivery."),
    "poison": _gauge("spool_refused_items", "{item}", "Items of the spool that were refused and set aside."),
    "bytes": _gauge("spool_bytes", "By", "Size of the spool on disk."),
    "max_bytes": _gauge("spool_max_bytes", "By", "Size beyond which the spool takes no item."),
}
UP = _gauge("database_up", "1", "1 if the last look at the database succeeded, else 0.")
AGE = _gauge("figures_age_seconds", "s", "Age of the figures of the database.")
OF_DATABASE = {
    "sessions_to_roll_up": _gauge(
        "sessions_to_roll_up", "{session}", "Ended or abandoned sessions that are not rolled up, at most 10,000."
    ),
    "roll_up_lag_seconds": _gauge(
        "roll_up_lag_seconds", "s", "Time since the last activity of the oldest session that is not rolled up."
    ),
    "roll_up_changes": _gauge(
        "roll_up_pending_changes", "{change}", "Changes that are not yet put into the roll-ups, at most 100,000."
    ),
    "unpriced_events": _gauge("unpriced_events", "{event}", "Usage events without a price, of all time."),
    "unpriced_models": _gauge("unpriced_models", "{model}", "Models with usage events without a price."),
    "drift_sample_sessions": _gauge(
        "drift_sample_sessions", "{session}", "Sessions of a random sample, compared with the ledger."
    ),
    "drift_sample_mismatches": _gauge(
        "drift_sample_mismatches", "{row}", "Rows of that sample with a total that differs from the ledger."
    ),
    "idle_in_transaction_seconds": _gauge(
        "idle_in_transaction_seconds", "s", "Age of the oldest transaction that waits for its client."
    ),
}
METRICS = (
    *OF_RECORDERS.values(),
    *OF_ROLL_UPS.values(),
    *OF_SPOOL.values(),
    UP,
    AGE,
    *OF_DATABASE.values(),
)


@dataclass(frozen=True)
class RecorderSums:
    """The recorders and the background roll-ups of a database."""

    background: Collection[Any]
    gone: RecorderCounts
    """The counters of recorders that are gone."""

    def values(self) -> dict[Metric, float]:
        """The sums now. The oldest pending item is that of all recorders."""
        values: dict[Metric, float] = dict.fromkeys((*OF_RECORDERS.values(), *OF_ROLL_UPS.values()), 0)
        for name in ("batches", "items", "repeats", "failures"):
            values[OF_RECORDERS[name]] += getattr(self.gone, name)
        oldest = OF_RECORDERS["oldest_waiting_seconds"]
        for one in list(self.background):
            snapshot = one.snapshot()
            if isinstance(one, BackgroundRollUp):
                for name, metric in OF_ROLL_UPS.items():
                    values[metric] += getattr(snapshot, name)
                continue
            assert isinstance(snapshot, RecorderSnapshot)  # noqa: S101 - for the type checker
            for name, metric in OF_RECORDERS.items():
                value = getattr(snapshot, name)
                values[metric] = max(values[metric], value) if metric is oldest else values[metric] + value
        return values


class DatabaseMetrics:
    """The metrics of one database in this process. Made by `SessionDatabase.metrics`.

    `text` is for Prometheus and reads the figures of the database when they are too old. `register` and `observe` hand
    the metrics to a registry of the host; the block then keeps the figures fresh in the background:

    Example:
        metrics = db.metrics()
        metrics.register(prometheus_client.REGISTRY)
        async with metrics:
            await serve()
    """

    def __init__(
        self,
        measure: Callable[[], Coroutine[Any, Any, DatabaseFigures]],
        recorders: RecorderSums,
        max_age: timedelta | float,
        spool: Path | None,
    ) -> None:
        """See `SessionDatabase.metrics`."""
        seconds = max_age.total_seconds() if isinstance(max_age, timedelta) else max_age
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
            raise ConfigurationError(
                f"max_age: got {shortened(max_age)}, expected a timedelta or a number of seconds above 0"
            )
        self._measure = measure
        self._recorders = recorders
        self._max_age_seconds = float(seconds)
        self._spool = spool
        self._figures: DatabaseFigures | None = None
        self._measured_at = self._asked_at = float("-inf")
        self._is_up = False
        self._refreshing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.refresh()
        self._task = asyncio.get_running_loop().create_task(self._keep_fresh(), name="session-lifecycle metrics")
        return self

    async def __aexit__(self, *_error: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(with_jitter(self._max_age_seconds))
            await self.refresh()

    async def refresh(self) -> None:
        """Reads the figures of the database now. An error of the database is no error here: `database_up` tells."""
        self._asked_at = time.monotonic()
        try:
            self._figures = await self._measure()
        except SessionLifecycleError as error:
            self._is_up = False
            _logger.warning("the figures of the database could not be read: %s", error)
        else:
            self._is_up = True
            self._measured_at = time.monotonic()

    async def text(self) -> str:
        """All metrics in Prometheus's text format (version 0.0.4).

        The figures of the database are read if they are older than `max_age`. Callers that ask meanwhile wait for the
        same reading. Without the database the other metrics are there.
        """
        if time.monotonic() - self._asked_at > self._max_age_seconds:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.ensure_future(self.refresh())
            await asyncio.shield(self._refreshing)
        lines: list[str] = []
        for metric, value in self.values().items():
            lines += (f"# HELP {metric.name} {metric.says}", f"# TYPE {metric.name} {metric.kind}")
            lines.append(f"{metric.name} {value:.17g}")
        return "\n".join(lines) + "\n"

    def values(self) -> dict[Metric, float]:
        """The metrics that are known now. Asks no database. May be called from any thread."""
        values = self._recorders.values()
        values.update(self._of_spool())
        values[UP] = int(self._is_up)
        if self._figures is not None:
            values[AGE] = time.monotonic() - self._measured_at
            values.update((metric, getattr(self._figures, name)) for name, metric in OF_DATABASE.items())
        return values

    def _of_spool(self) -> Iterator[tuple[Metric, float]]:
        if self._spool is None:
            return
        if not exists(self._spool):  # the first append makes it
            yield from ((OF_SPOOL[name], 0) for name in ("items", "poison", "bytes"))
            return
        try:
            with Spool(self._spool) as spool:
                status = spool.status()
        except SessionLifecycleError as error:
            _logger.warning("the spool could not be looked at: %s", error)
            return
        for name, metric in OF_SPOOL.items():
            yield metric, getattr(status, name)

    def register(self, registry: "CollectorRegistry") -> None:
        """Adds the metrics to a registry of prometheus-client. Needs the extra `metrics`.

        Raises:
            ConfigurationError: The extra is not installed.
        """
        try:
            from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
        except ModuleNotFoundError as error:
            raise ConfigurationError("needs the extra `metrics`: pip install 'session-lifecycle[metrics]'") from error

        class Collector:
            def collect(self) -> "Iterable[Family]":
                for metric, value in values().items():
                    family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                    yield family(metric.name, metric.says, value=value)

            def describe(self) -> "Iterable[Family]":
                return ()

        values = self.values
        registry.register(Collector())

    def observe(self, provider: "MeterProvider") -> None:
        """Exports the metrics of the database, the roll-ups and the spool with OpenTelemetry. Needs the extra `otel`.

        A name has a dot behind `session_lifecycle`, and neither a unit nor `_total`. The metrics of the recorders
        are not among them: they are exported without this call (see `docs/how-to/recorder.md`).

        Args:
            provider: The host's provider.
        """
        from opentelemetry.metrics import Observation

        meter = provider.get_meter("session_lifecycle")

        def reading(metric: Metric) -> "Callable[[CallbackOptions], Iterable[Observation]]":
            def read(_options: "CallbackOptions") -> "Iterable[Observation]":
                value = self.values().get(metric)
                return () if value is None else (Observation(value),)

            return read

        for metric in METRICS:
            if metric in OF_RECORDERS.values():
                continue
            name = otel_name(metric)
            if metric.kind == "counter":
                meter.create_observable_counter(name, [reading(metric)], metric.unit, metric.says)
            else:
                meter.create_observable_gauge(name, [reading(metric)], metric.unit, metric.says)


def otel_name(metric: Metric) -> str:
    """The name of the metric in OpenTelemetry."""
    bare = metric.name.removeprefix(PREFIX).removesuffix("_total").removesuffix("_seconds")
    return f"session_lifecycle.{bare}"
