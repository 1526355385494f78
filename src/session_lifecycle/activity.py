"""Reading activity: session summaries and details, threads, runs, chat histories."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol
from uuid import UUID

from pydantic import TypeAdapter

from session_lifecycle.cursors import answered_page, read_position
from session_lifecycle.errors import InvalidValueError
from session_lifecycle.execution import Execution
from session_lifecycle.models import (
    Lineage,
    Message,
    RunDetail,
    RunFilters,
    RunPage,
    SessionDetail,
    SessionSummary,
    SummaryFilters,
    SummaryPage,
    Thread,
    ThreadPage,
    Viewer,
)
from session_lifecycle.models.activity_reads import ChatHistory, ModelPrefix, OneDetail, ThreadsOfSession, ToolCall
from session_lifecycle.models.pages import DEFAULT_LIMIT
from session_lifecycle.statements import details, lineage, messages, names, runs, sessions, summaries, threads

RUNS = TypeAdapter(list[RunDetail])
MESSAGES = TypeAdapter(list[Message])
THREADS = TypeAdapter(list[Thread])


class SessionActivityDb(Protocol):
    """Reads of what happened in sessions. Each is one statement and so one snapshot.

    A viewer sees the runs, steps and messages of the sessions they see; a session that is not visible is answered like
    one that does not exist. Each raises `InvalidValueError` for a value it refuses, `SchemaError` when the database is
    not migrated, and `DatabaseUnavailableError` when repeating did not help.
    """

    async def find_lineage(self, user_id: UUID, tool_call_id: str) -> Lineage | None:
        """Where a run of this user hangs that begins with the result of a tool call, or None when nobody made it.

        Its parent is the run that made the newest such call, by start, run id and step id; its root is that run's, or
        that run itself.

        Args:
            user_id: Whose runs are looked into, and nobody else's.
            tool_call_id: The call's id.
        """
        ...

    async def list_session_summaries(self, filters: SummaryFilters) -> SummaryPage:
        """A page of the sessions the filters choose, each with its figures; empty when there are none.

        In the order of `order_by`, nulls last both ways, ties by `(user_id, session_id)` in the same direction.

        Raises:
            InvalidValueError: The cursor is not of a page under the same filters.
        """
        ...

    async def get_session_detail(
        self, session_id: str, viewer: Viewer | UUID, *, owner_id: UUID | None = None, project: str | None = None
    ) -> SessionDetail | None:
        """The session with all that belongs to it, or None when there is none the viewer may see.

        Of several with this id: the viewer's own first, then their agents', then the most recently active. Runs are
        ordered by `(started_at, run_id)`, messages by `(created_at, message_id)`.

        Args:
            session_id: The id.
            viewer: Who is asking, or their user id.
            owner_id: The one of this owner, and no other.
            project: Only what belongs to runs of this project; None is answered where the session has none.
        """
        ...

    async def list_threads(
        self,
        session_id: str,
        viewer: Viewer | UUID,
        *,
        owner_id: UUID | None = None,
        limit: int = DEFAULT_LIMIT,
        after: str | None = None,
        before: str | None = None,
    ) -> ThreadPage | None:
        """A page of the session's threads, oldest first; None when there is no such session the viewer may see.

        Threads are ordered by the start and the run id of their roots. Of several sessions with this id it is the one
        `get_session_detail` prefers.

        Args:
            session_id: The session's id.
            viewer: Who is asking, or their user id.
            owner_id: The session of this owner, and no other.
            limit: 1..500.
            after: A thread of the session: those that follow it.
            before: A thread of the session: the nearest before it. Not together with `after`.

        Raises:
            InvalidValueError: The session has no thread `after` or `before`.
        """
        ...

    async def list_runs(self, filters: RunFilters) -> RunPage:
        """A page of the runs the filters choose, each with all that belongs to it; empty when there are none.

        Ordered by `(started_at, run_id, user_id)`. Runs that wait outside of any session are seen by their owner, by
        whoever has the owner as an agent, and by the auditor.

        Raises:
            InvalidValueError: The cursor is not of a page under the same filters.
        """
        ...

    async def list_models(self, viewer: Viewer | UUID, prefix: str = "") -> list[str]:
        """The models of visible runs that have ended, each once, sorted.

        Args:
            viewer: Who is asking, or their user id.
            prefix: What they begin with, to the letter.
        """
        ...

    async def list_clients(self, viewer: Viewer | UUID) -> list[str]:
        """The clients of visible runs that have ended, each once, sorted; `Unknown` for runs that named none."""
        ...

    async def list_agents(self, viewer: Viewer | UUID) -> list[str]:
        """The agents of visible sessions and of visible runs, each once, sorted."""
        ...

    async def chat_history(
        self,
        session_id: str,
        viewer: Viewer | UUID,
        *,
        owner_id: UUID | None = None,
        limit: int | None = None,
        max_characters: int | None = None,
    ) -> list[Message]:
        """The newest messages of the session that fit, oldest first; empty when there are none to see.

        Args:
            session_id: The id; of several sessions, the one `get_session_detail` prefers.
            viewer: Who is asking, or their user id.
            owner_id: The session of this owner, and no other.
            limit: How many at most.
            max_characters: How many characters they may have together. No message is cut, and none is left out between
                two others: where the newest does not fit, there is none.
        """
        ...


class SqlAlchemySessionActivityDb:
    """`SessionActivityDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, primary: Execution, reading: Execution, abandon_after: timedelta) -> None:
        self._primary = primary
        self._reading = reading
        self._abandon_after = abandon_after

    async def find_lineage(self, user_id: UUID, tool_call_id: str) -> Lineage | None:
        """See `SessionActivityDb`."""
        call = ToolCall.of_call(user_id=user_id, tool_call_id=tool_call_id)
        rows = await self._primary.fetch(lineage.find_lineage(call.user_id, call.tool_call_id))
        return Lineage(**rows[0]._mapping) if rows else None

    async def list_session_summaries(self, filters: SummaryFilters) -> SummaryPage:
        """See `SessionActivityDb`."""
        if not isinstance(filters, SummaryFilters):
            raise InvalidValueError("filters", filters, "a SummaryFilters")
        order = sessions.order_of(filters.order_column)
        position = read_position(filters, order)
        rows = await self._reading.fetch(*summaries.list_summaries(filters, position, self._abandon_after))
        page, told = answered_page(rows, order, filters)
        return SummaryPage(sessions=[_summary(row) for row in page], **told)

    async def get_session_detail(
        self, session_id: str, viewer: Viewer | UUID, *, owner_id: UUID | None = None, project: str | None = None
    ) -> SessionDetail | None:
        """See `SessionActivityDb`."""
        wanted = OneDetail.of_call(session_id=session_id, owner_id=owner_id, project=project)
        statement = details.get_session_detail(
            wanted.session_id,
            Viewer.of_caller(viewer),
            owner_id=wanted.owner_id,
            project=wanted.project,
            abandon_after=self._abandon_after,
        )
        rows = await self._reading.fetch(statement)
        if not rows:
            return None
        [row] = rows
        return SessionDetail(
            summary=_summary(row),
            runs=RUNS.validate_json(row.runs),
            messages=MESSAGES.validate_json(row.messages),
        )

    async def list_threads(
        self,
        session_id: str,
        viewer: Viewer | UUID,
        *,
        owner_id: UUID | None = None,
        limit: int = DEFAULT_LIMIT,
        after: str | None = None,
        before: str | None = None,
    ) -> ThreadPage | None:
        """See `SessionActivityDb`."""
        wanted = ThreadsOfSession.of_call(
            session_id=session_id, owner_id=owner_id, limit=limit, after=after, before=before
        )
        statement = threads.list_threads(
            wanted.session_id,
            Viewer.of_caller(viewer),
            owner_id=wanted.owner_id,
            limit=wanted.limit,
            after=wanted.after,
            before=wanted.before,
            abandon_after=self._abandon_after,
        )
        rows = await self._reading.fetch(statement)
        if not rows:
            return None
        [row] = rows
        if not row.is_anchored:
            field = "after" if wanted.before is None else "before"
            raise InvalidValueError(field, getattr(wanted, field), "a thread of this session")
        found = THREADS.validate_json(row.threads)
        # The one too many is the farthest, and they are all oldest first.
        page = found[: wanted.limit] if wanted.before is None else found[-wanted.limit :]
        return ThreadPage(threads=page, session=_summary(row), has_more=len(found) > wanted.limit)

    async def list_runs(self, filters: RunFilters) -> RunPage:
        """See `SessionActivityDb`."""
        if not isinstance(filters, RunFilters):
            raise InvalidValueError("filters", filters, "a RunFilters")
        position = read_position(filters, runs.RUN_ORDER)
        rows = await self._reading.fetch(runs.list_runs(filters, position))
        page, told = answered_page(rows, runs.RUN_ORDER, filters)
        return RunPage(runs=[RunDetail.model_validate_json(row.body) for row in page], **told)

    async def list_models(self, viewer: Viewer | UUID, prefix: str = "") -> list[str]:
        """See `SessionActivityDb`."""
        wanted = ModelPrefix.of_call(prefix=prefix)
        return _names(await self._reading.fetch(names.list_models(Viewer.of_caller(viewer), wanted.prefix)))

    async def list_clients(self, viewer: Viewer | UUID) -> list[str]:
        """See `SessionActivityDb`."""
        return _names(await self._reading.fetch(names.list_clients(Viewer.of_caller(viewer))))

    async def list_agents(self, viewer: Viewer | UUID) -> list[str]:
        """See `SessionActivityDb`."""
        return _names(await self._reading.fetch(names.list_agents(Viewer.of_caller(viewer))))

    async def chat_history(
        self,
        session_id: str,
        viewer: Viewer | UUID,
        *,
        owner_id: UUID | None = None,
        limit: int | None = None,
        max_characters: int | None = None,
    ) -> list[Message]:
        """See `SessionActivityDb`."""
        wanted = ChatHistory.of_call(
            session_id=session_id, owner_id=owner_id, limit=limit, max_characters=max_characters
        )
        statement = messages.chat_history(
            wanted.session_id,
            Viewer.of_caller(viewer),
            owner_id=wanted.owner_id,
            limit=wanted.limit,
            max_characters=wanted.max_characters,
        )
        rows = await self._primary.fetch(statement)
        return [Message(**row._mapping) for row in rows]


def _summary(row: Any) -> SessionSummary:
    figures = SessionSummary.model_fields.keys() - {"record"}
    return SessionSummary(record=sessions.record_of(row), **{name: getattr(row, name) for name in figures})


def _names(rows: Sequence[Any]) -> list[str]:
    return [row.name for row in rows]
