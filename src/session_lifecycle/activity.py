"""Reading activity: session summaries and details, threads, runs, usage events, chat histories."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from pydantic import TypeAdapter

from session_lifecycle.errors import InvalidValueError, SessionLifecycleError
from session_lifecycle.models import (
    Lineage,
    Message,
    RecentActivity,
    RunDetail,
    RunFilters,
    RunPage,
    SessionDetail,
    SessionSummary,
    Step,
    SummaryFilters,
    SummaryPage,
    Thread,
    ThreadPage,
    UsageEventFilters,
    UsageEventPage,
    Viewer,
)
from session_lifecycle.models.fields import model_key
from session_lifecycle.models.pages import DEFAULT_LIMIT, MOST_PARTS, MOST_ROWS, MOST_TEXT_BYTES
from session_lifecycle.models.run_filters import ModelPrefix, ToolCall
from session_lifecycle.models.session_details import (
    MOST_MESSAGES,
    MOST_RUNS,
    ChatHistory,
    OneDetail,
    RecentlyOfSession,
    ThreadsOfSession,
)
from session_lifecycle.pages import PageRows, answered_page, page_rows, read_position, whole_answer
from session_lifecycle.postgres.driver_statements import KeptStatement
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.postgres.failures import is_too_large
from session_lifecycle.statements.activity import (
    distinct_names,
    lineage,
    messages,
    recent_activity,
    runs,
    session_detail,
    summaries,
    threads,
    usage_events,
)
from session_lifecycle.statements.sessions import records
from session_lifecycle.statements.shared.json_rows import read_json
from session_lifecycle.statements.shared.model_names import ends_of_prefix
from session_lifecycle.statements.shared.paging import Position
from session_lifecycle.statements.shared.visibility import shape_of_viewer

RUNS = TypeAdapter(list[RunDetail])
MESSAGES = TypeAdapter(list[Message])
STEPS = TypeAdapter(list[Step])
THREADS = TypeAdapter(list[Thread])

NEAREST = (timedelta(hours=1), timedelta(days=1), timedelta(days=30))
"""How far from its beginning a page of everybody's events is looked for, before it is looked for in all of them."""
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


