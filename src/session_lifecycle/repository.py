"""Sessions and their usage: the protocol hosts type against, and the one implementation.

A call makes values of `models` from its arguments, builds a statement of `statements` from the values, and runs the
statement with `postgres.execution`.
"""

import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from functools import partial
from typing import Any, Protocol, Unpack
from uuid import UUID

from pydantic_core import to_json

from session_lifecycle.models import (
    CostByModelRow,
    FamilyFigures,
    SessionAnnotation,
    SessionChanges,
    SessionFigures,
    SessionListFilters,
    SessionListPage,
    SessionRecord,
    SessionRowWithStatus,
    SessionStats,
    Touch,
    Viewer,
)
from session_lifecycle.models.annotations import MOST_ANNOTATIONS, Annotating, AnnotationsOfSession
from session_lifecycle.models.pages import MOST_ROWS
from session_lifecycle.models.session_filters import OneSession, Window
from session_lifecycle.models.sessions import SessionUpdate
from session_lifecycle.pages import PageRows, answered_page, page_rows, read_position, whole_answer
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.statements.reports import costs
from session_lifecycle.statements.roll_ups import session_stats
from session_lifecycle.statements.sessions import annotations, descendants, few_listing, listing, records
from session_lifecycle.statements.sessions.changes import annotate_session, update_session
from session_lifecycle.statements.shared.few import Bound, bound, few_parameters
from session_lifecycle.statements.shared.further_totals import FURTHER_TOTALS, parsed
from session_lifecycle.statements.shared.kept import KeptStatement
from session_lifecycle.statements.shared.paging import Position
from session_lifecycle.statements.shared.visibility import ScopeKinds, ViewerShape, scopes, shape_of_viewer
from session_lifecycle.statements.shared.window import Ends, ends_of
from session_lifecycle.writing.calls import CallsAsItems
from session_lifecycle.writing.payload_policy import PayloadPolicy
from session_lifecycle.writing.pipeline import WritePipeline
from session_lifecycle.writing.protocol import SessionWriter

AVERAGE_DECIMALS = Decimal("1e-10")

LOOK_AGAIN_SECONDS = 60.0
"""For how long a database that was too large for a statement for few sessions is not asked one."""

Asked = tuple[KeptStatement, dict[str, Any]]
"""A kept statement, and the values of its parameters."""


