"""The role `reports` over buckets."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from session_lifecycle.buckets.merging import (
    MergedRow,
    added,
    by_cost,
    merge_durations,
    merge_rows,
    merge_telemetry_keys,
    merge_usage,
    none_last,
    percentiles,
)
from session_lifecycle.buckets.routing import Bucket, Routing
from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import (
    CostByAgentRow,
    CostByUserAgentRow,
    CostByUserRow,
    Durations,
    EffectiveStatus,
    RunDurations,
    SessionDurations,
    TelemetryKey,
    TelemetrySummary,
    Viewer,
)
from session_lifecycle.models.pages import MOST_ROWS
from session_lifecycle.models.reports import UsageQuestion
from session_lifecycle.models.run_telemetry import TelemetryFilters
from session_lifecycle.models.session_filters import Window
from session_lifecycle.reports import NO_DURATIONS, UsageReports, durations_fields, percentile_fields, whole_report

MOST_DURATIONS = 100_000
"""The most durations from which percentiles over several buckets are computed: all of them are read."""
_OF_ONE_BUCKET = {"user", "session", "run"}
"""Dimensions of which each group is in one bucket."""

Answer = TypeVar("Answer")


class BucketReportsDb(UsageReports):
    """`SessionReportsDb` over buckets. Sums add up; averages and percentiles are computed from what all buckets have.

    Percentiles over several buckets are exact, and refused beyond 100,000 durations. A report of usage over several
    buckets is refused beyond 50,000 groups of one bucket, unless it is grouped by user, session or run.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    async def usage_rows(
        self, viewer: Viewer | UUID | str, question: UsageQuestion, figures: Sequence[str], limit: int
    ) -> tuple[Any, Sequence[Any]]:
        asker = Viewer.of_caller(viewer)
        where = await self._routing.where(asker, question.filters.owner_id, question.filters.dataset_id)
        if len(where[0]) == 1:
            return await where[0][0].reports.usage_rows(asker, question, figures, limit)
        # The first groups of each bucket are among the first of all where no group is in two buckets. The spelling of
        # a model is chosen among all its groups.
        is_disjoint = not _OF_ONE_BUCKET.isdisjoint(question.group_by) and "model" not in question.group_by
        most = limit if is_disjoint else max(limit, MOST_ROWS)
        answers = await self._routing.ask(
            where, lambda bucket: bucket.reports.usage_rows(asker, question, figures, most)
        )
        if question.group_by and most > limit and any(len(rows) > most for _, rows in answers):
            expected = f"fewer dimensions, or a shorter window: at most {most:,} groups in each of several buckets"
            raise InvalidValueError("group_by", question.group_by, expected)
        total, rows = merge_usage(answers, question, figures)
        return total, rows[: limit + 1]

    async def cost_by_agent(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByAgentRow]:
        answers = await self._all(
            viewer, lambda bucket, asker: bucket.reports.cost_by_agent(asker, since=since, until=until)
        )
        rows = merge_rows(answers, lambda row: row.agent_name, ["agent_name"], lambda row: row.agent_name)
        return list(whole_report(rows, until))

    async def cost_by_user(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByUserRow]:
        answers = await self._all(
            viewer, lambda bucket, asker: bucket.reports.cost_by_user(asker, since=since, until=until)
        )
        # A user is in one bucket.
        rows = by_cost((row for found in answers for row in found), lambda row: row.user_id)
        return list(whole_report(rows, until))

    async def cost_by_user_agent(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByUserAgentRow]:
        answers = await self._all(
            viewer, lambda bucket, asker: bucket.reports.cost_by_user_agent(asker, since=since, until=until)
        )
        rows = by_cost(
            (row for found in answers for row in found), lambda row: (row.user_id, none_last(row.agent_type))
        )
        return list(whole_report(rows, until))

    async def session_durations(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> SessionDurations:
        window = Window.of_call(since=since, until=until)
        together, rows = await self._durations(
            viewer,
            window,
            lambda bucket, asker: bucket.reports.listed_session_durations(asker, window, MOST_DURATIONS + 1),
        )
        found = {row.key: Durations(**durations_fields(row)) for row in rows}
        by_status = {status: found.get(status, NO_DURATIONS) for status in EffectiveStatus}
        return SessionDurations(**durations_fields(together), by_status=by_status)

    async def run_durations(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> RunDurations:
        window = Window.of_call(since=since, until=until)
        together, rows = await self._durations(
            viewer,
            window,
            lambda bucket, asker: bucket.reports.listed_run_durations(asker, window, MOST_DURATIONS + 1),
        )
        by_agent = {row.key: Durations(**durations_fields(row)) for row in whole_report(rows, window.until)}
        return RunDurations(**durations_fields(together), by_agent=by_agent)

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
        asker = Viewer.of_caller(viewer)
        where = await self._routing.where(asker)
        if len(where[0]) == 1:
            return await where[0][0].reports.telemetry(
                asker, provider=provider, model=model, client=client, since=since, until=until
            )
        answers = await self._routing.ask(
            where, lambda bucket: bucket.reports.telemetry_with_durations(asker, filters, MOST_DURATIONS + 1)
        )
        names = TelemetrySummary.model_fields.keys() & set(answers[0]._fields)
        figures = added({name: getattr(row, name) for name in names} for row in answers)
        _refuse_many(figures["runs_count"], filters.until)
        listed: dict[float, int] = {}
        for row in answers:
            for duration in row.durations_us or ():
                listed[float(duration)] = listed.get(float(duration), 0) + 1
        return TelemetrySummary(**figures, **percentile_fields(MergedRow(percentiles(listed)), "duration_{}_ms", 1_000))

    async def list_telemetry_keys(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[TelemetryKey]:
        answers = await self._all(
            viewer, lambda bucket, asker: bucket.reports.list_telemetry_keys(asker, since=since, until=until)
        )
        return list(whole_report(merge_telemetry_keys(answers), until))

    async def _all(
        self, viewer: Viewer | UUID | str, call: Callable[[Bucket, Viewer], Awaitable[Answer]]
    ) -> list[Answer]:
        asker = Viewer.of_caller(viewer)
        return await self._routing.ask(await self._routing.where(asker), lambda bucket: call(bucket, asker))

    async def _durations(
        self,
        viewer: Viewer | UUID | str,
        window: Window,
        call: Callable[[Bucket, Viewer], Awaitable[Sequence[Any]]],
    ) -> tuple[MergedRow, list[MergedRow]]:
        listings = await self._all(viewer, call)
        _refuse_many(sum(map(len, listings)), window.until)
        return merge_durations(listings)


def _refuse_many(durations: int, until: datetime | None) -> None:
    if durations > MOST_DURATIONS:
        expected = (
            f"a shorter window, or fewer sessions to see: at most {MOST_DURATIONS:,} durations in several buckets"
        )
        raise InvalidValueError("until", until, expected)
