"""Reports: usage and spend by time, user and agent; tokens by class; durations and run telemetry."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, Protocol
from uuid import UUID

from session_lifecycle.models import (
    CostByAgentRow,
    CostByUserRow,
    Durations,
    EffectiveStatus,
    RunDurations,
    SessionDurations,
    Spend,
    TelemetryKey,
    TelemetrySummary,
    TokenClasses,
    TokensByClass,
    UsagePoint,
    Viewer,
)
from session_lifecycle.models.reports import Series
from session_lifecycle.models.run_telemetry import TelemetryFilters
from session_lifecycle.models.session_filters import Window
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.statements.reports import costs, run_telemetry, spend
from session_lifecycle.statements.roll_ups import session_stats
from session_lifecycle.statements.shared import durations
from session_lifecycle.statements.shared.visibility import scopes

NO_DURATIONS = Durations(count=0, p50_s=None, p90_s=None, p95_s=None, p99_s=None)


class SessionReportsDb(Protocol):
    """Reads figures over all sessions and runs that a viewer sees.

    Each call is one statement, and so one snapshot. It may read a replica, which lags behind. `viewer` is a `Viewer` or
    a user id. Every window is `[since, until)`; an end that is None is open. Money is USD.

    A call that fails for a passing reason is retried, except inside a host's transaction. Every call raises:

    - `InvalidValueError`: it refuses an argument; for example, `until` is before `since`.
    - `SchemaError`: the schema is not migrated, or does not serve this version.
    - `DatabaseUnavailableError`: the database cannot be reached or did not answer, also after the retries.
    - `TransactionConflictError`: the call lost conflicts with concurrent transactions, also after the retries; or the
      host's transaction is not READ COMMITTED.
    """

    async def spend(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> Spend:
        """Usage and spend in the window, by the time of use; every figure is zero without usage.

        The last activity of the sessions does not matter. Over all time `cost_usd` equals `total_spend_usd` of
        `aggregate_stats`.
        """
        ...

    async def usage_timeseries(
        self,
        viewer: Viewer | UUID | str,
        *,
        since: datetime,
        until: datetime,
        bucket: Literal["hour", "day", "week", "month"] = "day",
        timezone: str = "UTC",
        group_by: Literal["model", "agent", "user", "dataset"] | None = None,
    ) -> list[UsagePoint]:
        """Usage and spend in each bucket of the window, by the time of use. The points add up to `spend` of the window.

        The points are in the order of time. A bucket without usage has a point of zeros. With `group_by` each bucket
        has one point for every group with usage anywhere in the window, in the order of the groups' names. The list is
        empty if `since` equals `until`, and with `group_by` if there is no usage.

        Args:
            viewer: The viewer, or the viewer's user id.
            since: Used at this time or later.
            until: Used before this time.
            bucket: The length of a bucket, by the clocks of the time zone. A week begins on Monday.
            timezone: The name of an IANA time zone. A day on which the zone changes its clocks by an hour has 23 or 25
                hours.
            group_by: Splits each bucket. Agent and dataset are those of the session.

        Raises:
            InvalidValueError: There is no such time zone, the window may have more than 10,000 buckets, or another
                argument is refused.
        """
        ...

    async def tokens_by_class(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> TokensByClass:
        """Tokens used in the window by class, by the time of use, for all models together and for each model.

        The classes add up to `tokens_in` and `tokens_out`. The models add up to the figures for all models. The totals
        equal those of `spend`. Without usage all figures are zero and `by_model` is empty.
        """
        ...

    async def cost_by_agent(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByAgentRow]:
        """The cost of each agent's sessions that were last active in the window: most expensive first, ties by name.

        Sessions without an agent are `unknown`. The costs add up to `total_spend_usd` of the same window. The list is
        empty if there are no sessions.
        """
        ...

    async def cost_by_user(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByUserRow]:
        """The cost of each user's sessions that were last active in the window: most expensive first, ties by id.

        The costs add up to `total_spend_usd` of the same window. The list is empty if there are no sessions.
        """
        ...

    async def session_durations(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> SessionDurations:
        """Durations in seconds of the sessions that were last active in the window, overall and by effective status.

        A session's duration is the time from its start to its end, or to its last activity if it has no end. It is
        never negative. `agent_time_s` of `aggregate_stats` is the sum of these durations.
        """
        ...

    async def run_durations(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> RunDurations:
        """Durations in seconds of the runs that ended in the window, overall and by agent. None is negative.

        These are the same runs as those of `telemetry` without a filter.
        """
        ...

    async def telemetry(
        self,
        viewer: Viewer | UUID | str,
        *,
        provider: str | None = None,
        model: str | None = None,
        client: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> TelemetrySummary:
        """Figures over the runs that ended in the window. The last activity of their sessions does not matter.

        A run outside a session is visible to its owner, to a viewer who has the owner as an agent, and to the auditor.
        Without runs the counts are zero and the percentiles None.

        Args:
            viewer: The viewer, or the viewer's user id.
            provider: Only runs of this provider; None: of any.
            model: Only runs that named this model; None: any run.
            client: Only runs of this client; `Unknown`: also runs without a client; None: of any.
            since: Ended at this time or later.
            until: Ended before this time.
        """
        ...

    async def list_telemetry_keys(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[TelemetryKey]:
        """Each combination of provider, model and client of the runs that ended in the window, once.

        The keys are ordered by provider, model and client, None last. The list is empty without runs.
        """
        ...


class SqlAlchemySessionReportsDb(SessionReportsDb):
    """`SessionReportsDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, execution: Execution, abandon_after: timedelta) -> None:
        self._execution = execution
        self._abandon_after = abandon_after

    async def spend(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> Spend:
        window = Window.of_call(since=since, until=until)
        statement = spend.spend(Viewer.of_caller(viewer), window.since, window.until)
        [row] = await self._execution.fetch(statement)
        return Spend(**row._mapping)

    async def usage_timeseries(
        self,
        viewer: Viewer | UUID | str,
        *,
        since: datetime,
        until: datetime,
        bucket: Literal["hour", "day", "week", "month"] = "day",
        timezone: str = "UTC",
        group_by: Literal["model", "agent", "user", "dataset"] | None = None,
    ) -> list[UsagePoint]:
        series = Series.of_call(since=since, until=until, bucket=bucket, timezone=timezone, group_by=group_by)
        asker = Viewer.of_caller(viewer)
        boundaries = series.boundaries()
        if not boundaries:
            return []
        rows = await self._execution.fetch(spend.usage_by_bucket(asker, series, boundaries))
        figures = UsagePoint.model_fields.keys() - {"starts_at", "ends_at", "group"}
        found = {(row.number, row.group): {name: getattr(row, name) for name in figures} for row in rows}
        groups: list[str | None] = sorted({row.group for row in rows}) if series.group_by else [None]
        nothing = dict.fromkeys(figures, 0)
        return [
            UsagePoint(starts_at=starts_at, ends_at=ends_at, group=group, **found.get((number, group), nothing))
            for number, (starts_at, ends_at) in enumerate(pairwise(boundaries), 1)
            for group in groups
        ]

    async def tokens_by_class(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> TokensByClass:
        window = Window.of_call(since=since, until=until)
        statement = spend.tokens_by_class(Viewer.of_caller(viewer), window.since, window.until)
        together, *by_model = [row._asdict() for row in await self._execution.fetch(statement)]
        del together["model"]
        return TokensByClass(**together, by_model={row.pop("model"): TokenClasses(**row) for row in by_model})

    async def cost_by_agent(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByAgentRow]:
        window = Window.of_call(since=since, until=until)
        statement = costs.cost_by_agent(Viewer.of_caller(viewer), window.since, window.until)
        rows = await self._execution.fetch(statement)
        return [CostByAgentRow(**row._mapping) for row in rows]

    async def cost_by_user(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByUserRow]:
        window = Window.of_call(since=since, until=until)
        statement = costs.cost_by_user(Viewer.of_caller(viewer), window.since, window.until)
        rows = await self._execution.fetch(statement)
        return [CostByUserRow(**row._mapping) for row in rows]

    async def session_durations(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> SessionDurations:
        window = Window.of_call(since=since, until=until)
        seen = scopes(Viewer.of_caller(viewer))
        parameters = {**seen.parameters(), **window.model_dump(), "abandon_after": self._abandon_after, "as_of": None}
        together, *rows = await self._execution.fetch(session_stats.session_durations(seen.kinds), parameters)
        found = {row.key: Durations(**_durations(row)) for row in rows}
        by_status = {status: found.get(status, NO_DURATIONS) for status in EffectiveStatus}
        return SessionDurations(**_durations(together), by_status=by_status)

    async def run_durations(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> RunDurations:
        window = Window.of_call(since=since, until=until)
        statement = run_telemetry.run_durations(Viewer.of_caller(viewer), window.since, window.until)
        together, *rows = await self._execution.fetch(statement)
        return RunDurations(**_durations(together), by_agent={row.key: Durations(**_durations(row)) for row in rows})

    async def telemetry(
        self,
        viewer: Viewer | UUID | str,
        *,
        provider: str | None = None,
        model: str | None = None,
        client: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> TelemetrySummary:
        filters = TelemetryFilters.of_call(provider=provider, model=model, client=client, since=since, until=until)
        [row] = await self._execution.fetch(run_telemetry.telemetry(Viewer.of_caller(viewer), filters))
        figures = {name: figure for name, figure in row._mapping.items() if name in TelemetrySummary.model_fields}
        return TelemetrySummary(**figures, **_percentiles(row, "duration_{}_ms", 1_000))

    async def list_telemetry_keys(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[TelemetryKey]:
        window = Window.of_call(since=since, until=until)
        statement = run_telemetry.telemetry_keys(Viewer.of_caller(viewer), window.since, window.until)
        rows = await self._execution.fetch(statement)
        return [TelemetryKey(**row._mapping) for row in rows]


def _durations(row: Any) -> dict[str, Any]:
    return {"count": row.durations, **_percentiles(row, "{}_s", 1_000_000)}


def _percentiles(row: Any, field: str, unit_us: int) -> dict[str, Any]:
    """The percentiles of a row by field name, in a unit of `unit_us` microseconds, rounded to whole microseconds."""
    found = {name: getattr(row, name) for name in durations.PERCENTILES}
    return {field.format(name): None if us is None else round(us) / unit_us for name, us in found.items()}