class SessionActivityDb(Protocol):
    """Reads what happened in sessions.

    Each answer is that of one statement, and so of one snapshot. `find_lineage` and `chat_history` read the primary;
    the other calls may read a replica, which lags behind. A viewer sees the runs, steps and messages of visible
    sessions. A session that the viewer may not see is answered like one that does not exist.
    """

    async def find_lineage(self, user_id: UUID | str, tool_call_id: str) -> Lineage | None:
        """The parent and the root of a run that begins with the result of a tool call; None if no step has the call.

        The parent is the run of the newest step with this tool call; of steps of one moment, the last recorded. The
        root is the parent's root, or the parent itself if it has none.

        Args:
            user_id: The user. Only this user's steps are searched.
            tool_call_id: The id of the tool call.

        Raises:
            InvalidValueError: An argument is refused.
        """
        ...

    async def list_session_summaries(self, filters: SummaryFilters) -> SummaryPage:
        """A page of the sessions that match the filters, each with its figures; an empty page if there are none.

        The sessions are in the order of `order_by`, nulls last in both directions, ties by `(user_id, session_id)` in
        the same direction. Beside the orders of `list_session_rows` there is `last_prompt_at`.

        Raises:
            InvalidValueError: `filters` is no `SummaryFilters`, or its cursor is not of a page under the same filters.
        """
        ...

    async def get_session_detail(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        project: str | None = None,
        limit: int = MOST_RUNS,
        offset: int = 0,
        payloads: bool = True,
        steps_limit: int | None = None,
    ) -> SessionDetail | None:
        """The session with its figures, runs and messages; None if there is none that the viewer may see.

        Runs are ordered by their start, messages by the time of their creation; what happened at one moment is in the
        order in which it was recorded. The figures always cover the whole session. If several users have a
        session with this id, the viewer's own comes first, then one of the viewer's agents, then the most recently
        active one.

        Args:
            session_id: The session's id.
            viewer: The viewer, or the viewer's user id.
            owner_id: Only the session of this owner; None: of any owner.
            project: Only the runs of this project, their messages, and figures over them. If the session has no such
                run, the call returns None.
            limit: The most runs, and the most messages, 1..1,000. `has_more_runs` and `has_more_messages` say whether
                more of them follow.
            offset: How many runs, and how many messages, are left out at the beginning.
            payloads: Whether the payloads of runs and steps are there: their `input`, `inputs`, `output`, `prompt` and
                `errors`. Where those of the page are more than 8 MiB as they are stored, they are left out, and
                `has_payloads` is false: ask with a lower `limit` or `steps_limit`, or with `list_runs`.
            steps_limit: The most steps of each run, 1..50,000, the first ones in their order; None: all. `steps_count`
                of the run counts all of them. `list_runs` has the others, in pages.

        Raises:
            InvalidValueError: An argument is refused, or the answer would be larger than Postgres can build, which is
                1 GB: ask with a lower `limit` or `steps_limit`, or without `payloads`.
        """
        ...

    async def get_recent_activity(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int = 20,
    ) -> RecentActivity | None:
        """The session with its label, and its newest messages and tool calls; None if the viewer may see none.

        Messages are ordered by the time of their creation, tool calls by their start and then by `seq`; those of one
        moment are in the order of recording. The oldest comes first. If several users have a session with this id, the
        call chooses as `get_session_detail` does.

        Args:
            session_id: The session's id.
            viewer: The viewer, or the viewer's user id.
            owner_id: Only the session of this owner; None: of any owner.
            limit: The most messages, and the most tool calls, 1..500. Where the payloads of the tool calls are more
                than 8 MiB as they are stored, they are left out, and `has_payloads` is false.

        Raises:
            InvalidValueError: An argument is refused, or the messages have more than 128 MiB in UTF-8: ask with a lower
                `limit`.
        """
        ...

    async def list_threads(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int = DEFAULT_LIMIT,
        after: str | None = None,
        before: str | None = None,
    ) -> ThreadPage | None:
        """A page of the session's threads, oldest first; None if there is no such session that the viewer may see.

        Threads are ordered by the start of their roots, those of one moment in the order of recording. For a root in
        another session, the start of the thread's earliest run in this session counts. The page is empty if no thread
        is left. If several users have a session with this id, the call chooses as `get_session_detail` does.

        Args:
            session_id: The session's id.
            viewer: The viewer, or the viewer's user id.
            owner_id: Only the session of this owner; None: of any owner.
            limit: The most threads of the page, 1..500. Where the payloads of its tool calls are more than 8 MiB as
                they are stored, they are left out, and `has_payloads` is false.
            after: The id of a thread of the session: the page begins with the next thread.
            before: The id of a thread of the session: the page ends with the thread before it. Not together with
                `after`.

        Raises:
            InvalidValueError: The session has no thread with the id `after` or `before`, an argument is refused, or the
                page would be larger than 1 GB: ask with a lower `limit`.
        """
        ...

    async def list_runs(self, filters: RunFilters) -> RunPage:
        """A page of the runs that match the filters, each with its steps, events and messages.

        The runs are ordered by their start, those of one moment in the order of recording. The page is empty if there
        are none. A run outside a session is visible to its owner, to a viewer who has the owner as an agent, and to the
        auditor. With `steps_limit` and `steps_offset`, each run has a page of its steps, and `steps_count` counts all.

        Raises:
            InvalidValueError: `filters` is no `RunFilters`, or its cursor is not of a page under the same filters.
        """
        ...

    async def list_usage_events(self, filters: UsageEventFilters) -> UsageEventPage:
        """A page of the ledger's events that match the filters, with every column; an empty page if there are none.

        The events are in the order of their time of use, those of one moment in the order of recording. An event that
        was replaced has the place of its last revision. Ties of `recorded_at`, which only concurrent calls can have, go
        by `(user_id, session_id, event_id)`. A page has at most 500 events. The viewer sees the
        events of visible sessions, also late events and those outside a run. A row that adjusts the cost of a run is
        among them, with the `key_scope` `run`. Each page reads the part of the ledger that the session or the window
        has, so give one of them. An auditor's page without a total reads the events next to its beginning first, so a
        walk through the whole ledger takes no longer for each page than for the first.

        Raises:
            InvalidValueError: `filters` is no `UsageEventFilters`, or its cursor is not of a page under the same
                filters.
        """
        ...

    async def list_models(self, viewer: Viewer | UUID | str, prefix: str = "") -> list[str]:
        """The models of visible runs that have ended: each once, sorted; empty if there are none.

        Names that differ in case only are one model, shown in a spelling that was given.

        Args:
            viewer: The viewer, or the viewer's user id.
            prefix: Only models whose name begins with this text, in upper or lower case.

        Raises:
            InvalidValueError: An argument is refused, or there are more than 50,000 models.
        """
        ...

    async def list_clients(self, viewer: Viewer | UUID | str) -> list[str]:
        """The clients of visible runs that have ended: each once, sorted; empty if there are none.

        A run without a client has the client `Unknown`.

        Raises:
            InvalidValueError: `viewer` is neither a `Viewer` nor a user id, or there are more than 50,000 clients.
        """
        ...

    async def list_agents(self, viewer: Viewer | UUID | str) -> list[str]:
        """The agents of visible sessions and of visible runs: each once, sorted; empty if there are none.

        Raises:
            InvalidValueError: `viewer` is neither a `Viewer` nor a user id, or there are more than 50,000 agents.
        """
        ...

    async def chat_history(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int | None = None,
        max_characters: int | None = None,
        exclude_run_id: str | None = None,
    ) -> list[Message]:
        """The newest messages of the session that fit into all limits, oldest first.

        The messages are ordered by the time of their creation, those of one moment in the order of recording. The list
        is empty if the session has no messages, or if there is no such session that the viewer may see.

        Args:
            session_id: The session's id. If several users have a session with this id, the call chooses as
                `get_session_detail` does.
            viewer: The viewer, or the viewer's user id.
            owner_id: Only the session of this owner; None: of any owner.
            limit: The most messages, 1..10,000; None: 10,000. `get_session_detail` has all messages, in pages.
            max_characters: The most characters of all messages together, at least 0; None: no such limit. Together they
                also have at most 128 MiB in UTF-8, which every single message has room in. No message is cut, and no
                message between two others is left out. If the newest message does not fit, the list is empty.
            exclude_run_id: Without the messages of this run, such as the run that asks; None: of all runs.

        Raises:
            InvalidValueError: An argument is refused.
        """
        ...


