"""SessionMaintenanceDb: the operator's jobs reprice, roll up, prune, delete, erase, reconcile, export and import."""

from collections.abc import AsyncGenerator, Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, Protocol
from uuid import UUID, uuid4

from session_lifecycle.maintenance.erase import Eraser
from session_lifecycle.maintenance.exports import DEFAULT_EXPORT_BATCH, Exporter, checked_filters, exported_tables
from session_lifecycle.maintenance.imports import ImportTarget, import_folder
from session_lifecycle.maintenance.prune import Pruner
from session_lifecycle.maintenance.reconcile import Reconciler
from session_lifecycle.maintenance.reprice import Repricer
from session_lifecycle.maintenance.roll_up import RollUp
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
from session_lifecycle.models.maintenance import Erasing, Exporting, OwnedSession, Pruning, Reconciling, Repricing
from session_lifecycle.models.transfer import ExportBatch, ExportTable, ImportReport, RefusedRow
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.postgres.row_level_security import refuse_walled_in
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.settings import check_callable

DEFAULT_BATCH = 500
DEFAULT_PRUNE_BATCH = 1000


class SessionMaintenanceDb(Protocol):
    """The operator's jobs.

    No call takes a viewer: the host decides who may make it. A job runs in several transactions, unless its docstring
    says otherwise. An interrupted job keeps what it has committed, and another call does the rest. Inside a host's
    transaction the whole job is part of that transaction, and its locks are held until that transaction ends.

    A statement that fails for a passing reason is retried, except inside a host's transaction. Every call raises:

    - `InvalidValueError`: it refuses an argument; nothing was changed.
    - `ConfigurationError`: `on_progress` is not callable, or row-level security shows the role no row without a viewer;
      nothing was changed.
    - `SchemaError`: the schema is not migrated, or does not serve this version.
    - `DatabaseUnavailableError`: the database cannot be reached or did not answer, also after the retries.
    - `TransactionConflictError`: a transaction lost conflicts with concurrent transactions, also after the retries; or
      the host's transaction is not READ COMMITTED.
    """

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
        """Prices usage events again by the current catalogue and overrides, and moves the totals by the difference.

        Only events without a given cost are priced again: those whose price was looked up, and unpriced ones. An event
        keeps its cost if its price is no longer known. Each batch is one transaction: the ledger, the totals and the
        job's row in `session_repricings` change together. An event that changes while the job runs is left alone.

        Args:
            model: Only events that named this model; None: all events.
            since: Used at this time or later; None: no limit.
            dry_run: Nothing is written; the report says what would change.
            until: Used before this time; None: no limit.
            batch: The most events that are read at once, and that one transaction changes, 1..10,000.
            on_progress: Called after each batch with the number of events read so far.
        """
        ...

    async def roll_up(self, *, on_progress: Callable[[RollUpReport], None] | None = None) -> RollUpReport:
        """Rolls up sessions: adds up ended and abandoned ones, so that `aggregate_stats` and `cost_by_model` need not.

        Run this job every few minutes. It changes no answer of any read. It only makes those two calls and the `total`
        of pages faster. It rolls up the sessions that have ended, and those that are abandoned by the setting
        `abandon_after`. A write that changes a rolled-up session takes it out again, and the next call rolls it up
        again.

        Each batch is one short transaction. The job never waits for a writer: it skips a session that a writer has
        locked, and the next call rolls it up. Several calls may run at once; they share the work. The first call of all
        takes two connections of the pool, and rolls up two batches at once.

        Args:
            on_progress: Called with the report so far after each batch of sessions, and once at the end.
        """
        ...

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
        """Deletes sessions that were last active before the cut, with their totals, ledger, runs, steps and messages.

        The cut is `older_than` ago. A session that was last active exactly at the cut stays. A session is deleted as a
        whole, whatever its status. Its cost disappears from stats, spend and cost by model. Runs outside a session that
        were last seen before the cut are deleted as well.

        Sessions are deleted oldest first. Each batch is one transaction; after a slow batch the next one is smaller.
        The job skips a session that a writer has locked instead of waiting, and the next call looks at it again.
        If the connection is lost before a batch answers, the batch is run again, and the report counts only the rows
        that the second run found. Inside a host's transaction all batches belong to that transaction, and their locks
        are held until it ends.

        Args:
            older_than: The time since the last activity, by the database's clock: above 0, at most 365,000 days.
            batch: The most sessions of one transaction, 1..10,000.
            dry_run: Nothing is deleted; the report counts the rows that would be.
            on_progress: Called after each batch with the report so far, which has the keys of the batch's sessions; in
                a dry run once.
            user_ids: Only sessions of these users; an empty collection chooses none. None: of all users.
            agent_names: Only sessions of these agents.
            dataset_ids: Only sessions in these datasets.
        """
        ...

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
        """Deletes messages and empties payloads from before the cut, also of sessions that go on; the cost stays.

        The cut is `older_than` ago. The job deletes the messages that were created before it. It empties the `input`,
        `output` and `error` of runs, and the `inputs`, `output`, `prompt` and `errors` of steps that ended before it,
        or began before it and are open. The sessions, the ledger, runs, steps and their metadata stay. Errors still
        count: the errors of such a step become the text "pruned", and a run keeps its status. Runs outside a session
        are left as they are.

        Batches and retries are those of `prune_sessions`, and locked sessions are skipped likewise. The report counts
        the sessions, the runs and steps that were emptied, and the messages that were deleted. The next call does not
        find a session again that has nothing left to prune.

        Args:
            older_than: The time since the last activity, by the database's clock: above 0, at most 365,000 days.
            batch: The most sessions of one transaction, 1..10,000.
            dry_run: Nothing is changed; the report counts the rows that would be.
            on_progress: Called after each batch with the report so far, which has the keys of the batch's sessions; in
                a dry run once.
            user_ids: Only sessions of these users; an empty collection chooses none. None: of all users.
            agent_names: Only sessions of these agents.
            dataset_ids: Only sessions in these datasets.
        """
        ...

    async def delete_session(self, session_id: str, user_id: UUID | str) -> bool:
        """Deletes a session with its totals, ledger, runs, steps and messages. Returns whether it existed.

        The deletion is one transaction. It waits for a writer that has locked the session. A later write creates a new
        session under the same id. If the connection is lost before the answer, the deletion is repeated, and may then
        return False although the first attempt deleted the session.
        """
        ...

    async def erase_user(
        self, user_id: UUID | str, *, usage: Literal["delete", "anonymise"] = "delete", tombstone: bool = False
    ) -> ErasureReceipt:
        """Erases everything of this user, in batches. Each batch of sessions or runs is one transaction.

        A batch waits for a writer that has locked one of its sessions or runs. Without a tombstone, rows that are
        written for the user while the job runs may remain; another call erases them. With `anonymise` each call makes
        its own pseudonym.

        Args:
            user_id: The user to erase.
            usage: `delete` deletes the ledger as well. `anonymise` keeps the usage, so that spend and stats stay right:
                ledger, totals, times, status, models and datasets stay, under a random user id and random session ids.
                Runs, steps, messages, titles, agents' names, metadata, and the keys and details of events are deleted.
            tombstone: Whether the user is kept from coming back. From before the first deletion, a call that would
                create a session or run of the user raises `InvalidValueError`.
        """
        ...

    async def reconcile(self, *, repair: bool = False) -> ReconcileReport:
        """Compares every total with the ledger: the totals of sessions, of their models, and of runs.

        It also compares each rolled-up session with the session, and the sums of the roll-ups with the rolled-up
        sessions. It leaves out `error_count` and `last_model` of a session: an error or a model that came without a key
        is in no ledger (rule R03).

        The job reads in batches, in the order of keys. Comparing locks nothing, and each comparison is one statement
        and so one snapshot: writers can go on. The sums over everybody are one batch, and so are the sums over one user
        or one dataset. With very many sessions such a batch may take longer than `statement_timeout_seconds`.

        Args:
            repair: Whether each row that differs gets the right totals, in its own transaction. A row that a writer
                changed after the comparison is left for the next call. A session that is rolled up wrongly is taken out
                of the roll-ups, and the next `roll_up` rolls it up again. Wrong sums are rebuilt, each batch in one
                transaction; `roll_up` waits for it, and no writer does.
        """
        ...

    def export(
        self,
        table: ExportTable | Literal["all"],
        filters: SessionListFilters | UsageEventFilters | RunFilters | None = None,
        *,
        batch: int = DEFAULT_EXPORT_BATCH,
    ) -> AsyncGenerator[ExportBatch]:
        """Yields the rows of a table, or of all tables one after another, in batches and in the order of the key.

        A row has every column of the table, but those that are derived from others. Roll-ups and reservations are in
        no table: roll-ups are derived, and reservations belong to calls in flight.

        All batches are from one snapshot, which is held until the iterator is closed: one transaction that reads, with
        a cursor of the server. In a host's transaction, each table is a snapshot of its own. Memory is bounded by one
        batch. Close the iterator where it is left early, as with `contextlib.aclosing`. An export is not retried.

        Args:
            table: The table; `all`: the tables of a complete export, in the order of `EXPORT_TABLES`.
            filters: Which rows. `SessionListFilters` choose sessions, and messages by their session. `RunFilters`
                choose runs, and steps by their run. `UsageEventFilters` choose usage events. Order and page of the
                filters do not count. None, and for other tables: all rows.
            batch: The most rows of a batch, 1..10,000.

        Example:
            async with aclosing(db.maintenance.export("sessions")) as batches:
                async for batch in batches:
                    print(len(batch.rows))
        """
        ...

    async def import_export(
        self,
        folder: Path | str,
        *,
        on_refused: Callable[[RefusedRow], object] | None = None,
        on_progress: Callable[[str, str, int], object] | None = None,
    ) -> ImportReport:
        """Adds the rows of a complete export, a folder of JSON Lines or Parquet, as they are.

        Every answer about the imported sessions is then the one of the database that was exported. A row that is there
        already with the same content is left alone, so another call adds nothing, and a call after an interruption adds
        the rest. No row is imported over another one: a row that is there with other content is refused, and so is a
        row that breaks a rule, or whose user is erased. A user is imported as a whole: if one row is refused, all rows
        of its user are left out, those of other users are not.

        The job looks at every row before it writes the first one. Then each batch of rows is one transaction, sessions
        come last, and at the end the totals are compared with the ledger as by `reconcile`. Nobody should write to the
        imported sessions meanwhile. The files are read in threads.

        Args:
            folder: The folder that `session-lifecycle export all` wrote.
            on_refused: Called with each refused row, before anything is written.
            on_progress: Called after each batch with `looked at` or `read`, the table, and its rows so far.

        Raises:
            InvalidValueError: Also: the folder is no complete export of this version, a file differs from its checksum,
                a line is no JSON object or does not say whose it is, or more than 100,000 rows are refused. Nothing was
                written.
            ConfigurationError: Also: Parquet needs pyarrow, which is not installed.
        """
        ...