class SessionLifecycleDb(SessionWriter, Protocol):
    """Writes sessions, and has the reads that every host needs.

    The answer of each call below comes from one statement, and so from one snapshot. `get_session_row`,
    `list_annotations`, `update_session` and `annotate_session` use the primary; the other reads may read a replica,
    which lags behind. A session that the viewer may not see is answered like one that does not exist.

    `update_session` and `annotate_session` are idempotent. A call that fails for a passing reason is retried, except
    inside a host's transaction. Every call raises:

    - `InvalidValueError`: it refuses an argument.
    - `SchemaError`: the schema is not migrated, or does not serve this version.
    - `DatabaseUnavailableError`: the database cannot be reached or did not answer, also after the retries.
    - `TransactionConflictError`: the call lost conflicts with concurrent transactions, also after the retries; or the
      host's transaction is not READ COMMITTED.
    """

    async def update_session(
        self, session_id: str, user_id: UUID | str, **changes: Unpack[SessionChanges]
    ) -> SessionRecord | None:
        """Replaces fields of the session, in any status. The call is no activity: no time and no total changes.

        A field that is given replaces what is there; None empties it. A field that is not given stays. Without a
        `dataset_id` nobody sees the session through a dataset any more. The host's redaction sees the fields as those
        of a `Touch`.

        Args:
            session_id: The session's id.
            user_id: The owner.
            **changes: `title`, `metadata`, `tags`, `dataset_id`, `agent_name`, `parent_session_id`.

        Returns:
            The session afterwards; None if the user has no session with this id.

        Raises:
            InvalidValueError: An argument is refused, or the parent descends from the session; nothing was written.
        """
        ...

    async def annotate_session(
        self,
        session_id: str,
        user_id: UUID | str,
        name: str,
        *,
        score: float | None = None,
        label: str | None = None,
        comment: str | None = None,
        annotator: str | None = None,
        at: datetime | None = None,
    ) -> SessionAnnotation | None:
        """Writes down how the session went. It replaces the annotation with the same name and annotator, if any.

        The call is no activity of the session. The host's redaction does not see annotations. They are deleted with
        their session, and when it is anonymised.

        Args:
            session_id: The session's id.
            user_id: The owner of the session.
            name: What the annotation is about, such as `quality`: 1..200 characters. Together with the session's id and
                the annotator it has at most 2,600 bytes.
            score: A number, such as a grade.
            label: A short text, such as `resolved`: at most 200 characters.
            comment: A text of at most 10,000 characters.
            annotator: Who says it: at most 200 characters. None: nobody is named.
            at: When it was said: aware, and at most five minutes ahead of the database's clock. None: now, by that
                clock.

        Returns:
            The annotation; None if the user has no session with this id.

        Raises:
            InvalidValueError: An argument is refused; nothing was written.
        """
        ...

    async def list_annotations(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[SessionAnnotation]:
        """The annotations of the session by name, then by annotator, those without an annotator first.

        The list is empty if there are none, or if there is no such session that the viewer may see. If several users
        have a session with this id, the call chooses as `get_session_row` does.

        Args:
            session_id: The session's id.
            viewer: The viewer, or the viewer's user id.
            owner_id: Only the session of this owner; None: of any owner.
            limit: The most annotations, 1..1,000; None: all, which are refused where there are more than 1,000.
            offset: How many annotations are left out at the beginning.

        Raises:
            InvalidValueError: An argument is refused, or there are too many annotations for one answer.
        """
        ...

    async def get_family_figures(
        self, session_id: str, viewer: Viewer | UUID | str, *, owner_id: UUID | str | None = None
    ) -> FamilyFigures | None:
        """The session's own figures, and the figures of the session with its descendants; None without the session.

        The descendants are all sessions of the same owner whose `parent_session_id` leads to this one. Each is counted
        once, and only if the viewer may see it. If several users have a session with this id, the call chooses as
        `get_session_row` does.

        Args:
            session_id: The session's id.
            viewer: The viewer, or the viewer's user id.
            owner_id: Only the session of this owner; None: of any owner.

        Raises:
            InvalidValueError: An argument is refused.
        """
        ...

    async def get_session_row(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        prefer_other_owner: bool = False,
        *,
        owner_id: UUID | str | None = None,
    ) -> SessionRowWithStatus | None:
        """The session with this id and its effective status; None if there is none that the viewer may see.

        If several users have a session with this id, the viewer's own comes first, then one of the viewer's agents,
        then the most recently active one.

        Args:
            session_id: The session's id.
            viewer: The viewer, or the viewer's user id.
            permitted_dataset_ids: The datasets that a viewer given as a user id may read. Must be empty beside a
                `Viewer`, which has its own.
            prefer_other_owner: Whether a session that is not the viewer's own comes before the viewer's own.
            owner_id: Only the session of this owner; None: of any owner.

        Raises:
            InvalidValueError: An argument is refused.
        """
        ...

    async def list_session_rows(self, filters: SessionListFilters) -> SessionListPage:
        """A page of the sessions that match the filters; an empty page if there are none.

        The sessions are in the order of `order_by`, nulls last in both directions, ties by `(user_id, session_id)` in
        the same direction. An unknown `order_by` falls back to `last_activity_at`.

        Raises:
            InvalidValueError: `filters` is no `SessionListFilters`, or its cursor is not of a page under the same
                filters.
        """
        ...

    async def aggregate_stats(
        self,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> SessionStats:
        """Figures over all visible sessions that were last active in `[since, until)`. Money is USD.

        Without sessions every figure is zero, but for a `success_rate` of 1.0.

        Args:
            viewer: The viewer, or the viewer's user id.
            permitted_dataset_ids: The datasets that a viewer given as a user id may read. Must be empty beside a
                `Viewer`, which has its own.
            since: Last active at this time or later; None: no limit.
            until: Last active before this time; None: no limit.

        Raises:
            InvalidValueError: An argument is refused: `until` is before `since`, for example.
        """
        ...

    async def cost_by_model(
        self,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> list[CostByModelRow]:
        """The cost in USD of each model over the visible sessions that were last active in `[since, until)`.

        The most expensive model comes first, ties by name; empty if there is no usage. Usage without a model is
        `unknown`. The costs add up to `total_spend_usd` of the same window.

        Args:
            viewer: The viewer, or the viewer's user id.
            permitted_dataset_ids: The datasets that a viewer given as a user id may read. Must be empty beside a
                `Viewer`, which has its own.
            since: Last active at this time or later; None: no limit.
            until: Last active before this time; None: no limit.

        Raises:
            InvalidValueError: An argument is refused: `until` is before `since`, for example; or there are more than
                50,000 models.
        """
        ...


class KnownSize:
    """What the last statements for few sessions said about the size of a database."""

    def __init__(self) -> None:
        self._exceeded: list[Bound] = []
        self._until = 0.0

    def may_be_within(self, bound: Bound) -> bool:
        """Whether a statement with this bound may give rows."""
        return time.monotonic() >= self._until or not any(map(bound.is_within, self._exceeded))

    def exceeds(self, bound: Bound) -> None:
        """Keeps for a while that a statement with this bound gave no row."""
        now = time.monotonic()
        known = self._exceeded if now < self._until else []
        self._exceeded = [bound, *(one for one in known if not one.is_within(bound))]
        self._until = now + LOOK_AGAIN_SECONDS


class SqlAlchemySessionLifecycleDb(WritePipeline, CallsAsItems, SessionLifecycleDb):
    """`SessionLifecycleDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(
        self,
        primary: Execution,
        reading: Execution,
        prices: PriceCatalogue,
        payloads: PayloadPolicy,
        abandon_after: timedelta,
        size: KnownSize,
    ) -> None:
        super().__init__(primary, prices, payloads)
        self._primary = primary
        self._reading = reading
        self._abandon_after = abandon_after
        self._size = size
        self._update_session = update_session(primary.schema)
        self._annotate_session = annotate_session(primary.schema)

    async def update_session(
        self, session_id: str, user_id: UUID | str, **changes: Unpack[SessionChanges]
    ) -> SessionRecord | None:
        asked = SessionUpdate.of_call(session_id=session_id, user_id=user_id, **changes)
        given = asked.model_dump(include=set(changes))
        # The fields are stored as those of a touch are: the host's redaction sees them first.
        redacted = self._payloads.apply(Touch(session_id=asked.session_id, user_id=asked.user_id, **given))
        replaced = {name: getattr(redacted, name) for name in given}
        key = {"user_id": asked.user_id, "session_id": asked.session_id}
        parameters = {**key, "changes": to_json(replaced).decode()}
        rows = await self._primary.fetch(self._update_session, parameters, writes=True)
        return records.record_of(rows[0]) if rows else None

    async def annotate_session(
        self,
        session_id: str,
        user_id: UUID | str,
        name: str,
        *,
        score: float | None = None,
        label: str | None = None,
        comment: str | None = None,
        annotator: str | None = None,
        at: datetime | None = None,
    ) -> SessionAnnotation | None:
        asked = Annotating.of_call(
            session_id=session_id,
            user_id=user_id,
            name=name,
            score=score,
            label=label,
            comment=comment,
            annotator=annotator,
            at=at,
        )
        fields = asked.model_dump()
        parameters = {**fields, "annotator": asked.annotator or ""}
        [(annotated_at,)] = await self._primary.fetch(self._annotate_session, parameters, writes=True)
        if annotated_at is None:
            return None
        told = {field: fields[field] for field in ("name", "annotator", "score", "label", "comment")}
        return SessionAnnotation(**told, at=annotated_at)

    async def list_annotations(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[SessionAnnotation]:
        wanted = AnnotationsOfSession.of_call(session_id=session_id, owner_id=owner_id, limit=limit, offset=offset)
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        statement = annotations.list_annotations(seen, has_owner_id=wanted.owner_id is not None)
        parameters |= wanted.model_dump()
        if wanted.limit is None:
            parameters["limit"] = MOST_ANNOTATIONS + 1
        rows = await self._primary.fetch(statement, parameters, viewer=asker)
        whole = whole_answer(rows, "limit", limit, "a limit", MOST_ANNOTATIONS)
        return [SessionAnnotation(**row._asdict()) for row in whole]

    async def get_family_figures(
        self, session_id: str, viewer: Viewer | UUID | str, *, owner_id: UUID | str | None = None
    ) -> FamilyFigures | None:
        wanted = OneSession.of_call(session_id=session_id, owner_id=owner_id)
        asker = Viewer.of_caller(viewer)
        seen, parameters = shape_of_viewer(asker)
        statement = descendants.family_figures(seen, has_owner_id=wanted.owner_id is not None)
        rows = await self._reading.fetch(statement, parameters | wanted.model_dump(), viewer=asker)
        figures = {row.label: _figures(row) for row in rows}
        own = figures[descendants.OWN]
        return FamilyFigures(own=own, with_descendants=figures[descendants.WITH_DESCENDANTS]) if own.sessions else None

    async def get_session_row(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        prefer_other_owner: bool = False,
        *,
        owner_id: UUID | str | None = None,
    ) -> SessionRowWithStatus | None:
        wanted = OneSession.of_call(session_id=session_id, prefer_other_owner=prefer_other_owner, owner_id=owner_id)
        asker = Viewer.of_caller(viewer, permitted_dataset_ids)
        seen, parameters = shape_of_viewer(asker)
        statement = records.get_session(
            seen,
            prefer_other_owner=wanted.prefer_other_owner,
            has_owner_id=wanted.owner_id is not None,
            abandon_after=self._abandon_after,
        )
        parameters |= {"session_id": wanted.session_id, "owner_id": wanted.owner_id, "as_of": None}
        rows = await self._primary.fetch(statement, parameters, viewer=asker)
        return records.row_of(rows[0]) if rows else None

    async def list_session_rows(self, filters: SessionListFilters) -> SessionListPage:
        filters = SessionListFilters.checked(filters, "filters")
        order = records.ORDERS[filters.order_column]
        position = read_position(filters, order)
        page, of_page = answered_page(await self.session_rows(filters, position), order, filters)
        return SessionListPage(sessions=[records.row_of(row) for row in page], **of_page)

    async def session_rows(self, filters: SessionListFilters, position: Position | None) -> PageRows:
        """The rows of `list_session_rows` after the position."""
        asked = (filters, position, self._abandon_after)
        ways = [(within, partial(way, *asked)) for within, way in few_listing.ways_of_few(filters)]
        rows = await self._of_few_or_many(ways, partial(listing.list_sessions, *asked), filters.asker)
        return page_rows(rows)

    async def aggregate_stats(
        self,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> SessionStats:
        window = Window.of_call(since=since, until=until)
        return stats_of(await self.stats_figures(Viewer.of_caller(viewer, permitted_dataset_ids), window))

    async def stats_figures(self, viewer: Viewer, window: Window) -> dict[str, Any]:
        """The figures of `aggregate_stats` that can be added up, by name, and `agent_time_us`."""
        asked = {**window.model_dump(), "abandon_after": self._abandon_after, "as_of": None}
        rows = await self._figures_of_few_or_many(
            viewer, window, asked, session_stats.few_stats, session_stats.aggregate_stats
        )
        figures = rows[0]._asdict()
        whole = {name: int(figures[name]) for name in ("agent_time_us", "tokens_in", "tokens_out")}
        further = parsed(figures.pop(FURTHER_TOTALS), SessionStats.model_fields)
        return {**figures, **whole, **further}

    async def cost_by_model(
        self,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> list[CostByModelRow]:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer, permitted_dataset_ids)
        asked = {**window.model_dump(), "row_limit": MOST_ROWS + 1}
        of_window = partial(costs.few_costs_by_model, looks_up=True)
        found = await self._figures_of_few_or_many(
            asker, window, asked, costs.few_costs_by_model, costs.cost_by_model, of_window
        )
        rows = [row for row in found if row.model is not None]
        narrower = "a shorter window, or fewer sessions to see"
        return [_cost_row(row) for row in whole_answer(rows, "until", window.until, narrower, MOST_ROWS)]

    async def _figures_of_few_or_many(
        self,
        viewer: Viewer,
        window: Window,
        asked: dict[str, Any],
        of_few: Callable[[ViewerShape, Ends], KeptStatement],
        of_many: Callable[[ScopeKinds, Ends], KeptStatement],
        of_window: Callable[[ViewerShape, Ends], KeptStatement] | None = None,
    ) -> Sequence[Any]:
        """The rows of one of these statements. `of_window` is asked for a window, unless hardly any is stored."""
        seen, ends = scopes(viewer), ends_of(window.since, window.until)

        def few(build: Callable[[ViewerShape, Ends], KeptStatement]) -> Asked:
            shape, parameters = shape_of_viewer(viewer)
            return build(shape, ends), parameters | asked

        def many() -> Asked:
            return of_many(seen.kinds, ends), seen.parameters() | asked

        # The other statement cuts buckets at both ends of a window. Without roll-ups, it reads all sessions.
        times, times_if_never = (8, 8) if any(ends) else (1, 16)
        within = bound(seen.number, times=times, times_if_never=times_if_never)
        ways = [(within, partial(few, of_few))]
        if of_window is not None and any(ends):
            ways = [(bound(0), partial(few, of_few)), (within, partial(few, of_window))]
        return await self._of_few_or_many(ways, many, viewer)

    async def _of_few_or_many(
        self, ways: Sequence[tuple[Bound, Callable[[], Asked]]], many: Callable[[], Asked], viewer: Viewer
    ) -> Sequence[Any]:
        """The rows of a statement for few sessions; those of the statement for many where there are not few.

        Args:
            ways: Up to where a statement for few sessions is asked, this statement, and its parameters; each within a
                higher bound.
            many: The statement for any number of sessions, and its parameters.
            viewer: Who is asking.
        """
        for within, few in ways:
            if self._size.may_be_within(within):
                statement, parameters = few()
                parameters |= few_parameters(self._reading.schema, within)
                rows = await self._reading.fetch(statement, parameters, viewer=viewer)
                if rows:
                    return rows
                self._size.exceeds(within)
        return await self._reading.fetch(*many(), viewer=viewer)


def stats_of(figures: dict[str, Any]) -> SessionStats:
    """The stats, with averages and rates, from the figures of `stats_figures`."""
    figures = dict(figures)
    count, agent_time_us = figures["sessions"], figures.pop("agent_time_us")
    judged = figures["completed"] + figures["failed"] + figures["abandoned"]
    return SessionStats(
        **figures,
        tokens_total=figures["tokens_in"] + figures["tokens_out"],
        avg_spend_per_session_usd=_average(figures["total_spend_usd"], count),
        agent_time_s=agent_time_us / 1_000_000,
        avg_session_s=agent_time_us / (1_000_000 * count) if count else 0.0,
        success_rate=figures["completed"] / judged if judged else 1.0,
    )


def _cost_row(row: Any) -> CostByModelRow:
    figures = row._asdict()
    further = parsed(figures.pop(FURTHER_TOTALS), CostByModelRow.model_fields)
    return CostByModelRow(**figures, **further)


def _figures(row: Any) -> SessionFigures:
    figures = row._asdict()
    further = parsed(figures.pop(FURTHER_TOTALS), SessionFigures.model_fields)
    del figures["label"]
    return SessionFigures(**figures, **further)


def _average(total: Decimal, count: int) -> Decimal:
    if not count:
        return Decimal(0)
    # A context of our own, so that the host's neither rounds nor raises. It has digits enough that `quantize` is the
    # only rounding that matters.
    context = Context(prec=len(total.as_tuple().digits) + 40, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])
    return context.quantize(context.divide(total, Decimal(count)), AVERAGE_DECIMALS)
