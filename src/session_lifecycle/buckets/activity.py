"""The role `activity` over buckets."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from session_lifecycle.activity import SessionActivityDb, run_page, summary_of
from session_lifecycle.buckets.lifecycle import bucket_and_owner, check_offset, of_bucket
from session_lifecycle.buckets.merging import BucketOrder, NumberedRow, merge_models, merge_names, merge_pages
from session_lifecycle.buckets.routing import Bucket, Routing
from session_lifecycle.models import (
    Lineage,
    Message,
    RunFilters,
    RunPage,
    SessionDetail,
    SummaryFilters,
    SummaryPage,
    ThreadPage,
    UsageEventFilters,
    UsageEventPage,
    Viewer,
)
from session_lifecycle.models.pages import DEFAULT_LIMIT, MOST_ROWS
from session_lifecycle.models.session_details import MOST_RUNS, RecentActivity
from session_lifecycle.models.session_filters import OneSession
from session_lifecycle.pages import PageOrder, PageRows, answered_page, read_position, whole_answer
from session_lifecycle.statements.activity import runs, summaries, usage_events
from session_lifecycle.statements.shared.paging import Position

RUN_ORDER = BucketOrder(runs.RUN_ORDER)
"""Runs of one moment are in the order in which their bucket recorded them, and then in that of the buckets."""


class BucketActivityDb(SessionActivityDb):
    """`SessionActivityDb` over buckets. A question about one session goes to the bucket of its owner."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    async def find_lineage(self, user_id: UUID | str, tool_call_id: str) -> Lineage | None:
        return await self._routing.of(user_id).activity.find_lineage(user_id, tool_call_id)

    async def list_session_summaries(self, filters: SummaryFilters) -> SummaryPage:
        filters = SummaryFilters.checked(filters, "filters")
        order = summaries.order_of(filters)
        page, of_page = await self._page(
            filters, order, lambda bucket, asked, position: bucket.activity.summary_rows(asked, position)
        )
        return SummaryPage(sessions=[summary_of(row) for row in page], **of_page)

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
        bucket, asker, owner = await self._whose(session_id, viewer, owner_id)
        return await bucket.activity.get_session_detail(
            session_id,
            asker,
            owner_id=owner,
            project=project,
            limit=limit,
            offset=offset,
            payloads=payloads,
            steps_limit=steps_limit,
        )

    async def get_recent_activity(
        self,
        session_id: str,
        viewer: Viewer | UUID | str,
        *,
        owner_id: UUID | str | None = None,
        limit: int = 20,
    ) -> RecentActivity | None:
        bucket, asker, owner = await self._whose(session_id, viewer, owner_id)
        return await bucket.activity.get_recent_activity(session_id, asker, owner_id=owner, limit=limit)

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
        bucket, asker, owner = await self._whose(session_id, viewer, owner_id)
        return await bucket.activity.list_threads(
            session_id, asker, owner_id=owner, limit=limit, after=after, before=before
        )

    async def list_runs(self, filters: RunFilters) -> RunPage:
        filters = RunFilters.checked(filters, "filters")

        async def rows_of(bucket: Bucket, asked: RunFilters, position: Position | None) -> PageRows:
            found = await bucket.activity.run_rows(
                asked, in_bucket(position, bucket.number, descending=asked.descending)
            )
            return found._replace(rows=[NumberedRow(row, bucket.number) for row in found.rows])

        page, of_page = await self._page(filters, RUN_ORDER, rows_of)
        return run_page(page, of_page)

    async def list_usage_events(self, filters: UsageEventFilters) -> UsageEventPage:
        filters = UsageEventFilters.checked(filters, "filters")
        page, of_page = await self._page(
            filters,
            usage_events.USE_ORDER,
            lambda bucket, asked, position: bucket.activity.usage_event_rows(asked, position),
        )
        return UsageEventPage(events=[usage_events.event_of(row) for row in page], **of_page)

    async def list_models(self, viewer: Viewer | UUID | str, prefix: str = "") -> list[str]:
        asker = Viewer.of_caller(viewer)
        answers = await self._all(asker, lambda bucket: bucket.activity.list_models(asker, prefix))
        return list(whole_answer(merge_models(answers), "prefix", prefix, "a longer prefix", MOST_ROWS))

    async def list_clients(self, viewer: Viewer | UUID | str) -> list[str]:
        asker = Viewer.of_caller(viewer)
        answers = await self._all(asker, lambda bucket: bucket.activity.list_clients(asker))
        return list(whole_answer(merge_names(answers), "viewer", asker, "a viewer who sees less", MOST_ROWS))

    async def list_agents(self, viewer: Viewer | UUID | str) -> list[str]:
        asker = Viewer.of_caller(viewer)
        answers = await self._all(asker, lambda bucket: bucket.activity.list_agents(asker))
        return list(whole_answer(merge_names(answers), "viewer", asker, "a viewer who sees less", MOST_ROWS))

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
        bucket, asker, owner = await self._whose(session_id, viewer, owner_id)
        return await bucket.activity.chat_history(
            session_id,
            asker,
            owner_id=owner,
            limit=limit,
            max_characters=max_characters,
            exclude_run_id=exclude_run_id,
        )

    async def _all(self, viewer: Viewer, call: Callable[[Bucket], Awaitable[list[str]]]) -> list[list[str]]:
        return await self._routing.ask(await self._routing.where(viewer), call)

    async def _whose(
        self, session_id: str, viewer: Viewer | UUID | str, owner_id: UUID | str | None
    ) -> tuple[Bucket, Viewer, UUID | None]:
        """The bucket of the session that the call chooses, the viewer, and the session's owner."""
        wanted = OneSession.of_call(session_id=session_id, owner_id=owner_id)
        asker = Viewer.of_caller(viewer)
        bucket, owner = await bucket_and_owner(self._routing, wanted.session_id, asker, wanted.owner_id)
        return bucket, asker, owner

    async def _page(
        self, filters: Any, order: PageOrder, rows_of: Callable[[Bucket, Any, Position | None], Awaitable[PageRows]]
    ) -> tuple[Any, dict[str, Any]]:
        """The rows of a page over all buckets that can have some, and the other fields of the page."""
        position = read_position(filters, order)
        where = await self._routing.where(filters.asker, filters.owner_id, filters.dataset_id)
        check_offset(filters, where[0])
        asked = filters.model_copy(update=of_bucket(filters, where[0]))
        answers = await self._routing.ask(
            where,
            lambda bucket: rows_of(bucket, asked, position),
            None if position is None else position.as_of,
        )
        found = answers[0]
        if len(answers) > 1:
            found = merge_pages(
                answers, order, descending=filters.descending, offset=filters.offset, limit=filters.limit
            )
        return answered_page(found, order, filters)


def in_bucket(position: Position | None, number: int, *, descending: bool) -> Position | None:
    """The position for one bucket: the rows of the page before that have the same key come from the buckets up to it.

    `record_no` is a whole number, so the rows of one number come after the number before.
    """
    if position is None:
        return None
    record_no, last = position.key
    is_passed = number >= last if descending else number <= last
    if not is_passed:
        record_no += 1 if descending else -1
    return Position(position.value, (record_no,), position.as_of)