LESS = "a viewer who sees less"
FEWER_STEPS = "a lower limit or steps_limit"


class SqlAlchemySessionActivityDb(SessionActivityDb):
    """`SessionActivityDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, primary: Execution, reading: Execution, abandon_after: timedelta) -> None:
        self._primary = primary
        self._reading = reading
        self._abandon_after = abandon_after

    async def find_lineage(self, user_id: UUID | str, tool_call_id: str) -> Lineage | None:
        call = ToolCall.of_call(user_id=user_id, tool_call_id=tool_call_id)
        rows = await self._primary.fetch(lineage.find_lineage(), call.model_dump(), viewer=Viewer(call.user_id))
        return Lineage(**rows[0]._asdict()) if rows else None

    async def list_session_summaries(self, filters: SummaryFilters) -> SummaryPage:
        filters = SummaryFilters.checked(filters, "filters")
        order = summaries.order_of(filters)
        position = read_position(filters, order)
        page, of_page = answered_page(await self.summary_rows(filters, position), order, filters)
        return SummaryPage(sessions=[summary_of(row) for row in page], **of_page)

    async def summary_rows(self, filters: SummaryFilters, position: Position | None) -> PageRows:
        """The rows of `list_session_summaries` after the position."""
        asked = summaries.list_summaries(filters, position, self._abandon_after)
        return page_rows(await self._reading.fetch(*asked, viewer=filters.asker))

    async def get_session_detail(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        project: str | None = None,
        limit: int = MOST_RUNS,
        offset: int = 0,
        payloads: bool = True,
        steps_limit: int | None = None,
    ) -> SessionDetail | None:
        wanted = OneDetail.of_call(
            session_id=session_id,
            owner_id=owner_id,
            project=project,
            limit=limit,
            offset=offset,
            payloads=payloads,
            steps_limit=steps_limit,
        )
        asker = Viewer.of_caller(viewer)
        statement, parameters = session_detail.find_session_detail(wanted, asker, self._abandon_after)
        rows = await self._page(asker, statement, parameters, wanted.limit, FEWER_STEPS)
        if not rows:
            return None
        [row] = rows
        summary, found = summary_of(row), RUNS.validate_json(row.runs)
        said = MESSAGES.validate_json(row.messages)
        return SessionDetail(
            summary=summary,
            runs=found,
            messages=said,
            has_more_runs=wanted.offset + len(found) < summary.runs_count,
            has_more_messages=wanted.offset + len(said) < summary.messages_count,
            has_payloads=row.has_payloads,
        )

    async def get_recent_activity(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int = 20,
    ) -> RecentActivity | None:
        wanted = RecentlyOfSession.of_call(session_id=session_id, owner_id=owner_id, limit=limit)
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        statement = recent_activity.get_recent_activity(
            seen, has_owner_id=wanted.owner_id is not None, abandon_after=self._abandon_after
        )
        parameters |= {**wanted.model_dump(), "as_of": None}
        rows = await self._page(asker, statement, parameters, wanted.limit)
        if not rows:
            return None
        [row] = rows
        return RecentActivity(
            session=records.row_of(row),
            label=row.label,
            messages_count=row.messages_count,
            tool_calls_count=row.tool_calls_count,
            messages=MESSAGES.validate_json(row.messages),
            tool_calls=STEPS.validate_json(row.tool_calls),
            has_payloads=row.has_payloads,
        )

    async def list_threads(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int = DEFAULT_LIMIT,
        after: str | None = None,
        before: str | None = None,
    ) -> ThreadPage | None:
        wanted = ThreadsOfSession.of_call(
            session_id=session_id, owner_id=owner_id, limit=limit, after=after, before=before
        )
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        anchor = wanted.after if wanted.before is None else wanted.before
        statement = threads.list_threads(
            seen,
            has_owner_id=wanted.owner_id is not None,
            has_anchor=anchor is not None,
            backwards=wanted.before is not None,
            abandon_after=self._abandon_after,
        )
        # One thread more says whether others follow.
        parameters |= {**wanted.model_dump(), "anchor": anchor, "limit": wanted.limit + 1, "as_of": None}
        rows = await self._page(asker, statement, parameters, wanted.limit)
        if not rows:
            return None
        [row] = rows
        if not row.is_anchored:
            field = "after" if wanted.before is None else "before"
            raise InvalidValueError(field, getattr(wanted, field), "a thread of this session")
        found = THREADS.validate_json(row.threads)
        # All are oldest first. The one beyond the limit is the farthest from the anchor: the last, or with `before` the
        # first.
        page = found[: wanted.limit] if wanted.before is None else found[-wanted.limit :]
        return ThreadPage(
            threads=page,
            session=summary_of(row),
            has_more=len(found) > wanted.limit,
            has_payloads=row.has_payloads,
        )

    async def list_runs(self, filters: RunFilters) -> RunPage:
        filters = RunFilters.checked(filters, "filters")
        rows = await self.run_rows(filters, read_position(filters, runs.RUN_ORDER))
        page, of_page = answered_page(rows, runs.RUN_ORDER, filters)
        return run_page(page, of_page)

    async def run_rows(self, filters: RunFilters, position: Position | None) -> PageRows:
        """The rows of `list_runs` after the position."""
        asked = runs.list_runs(filters, position)
        return page_rows(await self._page(filters.asker, *asked, filters.limit, FEWER_STEPS))

    async def list_usage_events(self, filters: UsageEventFilters) -> UsageEventPage:
        filters = UsageEventFilters.checked(filters, "filters")
        position = read_position(filters, usage_events.USE_ORDER)
        rows = await self.usage_event_rows(filters, position)
        page, of_page = answered_page(rows, usage_events.USE_ORDER, filters)
        return UsageEventPage(events=[usage_events.event_of(row) for row in page], **of_page)

    async def usage_event_rows(self, filters: UsageEventFilters, position: Position | None) -> PageRows:
        """The rows of `list_usage_events` after the position."""
        for nearest in _nearest_events(filters, position):
            found = await self._usage_event_rows(nearest, position)
            if len(found.rows) > filters.limit:
                return found  # what was used farther away comes after these
        return await self._usage_event_rows(filters, position)

    async def _usage_event_rows(self, filters: UsageEventFilters, position: Position | None) -> PageRows:
        asked = usage_events.list_usage_events(filters, position)
        return page_rows(await self._reading.fetch(*asked, viewer=filters.asker))

    async def list_models(self, viewer: Viewer | UUID | str, prefix: str = "") -> list[str]:
        wanted = ModelPrefix.of_call(prefix=prefix)
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        parameters["prefix"], parameters["prefix_end"] = ends_of_prefix(wanted.prefix)
        statement = distinct_names.list_models(seen, has_prefix=bool(wanted.prefix))
        return await self._names(asker, statement, parameters, "prefix", wanted.prefix, "a longer prefix")

    async def list_clients(self, viewer: Viewer | UUID | str) -> list[str]:
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        return await self._names(asker, distinct_names.list_clients(seen), parameters, "viewer", asker, LESS)

    async def list_agents(self, viewer: Viewer | UUID | str) -> list[str]:
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        return await self._names(asker, distinct_names.list_agents(seen), parameters, "viewer", asker, LESS)

    async def chat_history(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int | None = None,
        max_characters: int | None = None,
        exclude_run_id: str | None = None,
    ) -> list[Message]:
        wanted = ChatHistory.of_call(
            session_id=session_id,
            owner_id=owner_id,
            limit=limit,
            max_characters=max_characters,
            exclude_run_id=exclude_run_id,
        )
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        statement = messages.chat_history(
            seen,
            has_owner_id=wanted.owner_id is not None,
            has_max_characters=wanted.max_characters is not None,
            excludes_run=wanted.exclude_run_id is not None,
        )
        parameters |= {**wanted.model_dump(), "most_bytes": MOST_TEXT_BYTES}
        if wanted.limit is None:
            parameters["limit"] = MOST_MESSAGES
        if wanted.max_characters is not None:
            # No text has more characters than bytes.
            parameters["max_characters"] = min(wanted.max_characters, MOST_TEXT_BYTES)
        rows = await self._primary.fetch(statement, parameters, viewer=asker)
        return [Message(**row._asdict()) for row in rows]

    async def _names(
        self,
        viewer: Viewer,
        statement: KeptStatement,
        parameters: dict[str, Any],
        field: str,
        given: Any,
        narrower: str,
    ) -> list[str]:
        """The names of a list that takes no limit."""
        rows = await self._reading.fetch(statement, {**parameters, "limit": MOST_ROWS + 1}, viewer=viewer)
        return [row.name for row in whole_answer(rows, field, given, narrower, MOST_ROWS)]

    async def _page(
        self,
        viewer: Viewer,
        statement: KeptStatement,
        parameters: dict[str, Any],
        limit: int,
        less: str = "a lower limit",
    ) -> Sequence[Any]:
        """The rows of a page. A page beyond the bounds, or that Postgres cannot build, is refused."""
        try:
            rows = await self._reading.fetch(statement, parameters, viewer=viewer)
        except SessionLifecycleError as error:
            if not is_too_large(error):
                raise
            expected = f"{less}: the parts of this page are larger than 1 GB, which Postgres cannot put into one"
            raise InvalidValueError("limit", limit, expected) from error
        if rows and not rows[0].is_within:
            most = f"{MOST_PARTS:,} steps, messages and events in its runs, and {MOST_TEXT_BYTES // 2**20} MiB of text"
            raise InvalidValueError("limit", limit, f"{less}: at most {most} in one answer")
        return rows


def _nearest_events(filters: UsageEventFilters, position: Position | None) -> Iterator[UsageEventFilters]:
    """Filters for the events next to where the page begins, of a longer time each; none where they would save nothing.

    The index on the time of use finds the events of a window, and has no order. To sort all events of everybody for one
    page takes seconds of a million, and so would each page of a walk.
    """
    is_found_by_index = any((filters.session_id, filters.run_id, filters.owner_id, filters.dataset_id))
    start = filters.since
    if position is not None:
        start = position.value
    elif filters.descending:
        start = filters.until or datetime.now(UTC)
    if start is None or is_found_by_index or not filters.asker.sees_all or filters.total != "none":
        return
    first, last = filters.since or _EARLIEST, filters.until or _LATEST
    for length in NEAREST:
        if filters.descending and start - first > length:
            yield filters.model_copy(update={"since": start - length})
        elif not filters.descending and last - start > length:
            yield filters.model_copy(update={"until": start + length})


def run_page(rows: Sequence[Any], of_page: dict[str, Any]) -> RunPage:
    """The page from rows of `run_rows` and the other fields of a page."""
    has_payloads = all(row.has_payloads for row in rows)
    return RunPage(runs=[RunDetail.model_validate_json(row.body) for row in rows], has_payloads=has_payloads, **of_page)


_SUMMARY_FIGURES = tuple(SessionSummary.model_fields.keys() - {"record", "models", "metadata"})


def summary_of(row: Any) -> SessionSummary:
    """The summary from a row of `summary_rows`."""
    # Of the spellings of a model the first one stays.
    models = {model_key(name): name for name in reversed(row.models)}
    fields = {name: getattr(row, name) for name in _SUMMARY_FIGURES}
    fields |= {
        "record": records.record_of(row),
        "models": sorted(models.values()),
        "metadata": read_json(row.metadata),
    }
    return SessionSummary.model_validate(fields)
