"""The operator's jobs over buckets: one bucket after another, and the sum of their reports."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar
from uuid import UUID, uuid4

from session_lifecycle.buckets.exports import merge_exports
from session_lifecycle.buckets.merging import added
from session_lifecycle.buckets.routing import Bucket, Routing
from session_lifecycle.errors import DatabaseUnavailableError
from session_lifecycle.maintenance.exports import DEFAULT_EXPORT_BATCH
from session_lifecycle.maintenance.imports import ImportTarget, import_folder
from session_lifecycle.maintenance.role import DEFAULT_BATCH, DEFAULT_PRUNE_BATCH, SessionMaintenanceDb, pruning_of
from session_lifecycle.models import (
    ErasureReceipt,
    PruneReport,
    ReconcileReport,
    RepriceReport,
    RollUpReport,
    RunFilters,
    SessionListFilters,
    UsageEventFilters,
)
from session_lifecycle.models.maintenance import MOST_MISMATCHES, Erasing, Pruning
from session_lifecycle.models.transfer import ExportBatch, ExportTable, ImportReport, RefusedRow
from session_lifecycle.settings import check_callable

MOST_TRIES = 10_000
"""How many random ids are tried to find one of a bucket. One of 64 buckets is found in 64 tries on average."""

Report = TypeVar("Report")


async def each(buckets: Sequence[Bucket], job: Callable[[Bucket], Awaitable[Report]]) -> list[Report]:
    """Runs a job in each bucket, one after another. A bucket that is away does not stop the others.

    Raises:
        DatabaseUnavailableError: Buckets were away. The message names them; the job is done in all others.
    """
    reports: list[Report] = []
    away: list[DatabaseUnavailableError] = []
    for bucket in buckets:
        try:
            reports.append(await job(bucket))
        except DatabaseUnavailableError as error:
            away.append(error)
    if away:
        message = f"{len(away)} of {len(buckets)} buckets were away, the job is done in the others: "
        may_have_written = any(error.may_have_written for error in away)
        raise DatabaseUnavailableError(
            message + "; ".join(map(str, away)), may_have_written=may_have_written
        ) from away[0]
    return reports


class BucketMaintenanceDb(SessionMaintenanceDb):
    """`SessionMaintenanceDb` over buckets.

    A job that is about certain users runs in their buckets, and every other job in all of them, one after another. It
    goes on past a bucket that is away, and raises DatabaseUnavailableError at the end, which names that bucket.
    `on_progress` gets the sums over the buckets so far.
    """

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    def export(
        self,
        table: ExportTable | Literal["all"],
        filters: SessionListFilters | UsageEventFilters | RunFilters | None = None,
        *,
        batch: int = DEFAULT_EXPORT_BATCH,
    ) -> AsyncGenerator[ExportBatch]:
        """See `SessionMaintenanceDb`. Each bucket has a snapshot of its own, and a connection as long as you read."""
        exports = [bucket.maintenance.export(table, filters, batch=batch) for bucket in self._routing.buckets]
        return merge_exports(exports, batch)

    async def import_export(
        self,
        folder: Path | str,
        *,
        on_refused: Callable[[RefusedRow], object] | None = None,
        on_progress: Callable[[str, str, int], object] | None = None,
    ) -> ImportReport:
        """See `SessionMaintenanceDb`. Each user is imported into the user's bucket.

        A budget without a user is refused, as `set_budget` refuses it.
        """
        executions = [bucket.execution for bucket in self._routing.buckets]
        target = ImportTarget(executions, self.reconcile, self._routing.number_of)
        return await import_folder(target, folder, on_refused, on_progress)

    async def reprice(
        self,
        model: str | None = None,
        since: datetime | None = None,
        dry_run: bool = False,
        *,
        until: datetime | None = None,
        batch: int = DEFAULT_BATCH,
        on_progress: Callable[[int], None] | None = None,
    ) -> RepriceReport:
        """See `SessionMaintenanceDb`. Each bucket has an audit row of its own; `repricing_id` is that of the first."""
        check_callable("on_progress", on_progress)
        done: list[RepriceReport] = []
        looked_at = 0

        def report(events: int) -> None:
            if on_progress is not None:
                on_progress(looked_at + events)

        async def job(bucket: Bucket) -> RepriceReport:
            nonlocal looked_at
            found = await bucket.maintenance.reprice(
                model, since, dry_run, until=until, batch=batch, on_progress=None if on_progress is None else report
            )
            looked_at += found.looked_at
            done.append(found)
            return found

        await each(self._routing.buckets, job)
        sums = added(one.model_dump(exclude={"repricing_id"}) for one in done)
        return RepriceReport(repricing_id=done[0].repricing_id, **sums)

    async def roll_up(self, *, on_progress: Callable[[RollUpReport], None] | None = None) -> RollUpReport:
        check_callable("on_progress", on_progress)
        done: list[RollUpReport] = []

        def report(one: RollUpReport) -> None:
            if on_progress is not None:
                on_progress(_rolled_up([*done, one]))

        async def job(bucket: Bucket) -> RollUpReport:
            found = await bucket.maintenance.roll_up(on_progress=None if on_progress is None else report)
            done.append(found)
            return found

        await each(self._routing.buckets, job)
        return _rolled_up(done)

    async def prune_sessions(
        self,
        older_than: timedelta,
        *,
        batch: int = DEFAULT_PRUNE_BATCH,
        dry_run: bool = False,
        on_progress: Callable[[PruneReport], None] | None = None,
        user_ids: Collection[UUID | str] | None = None,
        agent_names: Collection[str] | None = None,
        dataset_ids: Collection[UUID | str] | None = None,
    ) -> PruneReport:
        asked = pruning_of(older_than, batch, dry_run, user_ids, agent_names, dataset_ids)
        return await self._prune(
            lambda bucket, report: bucket.maintenance.prune_sessions(on_progress=report, **dict(asked)),
            on_progress,
            asked,
        )

    async def prune_payloads(
        self,
        older_than: timedelta,
        *,
        batch: int = DEFAULT_PRUNE_BATCH,
        dry_run: bool = False,
        on_progress: Callable[[PruneReport], None] | None = None,
        user_ids: Collection[UUID | str] | None = None,
        agent_names: Collection[str] | None = None,
        dataset_ids: Collection[UUID | str] | None = None,
    ) -> PruneReport:
        asked = pruning_of(older_than, batch, dry_run, user_ids, agent_names, dataset_ids)
        return await self._prune(
            lambda bucket, report: bucket.maintenance.prune_payloads(on_progress=report, **dict(asked)),
            on_progress,
            asked,
        )

    async def _prune(
        self,
        prune: Callable[[Bucket, Callable[[PruneReport], None]], Awaitable[PruneReport]],
        on_progress: Callable[[PruneReport], None] | None,
        asked: Pruning,
    ) -> PruneReport:
        check_callable("on_progress", on_progress)
        done: list[PruneReport] = []
        buckets = self._routing.buckets
        if asked.user_ids is not None:
            # Nobody goes to bucket 0.
            numbers = {self._routing.number_of(one) for one in asked.user_ids} or {0}
            buckets = [buckets[number] for number in sorted(numbers)]

        def report(one: PruneReport) -> None:
            if on_progress is not None:
                on_progress(_pruned([*done, one]))

        async def job(bucket: Bucket) -> PruneReport:
            found = await prune(bucket, report)
            done.append(found)
            return found

        await each(buckets, job)
        return _pruned(done)

    async def delete_session(self, session_id: str, user_id: UUID | str) -> bool:
        return await self._routing.of(user_id).maintenance.delete_session(session_id, user_id)

    async def erase_user(
        self, user_id: UUID | str, *, usage: Literal["delete", "anonymise"] = "delete", tombstone: bool = False
    ) -> ErasureReceipt:
        """See `SessionMaintenanceDb`. The pseudonym of an anonymised user belongs to the same bucket."""
        asked = Erasing.of_call(user_id=user_id, usage=usage, tombstone=tombstone)
        home = self._routing.of(asked.user_id)
        return await home.maintenance.erase(asked, self._pseudonym_in(home.number))

    def _pseudonym_in(self, number: int) -> UUID:
        """A random user id of the bucket. Where the host's own function knows no such user, any random id."""
        for _ in range(MOST_TRIES):
            pseudonym = uuid4()
            try:
                if self._routing.number_of(pseudonym) == number:
                    return pseudonym
            except Exception:  # noqa: BLE001 - the host's function may know its own users only
                break
        return uuid4()

    async def reconcile(self, *, repair: bool = False) -> ReconcileReport:
        """See `SessionMaintenanceDb`. The first 100 mismatches are in the order of the buckets."""
        reports = await each(self._routing.buckets, lambda bucket: bucket.maintenance.reconcile(repair=repair))
        sums = added(one.model_dump(exclude={"mismatches"}) for one in reports)
        mismatches = [mismatch for one in reports for mismatch in one.mismatches][:MOST_MISMATCHES]
        return ReconcileReport(mismatches=mismatches, **sums)


def _rolled_up(reports: Sequence[RollUpReport]) -> RollUpReport:
    sums = added(one.model_dump(exclude={"idle_before"}) for one in reports)
    return RollUpReport(idle_before=min(one.idle_before for one in reports), **sums)


def _pruned(reports: Sequence[PruneReport]) -> PruneReport:
    sums = added(one.model_dump(exclude={"cut_at", "dry_run", "session_keys"}) for one in reports)
    return PruneReport(
        cut_at=min(one.cut_at for one in reports),
        dry_run=reports[-1].dry_run,
        session_keys=reports[-1].session_keys,
        **sums,
    )
