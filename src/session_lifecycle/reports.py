"""Reports: usage and spend by time, user and agent; tokens by class; durations and run telemetry."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, Protocol
from uuid import UUID

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import (
    CostByAgentRow,
    CostByUserAgentRow,
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
    UsageFigures,
    UsageFilters,
    UsagePoint,
    UsageReport,
    UsageRow,
    Viewer,
)
from session_lifecycle.models.pages import MOST_ROWS
from session_lifecycle.models.reports import FIGURES, MOST_POINTS, Dimension, Series, UsageQuestion
from session_lifecycle.models.run_filters import RunChoice
from session_lifecycle.models.run_telemetry import TelemetryFilters
from session_lifecycle.models.session_filters import Window
from session_lifecycle.pages import whole_answer
from session_lifecycle.postgres.driver_statements import KeptStatement
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.statements.activity.run_figures import shape_of_runs
from session_lifecycle.statements.reports import costs, run_telemetry, usage
from session_lifecycle.statements.roll_ups import session_stats
from session_lifecycle.statements.shared import durations
from session_lifecycle.statements.shared.ledger import TOKEN_COLUMNS, UNKNOWN_DATASET
from session_lifecycle.statements.shared.visibility import ViewerShape, scopes, shape_of_viewer
from session_lifecycle.statements.shared.window import Ends, ends_of

TOKENS = tuple(column.key for column in TOKEN_COLUMNS)
GROUP_FIELDS = UsageRow.model_fields.keys() - UsageFigures.model_fields.keys()
NO_DURATIONS = Durations(count=0, p50_s=None, p90_s=None, p95_s=None, p99_s=None)

ReportOfWindow = Callable[[ViewerShape, Ends], KeptStatement]
"""The statement of a report over a window, which also binds `limit`."""


class SessionReportsDb(Protocol):
    """Reads figures over all sessions and runs that a viewer sees.

    Each call is one statement, and so one snapshot. It may read a replica, which lags behind. `viewer` is a `Viewer` or
    a user id. Every window is `[since, until)`; an end that is None is open. Money is USD.

    A call that fails for a passing reason is retried, except inside a host's transaction. Every call raises:

    - `InvalidValueError`: it refuses an argument; for example, `until` is before `since`. A call that takes no `limit`
      refuses a window with more than 50,000 models, agents, users or telemetry keys.
    - `SchemaError`: the schema is not migrated, or does not serve this version.
    - `DatabaseUnavailableError`: the database cannot be reached or did not answer, also after the retries.
    - `TransactionConflictError`: the call lost conflicts with concurrent transactions, also after the retries; or the
      host's transaction is not READ COMMITTED.
    """

    async def usage(
        self,
        viewer: Viewer | UUID | str,
        *,
        group_by: Sequence[Dimension] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        filters: UsageFilters | None = None,
        order_by: str = "cost_usd",
        limit: int = 1000,
        timezone: str = "UTC",
        details: Sequence[str] = (),
    ) -> UsageReport:
        """Usage and spend in the window, by the time of use, in one group for each combination of the dimensions.

        `spend`, `usage_timeseries` and `tokens_by_class` are short forms of this report. The total over all groups is
        beside the rows; over all time its `cost_usd` equals `total_spend_usd` of `aggregate_stats`. A group without
        usage has no row.

        Args:
            viewer: The viewer, or the viewer's user id.
            group_by: The dimensions, each once: `model`, `provider`, `agent`, `user`, `dataset`, `client`, `kind`,
                `billing`, `service_tier`, `session`, `run`, `status`, `tag:<name>`, and one of `hour`, `day`, `week`
                and `month`. Agent, dataset, effective status and tags are those of the session, the client is that of
                the run. A dimension of time needs both ends of the window.
            since: Used at this time or later.
            until: Used before this time.
            filters: Only the events that match; None: all.
            order_by: A figure: greatest first; or one of `group_by`: in its order. Ties are in the order of the
                dimensions. Names go by their code points, groups without a run, dataset or tag come last.
            limit: The most rows, 1..10,000. `has_more` says whether there are more groups.
            timezone: The name of an IANA time zone, by whose clocks hours, days, weeks (from Monday) and months begin.
            details: At most 64 names of `details` of the events, whose sums are in `details` of each row.

        Raises:
            InvalidValueError: The window may have more than 10,000 hours, days, weeks or months, or another argument is
                refused.
        """
        ...

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
            InvalidValueError: There is no such time zone, the window may have more than 10,000 buckets, its buckets and
                groups make more than 50,000 points, or another argument is refused.
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

    async def cost_by_user_agent(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByUserAgentRow]:
        """The cost of each user's sessions with each type of agent, last active in the window: most expensive first.

        Ties go by the user's id, then by the type. Sessions without a type have None, which comes last. The costs add
        up to `total_spend_usd` of the same window. The list is empty if there are no sessions.
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
            model: Only runs that named this model, in upper or lower case; None: any run.
            client: Only runs of this client; `Unknown`: also runs without a client; None: of any.
            since: Ended at this time or later.
            until: Ended before this time.
        """
        ...

    async def list_telemetry_keys(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[TelemetryKey]:
        """Each combination of provider, model and client of the runs that ended in the window, once.

        The keys are ordered by provider, model and client, None last. A model is in a spelling that was given. The list
        is empty without runs.
        """
        ...


class UsageReports(SessionReportsDb, ABC):
    """The reports that are short forms of `usage`, over one method that finds the groups."""

    @abstractmethod
    async def usage_rows(
        self, viewer: Viewer | UUID | str, question: UsageQuestion, figures: Sequence[str], limit: int
    ) -> tuple[Any, Sequence[Any]]:
        """The row over all groups, and the rows of the groups: up to the limit, and one more."""

    async def usage(
        self,
        viewer: Viewer | UUID | str,
        *,
        group_by: Sequence[Dimension] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        filters: UsageFilters | None = None,
        order_by: str = "cost_usd",
        limit: int = 1000,
        timezone: str = "UTC",
        details: Sequence[str] = (),
    ) -> UsageReport:
        question = UsageQuestion.of_call(
            group_by=group_by,
            since=since,
            until=until,
            filters=UsageFilters() if filters is None else UsageFilters.checked(filters, "filters"),
            order_by=order_by,
            limit=limit,
            timezone=timezone,
            details=details,
        )
        total, rows = await self.usage_rows(viewer, question, FIGURES, question.limit)
        groups = rows[: question.limit] if question.group_by else [total]
        return UsageReport(
            rows=[UsageRow(**_group(row, question), **_figures(row, FIGURES, question)) for row in groups],
            total=UsageFigures(**_figures(total, FIGURES, question)),
            has_more=len(rows) > question.limit,
        )

    async def spend(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> Spend:
        question = UsageQuestion.of_call(since=since, until=until)
        total, _ = await self.usage_rows(viewer, question, tuple(Spend.model_fields), 0)
        return Spend(**_figures(total, Spend.model_fields))

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
        dimensions: list[Dimension] = [series.bucket]
        if series.group_by is not None:
            dimensions.append(series.group_by)
        question = UsageQuestion(
            group_by=tuple(dimensions),
            since=series.since,
            until=series.until,
            timezone=series.timezone,
            order_by=series.bucket,
        )
        figures = [name for name in FIGURES if name in UsagePoint.model_fields]
        _, rows = await self.usage_rows(viewer, question, figures, MOST_POINTS)
        found = {(row.bucket, _name(row, series.group_by)): _figures(row, figures) for row in rows}
        groups = sorted({name for _, name in found if name is not None}) if series.group_by else [None]
        buckets = list(pairwise(question.boundaries))
        if max(len(rows), len(groups) * len(buckets)) > MOST_POINTS:
            expected = f"a longer bucket or a shorter window: at most {MOST_POINTS:,} points of all buckets and groups"
            raise InvalidValueError("bucket", bucket, expected)
        nothing = dict.fromkeys(figures, 0)
        return [
            UsagePoint(starts_at=starts_at, ends_at=ends_at, group=group, **found.get((number, group), nothing))
            for number, (starts_at, ends_at) in enumerate(buckets, 1)
            for group in groups
        ]

    async def tokens_by_class(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> TokensByClass:
        question = UsageQuestion.of_call(since=since, until=until, group_by=["model"], order_by="tokens_in")
        total, rows = await self.usage_rows(viewer, question, TOKENS, MOST_ROWS)
        classes = {row.model: _classes(row) for row in whole_report(rows, until)}
        used = {model: one["tokens_in"] + one["tokens_out"] for model, one in classes.items()}
        by_model = {model: TokenClasses(**classes[model]) for model in sorted(used, key=lambda one: (-used[one], one))}
        return TokensByClass(**_classes(total), by_model={name: one for name, one in by_model.items() if used[name]})


class SqlAlchemySessionReportsDb(UsageReports):
    """`SessionReportsDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, execution: Execution, abandon_after: timedelta) -> None:
        self._execution = execution
        self._abandon_after = abandon_after

    async def cost_by_agent(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByAgentRow]:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer)
        return [CostByAgentRow(**row._asdict()) for row in await self._groups(costs.cost_by_agent, asker, window)]

    async def cost_by_user(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByUserRow]:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer)
        return [CostByUserRow(**row._asdict()) for row in await self._groups(costs.cost_by_user, asker, window)]

    async def cost_by_user_agent(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[CostByUserAgentRow]:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer)
        return [
            CostByUserAgentRow(**row._asdict()) for row in await self._groups(costs.cost_by_user_agent, asker, window)
        ]

    async def session_durations(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> SessionDurations:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer)
        seen = scopes(asker)
        parameters = {**seen.parameters(), **window.model_dump(), "abandon_after": self._abandon_after, "as_of": None}
        statement = session_stats.session_durations(seen.kinds, ends_of(window.since, window.until))
        together, *rows = await self._execution.fetch(statement, parameters, viewer=asker)
        found = {row.key: Durations(**durations_fields(row)) for row in rows}
        by_status = {status: found.get(status, NO_DURATIONS) for status in EffectiveStatus}
        return SessionDurations(**durations_fields(together), by_status=by_status)

    async def listed_session_durations(self, viewer: Viewer, window: Window, most: int) -> Sequence[Any]:
        """The durations of `session_durations`, in the rows of `listed_durations`."""
        seen = scopes(viewer)
        parameters = {**seen.parameters(), **window.model_dump(), "abandon_after": self._abandon_after, "as_of": None}
        statement = session_stats.list_session_durations(seen.kinds, ends_of(window.since, window.until))
        return await self._execution.fetch(statement, {**parameters, "limit": most}, viewer=viewer)

    async def listed_run_durations(self, viewer: Viewer, window: Window, most: int) -> Sequence[Any]:
        """The durations of `run_durations`, in the rows of `listed_durations`."""
        return await self._of_window(run_telemetry.list_run_durations, viewer, window, most)

    async def telemetry_with_durations(self, viewer: Viewer, filters: TelemetryFilters, most: int) -> Any:
        """The row of `telemetry`, with at most so many durations of the runs."""
        return await self._telemetry(viewer, filters, most)

    async def _telemetry(self, viewer: Viewer, filters: TelemetryFilters, most_durations: int | None = None) -> Any:
        seen, parameters = shape_of_viewer(viewer)
        choice, of_choice = shape_of_runs(
            RunChoice(provider=filters.provider, model=filters.model, client=filters.client, include_open=False)
        )
        ends = ends_of(filters.since, filters.until)
        statement = run_telemetry.telemetry(seen, choice, ends, has_durations=most_durations is not None)
        parameters |= {**of_choice, "since": filters.since, "until": filters.until, "limit": most_durations}
        [row] = await self._execution.fetch(statement, parameters, viewer=viewer)
        return row

    async def run_durations(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> RunDurations:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer)
        together, *rows = await self._groups(run_telemetry.run_durations, asker, window)
        return RunDurations(
            **durations_fields(together), by_agent={row.key: Durations(**durations_fields(row)) for row in rows}
        )

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
        row = await self._telemetry(asker, filters)
        figures = {name: figure for name, figure in row._asdict().items() if name in TelemetrySummary.model_fields}
        return TelemetrySummary(**figures, **percentile_fields(row, "duration_{}_ms", 1_000))

    async def list_telemetry_keys(
        self, viewer: Viewer | UUID | str, *, since: datetime | None = None, until: datetime | None = None
    ) -> list[TelemetryKey]:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer)
        rows = await self._groups(run_telemetry.telemetry_keys, asker, window)
        return [TelemetryKey(**row._asdict()) for row in rows]

    async def _groups(self, report: ReportOfWindow, viewer: Viewer, window: Window) -> Sequence[Any]:
        """The rows of a report that takes no limit."""
        return whole_report(await self._of_window(report, viewer, window, MOST_ROWS + 1), window.until)

    async def _of_window(self, report: ReportOfWindow, viewer: Viewer, window: Window, most: int) -> Sequence[Any]:
        """The rows of a report, at most so many."""
        seen, parameters = shape_of_viewer(viewer)
        statement = report(seen, ends_of(window.since, window.until))
        return await self._execution.fetch(
            statement, {**parameters, **window.model_dump(), "limit": most}, viewer=viewer
        )

    async def usage_rows(
        self, viewer: Viewer | UUID | str, question: UsageQuestion, figures: Sequence[str], limit: int
    ) -> tuple[Any, Sequence[Any]]:
        """The row over all groups, and the rows of the groups: up to the limit, and one more."""
        asker = Viewer.of_caller(viewer)
        asked = usage.find_usage(asker, question, self._abandon_after, figures, limit)
        total, *rows = await self._execution.fetch(*asked, viewer=asker)
        return total, rows


def whole_report(rows: Sequence[Any], until: datetime | None) -> Sequence[Any]:
    """The rows of a report that takes no limit. InvalidValueError where there are too many."""
    return whole_answer(rows, "until", until, "a shorter window, or fewer sessions to see", MOST_ROWS)


def _figures(row: Any, names: Iterable[str], question: UsageQuestion | None = None) -> dict[str, Any]:
    """The figures of a row by name, with the details that are asked for."""
    found = {name: getattr(row, name) for name in names}
    if question is not None and question.details:
        found["details"] = {name: getattr(row, f"detail_{number}") for number, name in enumerate(question.details)}
    return found


def _group(row: Any, question: UsageQuestion) -> dict[str, Any]:
    """The fields of a `UsageRow` that say which group the row is about."""
    found = {name: value for name, value in row._asdict().items() if name in GROUP_FIELDS}
    if question.tags:
        found["tags"] = {name: getattr(row, usage.TAG.format(number)) for number, name in enumerate(question.tags)}
    if question.bucket is not None:
        starts_at, ends_at = question.boundaries[row.bucket - 1 : row.bucket + 1]
        found |= {"starts_at": starts_at, "ends_at": ends_at}
    return found


def _name(row: Any, dimension: str | None) -> str | None:
    """The name of a row's group in a series; None without a dimension."""
    if dimension is None:
        return None
    of_group = getattr(
        row, {"agent": "agent_name", "user": "user_id", "dataset": "dataset_id"}.get(dimension, dimension)
    )
    return UNKNOWN_DATASET if of_group is None else str(of_group)


def _classes(row: Any) -> dict[str, int]:
    """The tokens of a row by class: the classes that each count is made of, and then the two counts."""
    tokens_in, tokens_out, cache_read, cache_write, reasoning = (int(getattr(row, name)) for name in TOKENS)
    return {
        "uncached_input_tokens": tokens_in - cache_read - cache_write,
        "cache_read_tokens": cache_read,
        "cache_write_tokens": cache_write,
        "visible_output_tokens": tokens_out - reasoning,
        "reasoning_tokens": reasoning,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
    }


def durations_fields(row: Any) -> dict[str, Any]:
    """The fields of a `Durations` from a row of `durations_of`."""
    return {"count": row.durations, **percentile_fields(row, "{}_s", 1_000_000)}


def percentile_fields(row: Any, field: str, unit_us: int) -> dict[str, Any]:
    """The percentiles of a row by field name, in a unit of `unit_us` microseconds, rounded to whole microseconds."""
    found = {name: getattr(row, name) for name in durations.PERCENTILES}
    return {field.format(name): None if us is None else round(us) / unit_us for name, us in found.items()}
