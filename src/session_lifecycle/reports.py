"""Reports: what was spent, by whom, on what tokens, and how long sessions and runs took."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, Protocol
from uuid import UUID

from session_lifecycle.execution import Execution
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
from session_lifecycle.models.reads import Window
from session_lifecycle.models.reports import Series, TelemetryFilters
from session_lifecycle.statements import costs, durations, runs_telemetry, spending, stats
from session_lifecycle.statements.scopes import scopes

NO_DURATIONS = Durations(count=0, p50_s=None, p90_s=None, p95_s=None, p99_s=None)


class SessionReportsDb(Protocol):
    """Reports over all that a viewer sees. Each is one statement and so one snapshot.

    `viewer` is a `Viewer`, or a user id. Every window is `[since, until)`, open where it is None. Each raises
    `InvalidValueError` for a value it refuses.
    """

    async def spend(
        self, viewer: Viewer | UUID, *, since: datetime | None = None, until: datetime | None = None
    ) -> Spend:
        """What was used and spent in the window, by the time of use, whenever its sessions were last active.

        Over all time its cost is `total_spend_usd` of `aggregate_stats`.
        """
        ...

    async def usage_timeseries(
        self,
        viewer: Viewer | UUID,
        *,
        since: datetime,
        until: datetime,
        bucket: Literal["hour", "day", "week", "month"] = "day",
        timezone: str = "UTC",
        group_by: Literal["model", "agent", "user", "dataset"] | None = None,
    ) -> list[UsagePoint]:
        """What was used and spent in each bucket of the window, by the time of use; buckets without any are there too.

        In the order of time; grouped, each bucket has a point of every group that used anything in the window, by its
        name. The points add up to `spend` of the window.

        Args:
            viewer: Who is asking.
            since: Used at this time or later.
            until: Used before this time.
            bucket: How long one is, by the clocks of the time zone; weeks begin on Monday.
            timezone: The name of an IANA time zone. A day on which its clocks are set has 23 or 25 hours.
            group_by: What is told apart. Agent and data set are those of the session.

        Raises:
            InvalidValueError: There is no such time zone, or the window has more than 10,000 buckets.
        """
        ...

    async def tokens_by_class(
        self, viewer: Viewer | UUID, *, since: datetime | None = None, until: datetime | None = None
    ) -> TokensByClass:
        """What the tokens used in the window were, by the time of use, of all models together and of each.

        The classes add up to `tokens_in` and `tokens_out`, the models to all of them, and those are `spend`'s.
        """
        ...

    async def cost_by_agent(
        self, viewer: Viewer | UUID, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByAgentRow]:
        """What the sessions of each agent cost, of those last active in the window: most expensive first, ties by name.

        Sessions without an agent are `unknown`. The costs add up to `total_spend_usd` of the same window.
        """
        ...

    async def cost_by_user(
        self, viewer: Viewer | UUID, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByUserRow]:
        """What the sessions of each user cost, of those last active in the window: most expensive first, ties by id.

        The costs add up to `total_spend_usd` of the same window.
        """
        ...

    async def session_durations(
        self, viewer: Viewer | UUID, since: datetime | None = None, until: datetime | None = None
    ) -> SessionDurations:
        """How long the sessions took that were last active in the window, of all and by effective status.

        From the start to the end or, without one, to the last activity, and never negative: what `agent_time_s` of
        `aggregate_stats` adds up.
        """
        ...

    async def run_durations(
        self, viewer: Viewer | UUID, since: datetime | None = None, until: datetime | None = None
    ) -> RunDurations:
        """How long the runs took that ended in the window, of all and by agent; never negative.

        They are the runs of `telemetry`, whenever their sessions were last active.
        """
        ...

    async def telemetry(
        self,
        viewer: Viewer | UUID,
        *,
        provider: str | None = None,
        model: str | None = None,
        client: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> TelemetrySummary:
        """Figures over the runs that ended in the window, whenever their sessions were last active.

        Runs that wait outside of any session are seen by their owner, and by whose agent that is.

        Args:
            viewer: Who is asking.
            provider: Runs of this provider; None: of any.
            model: Runs that named this model; None: of any.
            client: Runs of this client, `Unknown` for those that named none; None: of any.
            since: Ended at this time or later.
            until: Ended before this time.
        """
        ...

    async def list_telemetry_keys(
        self, viewer: Viewer | UUID, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[TelemetryKey]:
        """What `telemetry` can be asked for: each provider, model and client of runs that ended in the window, once.

        By provider, then model, then client, what names none last; empty without runs.
        """
        ...


class SqlAlchemySessionReportsDb:
    """`SessionReportsDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, execution: Execution, abandon_after: timedelta) -> None:
        self._execution = execution
        self._abandon_after = abandon_after

    async def spend(
        self, viewer: Viewer | UUID, *, since: datetime | None = None, until: datetime | None = None
    ) -> Spend:
        """See `SessionReportsDb`."""
        window = Window.of_call(since=since, until=until)
        statement = spending.spend(Viewer.of_caller(viewer), window.since, window.until)
        [row] = await self._execution.fetch(statement)
        return Spend(**row._mapping)

    async def usage_timeseries(
        self,
        viewer: Viewer | UUID,
        *,
        since: datetime,
        until: datetime,
        bucket: Literal["hour", "day", "week", "month"] = "day",
        timezone: str = "UTC",
        group_by: Literal["model", "agent", "user", "dataset"] | None = None,
    ) -> list[UsagePoint]:
        """See `SessionReportsDb`."""
        series = Series.of_call(since=since, until=until, bucket=bucket, timezone=timezone, group_by=group_by)
        asker = Viewer.of_caller(viewer)
        boundaries = series.boundaries()
        if not boundaries:
            return []
        rows = await self._execution.fetch(spending.usage_by_bucket(asker, series, boundaries))
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
        self, viewer: Viewer | UUID, *, since: datetime | None = None, until: datetime | None = None
    ) -> TokensByClass:
        """See `SessionReportsDb`."""
        window = Window.of_call(since=since, until=until)
        statement = spending.tokens_by_class(Viewer.of_caller(viewer), window.since, window.until)
        together, *by_model = [row._asdict() for row in await self._execution.fetch(statement)]
        del together["model"]
        return TokensByClass(**together, by_model={row.pop("model"): TokenClasses(**row) for row in by_model})

    async def cost_by_agent(
        self, viewer: Viewer | UUID, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByAgentRow]:
        """See `SessionReportsDb`."""
        window = Window.of_call(since=since, until=until)
        statement = costs.cost_by_agent(Viewer.of_caller(viewer), window.since, window.until)
        rows = await self._execution.fetch(statement)
        return [CostByAgentRow(**row._mapping) for row in rows]

    async def cost_by_user(
        self, viewer: Viewer | UUID, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByUserRow]:
        """See `SessionReportsDb`."""
        window = Window.of_call(since=since, until=until)
        statement = costs.cost_by_user(Viewer.of_caller(viewer), window.since, window.until)
        rows = await self._execution.fetch(statement)
        return [CostByUserRow(**row._mapping) for row in rows]

    async def session_durations(
        self, viewer: Viewer | UUID, since: datetime | None = None, until: datetime | None = None
    ) -> SessionDurations:
        """See `SessionReportsDb`."""
        window = Window.of_call(since=since, until=until)
        seen = scopes(Viewer.of_caller(viewer))
        parameters = {**seen.parameters(), **window.model_dump(), "abandon_after": self._abandon_after, "as_of": None}
        together, *rows = await self._execution.fetch(stats.session_durations(seen.kinds), parameters)
        found = {row.key: Durations(**_durations(row)) for row in rows}
        by_status = {status: found.get(status, NO_DURATIONS) for status in EffectiveStatus}
        return SessionDurations(**_durations(together), by_status=by_status)

    async def run_durations(
        self, viewer: Viewer | UUID, since: datetime | None = None, until: datetime | None = None
    ) -> RunDurations:
        """See `SessionReportsDb`."""
        window = Window.of_call(since=since, until=until)
        statement = runs_telemetry.run_durations(Viewer.of_caller(viewer), window.since, window.until)
        together, *rows = await self._execution.fetch(statement)
        return RunDurations(**_durations(together), by_agent={row.key: Durations(**_durations(row)) for row in rows})

    async def telemetry(
        self,
        viewer: Viewer | UUID,
        *,
        provider: str | None = None,
        model: str | None = None,
        client: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> TelemetrySummary:
        """See `SessionReportsDb`."""
        filters = TelemetryFilters.of_call(provider=provider, model=model, client=client, since=since, until=until)
        [row] = await self._execution.fetch(runs_telemetry.telemetry(Viewer.of_caller(viewer), filters))
        figures = {name: figure for name, figure in row._mapping.items() if name in TelemetrySummary.model_fields}
        return TelemetrySummary(**figures, **_percentiles(row, "duration_{}_ms", 1_000))

    async def list_telemetry_keys(
        self, viewer: Viewer | UUID, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[TelemetryKey]:
        """See `SessionReportsDb`."""
        window = Window.of_call(since=since, until=until)
        statement = runs_telemetry.telemetry_keys(Viewer.of_caller(viewer), window.since, window.until)
        rows = await self._execution.fetch(statement)
        return [TelemetryKey(**row._mapping) for row in rows]


def _durations(row: Any) -> dict[str, Any]:
    return {"count": row.durations, **_percentiles(row, "{}_s", 1_000_000)}


def _percentiles(row: Any, field: str, unit_us: int) -> dict[str, Any]:
    """The percentiles of a row by their fields, in a unit of so many microseconds, and exact to one."""
    found = {name: getattr(row, name) for name in durations.PERCENTILES}
    return {field.format(name): None if us is None else round(us) / unit_us for name, us in found.items()}
