"""Routing: which buckets a question goes to, and asking them at once by one clock."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast
from uuid import UUID

from session_lifecycle.activity import SqlAlchemySessionActivityDb
from session_lifecycle.buckets.execution import question_clock
from session_lifecycle.buckets.places import ChooseBucket
from session_lifecycle.budgets import SqlAlchemySessionBudgetsDb
from session_lifecycle.maintenance.role import SqlAlchemySessionMaintenanceDb
from session_lifecycle.models import Viewer
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.reports import SqlAlchemySessionReportsDb
from session_lifecycle.repository import SqlAlchemySessionLifecycleDb
from session_lifecycle.roles import SessionRoles
from session_lifecycle.statements.buckets import directory

PRESENT_SECONDS = 60.0
"""For how long a bucket that had a session in a data set is asked without looking again."""
MOST_PRESENT = 100_000

Answer = TypeVar("Answer")


class Bucket:
    """One bucket: its execution, and its roles with the methods that merging needs."""

    def __init__(self, number: int, execution: Execution, roles: SessionRoles) -> None:
        self.number = number
        self.execution = execution
        self.lifecycle = cast("SqlAlchemySessionLifecycleDb", roles.lifecycle)
        self.activity = cast("SqlAlchemySessionActivityDb", roles.activity)
        self.reports = cast("SqlAlchemySessionReportsDb", roles.reports)
        self.budgets = cast("SqlAlchemySessionBudgetsDb", roles.budgets)
        self.maintenance = cast("SqlAlchemySessionMaintenanceDb", roles.maintenance)


class Routing:
    """The buckets, and who belongs where.

    Attributes:
        buckets: All buckets, by number.
        is_at_once: Whether several buckets are asked at the same time. Those of one host's transaction are not.
    """

    def __init__(self, buckets: Sequence[Bucket], choose: ChooseBucket, *, is_at_once: bool = True) -> None:
        self.buckets = buckets
        self.is_at_once = is_at_once
        self._choose = choose
        self._present: dict[tuple[int, UUID], float] = {}

    def number_of(self, user_id: UUID | str) -> int:
        """The number of the user's bucket. What is no user id belongs to bucket 0, whose call refuses it."""
        try:
            found = UUID(user_id) if isinstance(user_id, str) else user_id
        except ValueError:
            return 0
        return self._choose(found) if isinstance(found, UUID) else 0

    def of(self, user_id: UUID | str) -> Bucket:
        """The user's bucket."""
        return self.buckets[self.number_of(user_id)]

    async def where(
        self, viewer: Viewer, owner_id: UUID | None = None, dataset_id: UUID | None = None
    ) -> tuple[list[Bucket], datetime | None]:
        """The buckets that can have something for the viewer, by number, and a clock if one was read on the way.

        They are the buckets of the viewer and of the viewer's agents, and those that have a session in a permitted data
        set. At least one.

        Args:
            viewer: The viewer.
            owner_id: Only what this user owns.
            dataset_id: Only what is in this data set.
        """
        if owner_id is not None:
            return [self.of(owner_id)], None
        if viewer.sees_all and dataset_id is None:
            return list(self.buckets), None
        wanted: Collection[UUID] = viewer.permitted_dataset_ids
        if dataset_id is not None:
            wanted = [dataset_id] if viewer.sees_all or dataset_id in viewer.permitted_dataset_ids else []
        numbers = {self.number_of(one) for one in viewer.owner_ids}
        found, as_of = await self._with_datasets(wanted, numbers)
        chosen = sorted(numbers | found) or [0]
        return [self.buckets[number] for number in chosen], as_of

    async def _with_datasets(self, wanted: Collection[UUID], known: set[int]) -> tuple[set[int], datetime | None]:
        """The other buckets that have a session in one of the data sets.

        A bucket that had one is asked without looking, for a while: at worst it is asked in vain. A bucket that had
        none is looked at every time, as a session may have come into it since, and no answer may hide it.
        """
        if not wanted:
            return set(), None
        now = time.monotonic()
        others = {bucket.number for bucket in self.buckets} - known
        found = {number for number in others if any(self._present.get((number, one), 0) > now for one in wanted)}
        asked = [self.buckets[number] for number in sorted(others - found)]
        parameters = {"dataset_ids": list(wanted), "as_of": None}
        looks = await self._all(asked, lambda bucket: bucket.execution.fetch(directory.present_datasets(), parameters))
        if len(self._present) > MOST_PRESENT:
            self._present.clear()
        for bucket, [row] in zip(asked, looks, strict=True):
            for one in row.dataset_ids or ():
                found.add(bucket.number)
                self._present[bucket.number, one] = now + PRESENT_SECONDS
        return found, looks[0][0].as_of if looks else None

    async def ask(
        self,
        where: tuple[Sequence[Bucket], datetime | None],
        call: Callable[[Bucket], Awaitable[Answer]],
        as_of: datetime | None = None,
    ) -> list[Answer]:
        """The answers of these buckets, in their order. Several judge by one clock.

        Args:
            where: What `where` found.
            call: The question to one bucket.
            as_of: The clock of the question; None: that of the first bucket, now.
        """
        buckets, clock = where
        if len(buckets) == 1:
            return [await call(buckets[0])]
        if as_of is None:
            as_of = clock
        if as_of is None:
            [(as_of,)] = await buckets[0].execution.fetch(directory.now(), {"as_of": None})
        before = question_clock.set(as_of)
        try:
            return await self._all(buckets, call)
        finally:
            question_clock.reset(before)

    async def _all(self, buckets: Sequence[Bucket], call: Callable[[Bucket], Awaitable[Answer]]) -> list[Answer]:
        if not self.is_at_once:
            return [await call(bucket) for bucket in buckets]
        results: list[Any] = await asyncio.gather(*map(call, buckets), return_exceptions=True)
        for one in results:
            if isinstance(one, BaseException):
                raise one
        return results