class SqlAlchemySessionMaintenanceDb(SessionMaintenanceDb):
    """`SessionMaintenanceDb` on Postgres. Made by `SessionDatabase`; not constructed by hosts."""

    def __init__(self, execution: Execution, prices: PriceCatalogue, abandon_after: timedelta) -> None:
        self._execution = execution
        self._sees_every_row = False
        self._repricer = Repricer(execution, prices)
        self._roll_up = RollUp(execution, abandon_after)
        self._pruner = Pruner(execution)
        self._eraser = Eraser(execution)
        self._exporter = Exporter(execution, abandon_after)

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
        asked = Repricing.of_call(model=model, since=since, dry_run=dry_run, until=until, batch=batch)
        check_callable("on_progress", on_progress)
        await self._check_sees_every_row()
        return await self._repricer.reprice(asked, on_progress)

    async def roll_up(self, *, on_progress: Callable[[RollUpReport], None] | None = None) -> RollUpReport:
        check_callable("on_progress", on_progress)
        await self._check_sees_every_row()
        return await self._roll_up.roll_up(on_progress)

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
        check_callable("on_progress", on_progress)
        asked = pruning_of(older_than, batch, dry_run, user_ids, agent_names, dataset_ids)
        await self._check_sees_every_row()
        return await self._pruner.prune_sessions(asked, on_progress)

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
        check_callable("on_progress", on_progress)
        asked = pruning_of(older_than, batch, dry_run, user_ids, agent_names, dataset_ids)
        await self._check_sees_every_row()
        return await self._pruner.prune_payloads(asked, on_progress)

    async def delete_session(self, session_id: str, user_id: UUID | str) -> bool:
        asked = OwnedSession.of_call(session_id=session_id, user_id=user_id)
        await self._check_sees_every_row()
        return await self._eraser.delete_session(asked)

    async def erase_user(
        self, user_id: UUID | str, *, usage: Literal["delete", "anonymise"] = "delete", tombstone: bool = False
    ) -> ErasureReceipt:
        return await self.erase(Erasing.of_call(user_id=user_id, usage=usage, tombstone=tombstone), uuid4())

    async def erase(self, asked: Erasing, pseudonym: UUID) -> ErasureReceipt:
        """`erase_user`, with the pseudonym that the usage gets where it is anonymised."""
        await self._check_sees_every_row()
        receipt = await self._eraser.erase_user(asked, pseudonym if asked.usage == "anonymise" else None)
        # The sums of the roll-ups, and the changes that take the sessions out of them, name the user until then.
        await self._roll_up.compact()
        return receipt

    async def reconcile(self, *, repair: bool = False) -> ReconcileReport:
        asked = Reconciling.of_call(repair=repair)
        await self._check_sees_every_row()
        return await Reconciler(self._execution, repair=asked.repair).reconcile()

    def export(
        self,
        table: ExportTable | Literal["all"],
        filters: SessionListFilters | UsageEventFilters | RunFilters | None = None,
        *,
        batch: int = DEFAULT_EXPORT_BATCH,
    ) -> AsyncGenerator[ExportBatch]:
        tables = exported_tables(table)
        asked = Exporting.of_call(batch=batch)
        return self._exporter.export(tables, checked_filters(tables, filters), asked.batch)

    async def import_export(
        self,
        folder: Path | str,
        *,
        on_refused: Callable[[RefusedRow], object] | None = None,
        on_progress: Callable[[str, str, int], object] | None = None,
    ) -> ImportReport:
        target = ImportTarget([self._execution], self.reconcile)
        return await import_folder(target, folder, on_refused, on_progress)

    async def _check_sees_every_row(self) -> None:
        if not self._sees_every_row:
            await refuse_walled_in(self._execution)
            self._sees_every_row = True


def pruning_of(
    older_than: object, batch: object, dry_run: object, user_ids: object, agent_names: object, dataset_ids: object
) -> Pruning:
    """The arguments of `prune_sessions` and `prune_payloads`, checked. An iterator is read once, here."""
    return Pruning.of_call(
        older_than=older_than,
        batch=batch,
        dry_run=dry_run,
        user_ids=_listed(user_ids),
        agent_names=_listed(agent_names),
        dataset_ids=_listed(dataset_ids),
    )


def _listed(values: object) -> object:
    """The values of a collection as a tuple. What is no collection stays as it is, and is refused with its value."""
    return tuple(values) if isinstance(values, Collection) and not isinstance(values, str | bytes) else values
