"""The role `lifecycle` over buckets."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime
from typing import Unpack
from uuid import UUID

from session_lifecycle.buckets.merging import added, merge_pages, merge_rows, preferred
from session_lifecycle.buckets.routing import Bucket, Routing
from session_lifecycle.buckets.writing import parts_of, write_parts
from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models import (
    CostByModelRow,
    FamilyFigures,
    SessionAnnotation,
    SessionChanges,
    SessionListFilters,
    SessionListPage,
    SessionRecord,
    SessionRowWithStatus,
    SessionStats,
    Viewer,
)
from session_lifecycle.models.fields import model_key
from session_lifecycle.models.pages import MOST_ROWS, PageFilters
from session_lifecycle.models.session_filters import OneSession, Window
from session_lifecycle.pages import answered_page, read_position, whole_answer
from session_lifecycle.repository import SessionLifecycleDb, stats_of
from session_lifecycle.statements.sessions import records
from session_lifecycle.statements.writing.record import WriteResult
from session_lifecycle.writing.calls import CallsAsItems
from session_lifecycle.writing.pipeline import MOST_ITEMS
from session_lifecycle.writing.prepared import WritableItem

MOST_MERGED_OFFSET = 10_000
"""The highest offset of a page over several buckets: each bucket must give all rows before it."""

Together = Callable[[], AbstractAsyncContextManager[object]]


def check_offset(filters: PageFilters, buckets: Sequence[Bucket]) -> None:
    """Refuses an offset that would have every bucket give very many rows.

    Raises:
        InvalidValueError: Several buckets are asked, and the offset is too high.
    """
    if len(buckets) > 1 and filters.offset > MOST_MERGED_OFFSET:
        expected = f"at most {MOST_MERGED_OFFSET:,} over several buckets: go on from next_cursor"
        raise InvalidValueError("offset", filters.offset, expected)


def of_bucket(filters: PageFilters, buckets: Sequence[Bucket]) -> dict[str, int]:
    """What the filters of a page become for one of several buckets: the rows before the page come too."""
    return {} if len(buckets) == 1 else {"limit": filters.offset + filters.limit, "offset": 0}


async def owner_of(
    routing: Routing, session_id: str, viewer: Viewer, owner_id: UUID | None, *, prefer_other_owner: bool = False
) -> SessionRowWithStatus | None:
    """The session that rule R15 prefers, over all buckets that can have one; None where the viewer sees none."""
    rows = await routing.ask(
        await routing.where(viewer, owner_id),
        lambda bucket: bucket.lifecycle.get_session_row(session_id, viewer, (), prefer_other_owner, owner_id=owner_id),
    )
    return preferred((row for row in rows if row is not None), viewer, prefer_other_owner=prefer_other_owner)


async def bucket_and_owner(
    routing: Routing, session_id: str, viewer: Viewer, owner_id: UUID | None
) -> tuple[Bucket, UUID | None]:
    """The bucket that a question about one session goes to, and the owner to ask for.

    Where only one bucket can have the session, that bucket chooses by itself.
    """
    buckets, _ = await routing.where(viewer, owner_id)
    if len(buckets) == 1:
        return buckets[0], owner_id
    found = await owner_of(routing, session_id, viewer, None)
    return (buckets[0], None) if found is None else (routing.of(found.record.user_id), found.record.user_id)


class BucketLifecycleDb(CallsAsItems, SessionLifecycleDb):
    """`SessionLifecycleDb` over buckets. Each call that names a user or an owner is one of the user's bucket."""

    def __init__(self, routing: Routing, together: Together = nullcontext) -> None:
        """Makes the role.

        Args:
            routing: The buckets.
            together: Entered around a call that writes into several buckets.
        """
        self._routing = routing
        self._together = together

    async def write(self, items: Sequence[WritableItem]) -> list[WriteResult]:
        """Writes the items of each bucket in one transaction, and returns the result of each item, in order.

        Raises:
            InvalidValueError: An item is refused before anything is sent, or all items are of one bucket.
            PartlyWrittenError: Some buckets wrote their items, and others failed.
        """
        if not items:
            return []
        if len(items) > MOST_ITEMS:
            raise InvalidValueError("items", f"{len(items)} items", f"at most {MOST_ITEMS:,} items")
        parts = parts_of(items, self._routing.number_of)
        [first, *others] = parts
        writer = self._routing.buckets[first].lifecycle
        if not others:
            return await writer.write(items)
        # All buckets have the same prices and the same redaction, and nothing is sent while an item may be refused.
        prepared = await writer.prepare(items)
        async with self._together():
            return await write_parts(
                items,
                parts,
                lambda number, positions: self._routing.buckets[number].lifecycle.send(
                    [prepared[at] for at in positions]
                ),
                is_at_once=self._routing.is_at_once,
            )

    async def update_session(
        self, session_id: str, user_id: UUID | str, **changes: Unpack[SessionChanges]
    ) -> SessionRecord | None:
        return await self._routing.of(user_id).lifecycle.update_session(session_id, user_id, **changes)

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
        return await self._routing.of(user_id).lifecycle.annotate_session(
            session_id, user_id, name, score=score, label=label, comment=comment, annotator=annotator, at=at
        )

    async def list_annotations(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[SessionAnnotation]:
        wanted = OneSession.of_call(session_id=session_id, owner_id=owner_id)
        asker = Viewer.of_caller(viewer)
        bucket, owner = await bucket_and_owner(self._routing, wanted.session_id, asker, wanted.owner_id)
        return await bucket.lifecycle.list_annotations(session_id, asker, owner_id=owner, limit=limit, offset=offset)

    async def get_family_figures(
        self, session_id: str, viewer: Viewer | UUID | str, *, owner_id: UUID | str | None = None
    ) -> FamilyFigures | None:
        wanted = OneSession.of_call(session_id=session_id, owner_id=owner_id)
        asker = Viewer.of_caller(viewer)
        bucket, owner = await bucket_and_owner(self._routing, wanted.session_id, asker, wanted.owner_id)
        return await bucket.lifecycle.get_family_figures(session_id, asker, owner_id=owner)

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
        return await owner_of(
            self._routing,
            wanted.session_id,
            asker,
            wanted.owner_id,
            prefer_other_owner=wanted.prefer_other_owner,
        )

    async def list_session_rows(self, filters: SessionListFilters) -> SessionListPage:
        filters = SessionListFilters.checked(filters, "filters")
        order = records.ORDERS[filters.order_column]
        position = read_position(filters, order)
        where = await self._routing.where(filters.asker, filters.owner_id, filters.dataset_id)
        check_offset(filters, where[0])
        asked = filters.model_copy(update=of_bucket(filters, where[0]))
        answers = await self._routing.ask(
            where,
            lambda bucket: bucket.lifecycle.session_rows(asked, position),
            None if position is None else position.as_of,
        )
        found = answers[0]
        if len(answers) > 1:
            found = merge_pages(
                answers, order, descending=filters.descending, offset=filters.offset, limit=filters.limit
            )
        page, of_page = answered_page(found, order, filters)
        return SessionListPage(sessions=[records.row_of(row) for row in page], **of_page)

    async def aggregate_stats(
        self,
        viewer: Viewer | UUID | str,
        permitted_dataset_ids: Collection[UUID | str] = (),
        since: datetime | None = None,
        *,
        until: datetime | None = None,
    ) -> SessionStats:
        window = Window.of_call(since=since, until=until)
        asker = Viewer.of_caller(viewer, permitted_dataset_ids)
        answers = await self._routing.ask(
            await self._routing.where(asker), lambda bucket: bucket.lifecycle.stats_figures(asker, window)
        )
        return stats_of(added(answers))

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
        answers = await self._routing.ask(
            await self._routing.where(asker),
            lambda bucket: bucket.lifecycle.cost_by_model(asker, (), window.since, until=window.until),
        )
        rows = merge_rows(answers, lambda row: model_key(row.model), ["model"], lambda row: row.model)
        return list(whole_answer(rows, "until", window.until, "a shorter window, or fewer sessions to see", MOST_ROWS))
