"""Moving a bucket to another server: copy, catch up, switch, arrive. Its writers wait for less than a second.

The old place is the one truth until one transaction there renames the schema and leaves a pointer to the new place. A
program that has not heard of it finds nothing at the old place any more, reads the pointer and goes on at the new one.

The copy has another name until then. So no program takes it for the bucket, also none that knows the bucket at the new
place from an earlier stay. A second transaction, at the new place, gives it the name. Between the two the bucket is out
of reach: programs wait, and where a move has crashed there, the next call of it runs the second transaction.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import asyncpg

from session_lifecycle.entities import quoted
from session_lifecycle.errors import ConfigurationError, TransactionConflictError
from session_lifecycle.models.maintenance import MoveReport
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.postgres.function_files import function_files
from session_lifecycle.postgres.schema_check import TRIGGER
from session_lifecycle.statements.buckets import moving
from session_lifecycle.statements.buckets.moving import arriving_schema, left_schema

LOCK_TIMEOUT_MS = 300
"""How long the move waits for the writers at work, while all others wait behind it, before it lets them through."""
LOCK_ATTEMPTS = 300
PAUSE_SECONDS = 0.05
MOST_NOTES = 5_000
"""How many changes one round of catching up carries over."""
FEW_NOTES = 500
"""With so few changes left, the writers are locked out for the rest."""
MOST_ROUNDS = 10_000

OnProgress = Callable[[str], object] | None


class Mover:
    """Moves the rows of one bucket from one connection to another. Neither is in a transaction. Both are claimed."""

    def __init__(
        self,
        old: "asyncpg.Connection",
        new: "asyncpg.Connection",
        schema: str,
        move_id: UUID,
        on_progress: OnProgress = None,
    ) -> None:
        self._old = old
        self._new = new
        self._schema = schema
        self._arriving = arriving_schema(schema)
        self._move_id = move_id
        self._on_progress = on_progress
        self._keys = moving.moved_tables()
        self._columns: dict[str, list[str]] = {}

    async def move(self, moved_to: str, *, keeps_copy: bool) -> MoveReport:
        """Moves the bucket.

        Args:
            moved_to: The URL of the new place, without a password.
            keeps_copy: Whether the rows stay at the old place, in the schema of `left_schema`.

        Raises:
            TransactionConflictError: The writers never let the move have its lock, or wrote faster than it copies.
        """
        try:
            rows = await self._copy()
            changes, paused = await self._switch(moved_to)
        except BaseException:
            # What cannot be dropped now is dropped by the next move.
            with suppress(TransactionConflictError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await self._drop_notes()
            raise
        if not keeps_copy:
            await self._old.execute(moving.drop_schema(left_schema(self._schema)))
        return MoveReport(rows=rows, changes=changes, paused_seconds=paused)

    def _tell(self, what: str) -> None:
        if self._on_progress is not None:
            self._on_progress(what)

    async def _copy(self) -> int:
        """Has changes noted from now on, and copies every table. Returns the number of rows."""
        schema = self._schema
        await self._drop_notes()
        for sql in (moving.drop_schema(left_schema(schema)), *moving.create_notes(schema)):
            await self._old.execute(sql)
        for table, key in self._keys.items():
            await self._with_lock(moving.note_changes(schema, table, key))
        found = await self._old.fetch(moving.STORED_COLUMNS, quoted(schema))
        self._columns = {row["table_name"]: row["columns"] for row in found}
        await self._new.execute(moving.set_trigger(self._arriving, TRIGGER, enabled=False))
        copied = 0
        for table in self._keys:
            rows = await self._carry(table, moving.select_rows(schema, table, self._columns[table]))
            copied += rows
            self._tell(f"{table}: {rows:,} rows")
        for table in self._keys:
            await self._new.execute(f"ANALYZE {moving.place(self._arriving, table)}")
        return copied

    async def _drop_notes(self) -> None:
        for sql in moving.drop_notes(self._schema):
            await self._with_lock(sql)

    async def _with_lock(self, sql: str) -> None:
        """Runs DDL that waits for writers, a short while at a time."""
        for _ in range(LOCK_ATTEMPTS):
            try:
                async with self._old.transaction():
                    await self._old.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                    await self._old.execute(sql)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                await asyncio.sleep(with_jitter(PAUSE_SECONDS))
            else:
                return
        raise self._gave_up()

    def _gave_up(self) -> TransactionConflictError:
        return TransactionConflictError(
            f"schema {self._schema!r} was not moved: a transaction kept a lock for too long; move it again"
        )

    async def _carry(self, table: str, query: str, *values: Any) -> int:
        """Copies the rows of a query into the table at the new place. Returns their number."""
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=64)

        async def read() -> None:
            try:
                await self._old.copy_from_query(query, *values, output=chunks.put, format="binary")
            except asyncio.CancelledError:  # nobody takes chunks any more
                raise
            except BaseException:
                await chunks.put(None)
                raise
            await chunks.put(None)

        async def source() -> AsyncIterator[bytes]:
            while (chunk := await chunks.get()) is not None:
                yield chunk
            # A failure of the reader ends the copy as failed, and is what the caller gets: rows so far may look whole.
            await reading

        reading = asyncio.create_task(read())
        try:
            status: str = await self._new.copy_to_table(
                table, schema_name=self._arriving, columns=self._columns[table], source=source(), format="binary"
            )
        except BaseException:
            reading.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await reading
            raise
        return int(status.rpartition(" ")[2])

    async def _catch_up(self, most: int) -> int:
        """Carries over the rows of the first notes. Runs inside a transaction of the old place.

        If that one is not committed, the same rows are carried over again.
        """
        taken = await self._old.fetch(moving.take_notes(self._schema, most))
        if not taken:
            return 0
        async with self._new.transaction():
            for table, keys, _ in taken:
                await self._new.execute(moving.delete_rows(self._arriving, table, self._keys[table]), keys)
                query = moving.select_rows(self._schema, table, self._columns[table], self._keys[table])
                await self._carry(table, query, keys)
        return sum(row["notes"] for row in taken)

    async def _switch(self, moved_to: str) -> tuple[int, float]:
        """Catches up until few changes are left, then locks writers out for those, and lets them in at the new place.

        Returns:
            The number of changes, and for how many seconds writers may have waited.
        """
        changes = attempts = 0
        for _ in range(MOST_ROUNDS):
            async with self._old.transaction():
                found = await self._catch_up(MOST_NOTES)
            changes += found
            if found > FEW_NOTES:
                continue
            self._tell(f"{changes:,} changes caught up")
            began = time.monotonic()
            try:
                last = await self._locked_out(moved_to)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                last = None
            if last is not None:
                await arrive(self._new, self._schema, self._move_id)
                return changes + last, time.monotonic() - began
            attempts += 1
            if attempts == LOCK_ATTEMPTS:
                break
            await asyncio.sleep(with_jitter(PAUSE_SECONDS))
        raise self._gave_up()

    async def _locked_out(self, moved_to: str) -> int | None:
        """The switch, in one transaction of the old place. None: too much was written meanwhile, nothing happened."""
        schema = self._schema
        async with self._old.transaction():
            await self._old.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
            await self._old.execute(moving.lock_writers_out(schema, list(self._keys)))
            [(notes,)] = await self._old.fetch(moving.count_notes(schema, 4 * FEW_NOTES))
            if notes >= 4 * FEW_NOTES:
                return None
            changes = await self._catch_up(MOST_NOTES)
            await self._copy_sequences()
            # What notes changes goes with the schema: dropping it here would wait for the readers.
            for sql in moving.leave_pointer(schema):
                await self._old.execute(sql)
            await self._old.execute(moving.point_to(schema), moved_to, self._move_id)
        return changes

    async def _copy_sequences(self) -> None:
        found = await self._new.fetch(moving.SEQUENCES, quoted(self._arriving))
        there = {row["name"]: row["sequence"] for row in found}
        for sequence, here in await self._old.fetch(moving.SEQUENCES, quoted(self._schema)):
            if sequence in there:
                [state] = await self._old.fetch(moving.read_sequence(here))
                await self._new.execute(moving.SET_SEQUENCE, there[sequence], *state)


@asynccontextmanager
async def claimed(schema: str, *connections: "asyncpg.Connection") -> AsyncGenerator[None]:
    """Keeps every other move of the bucket away from these places.

    Raises:
        ConfigurationError: Another move is at work at one of them, or two of them are one database.
    """
    taken: list[asyncpg.Connection] = []
    try:
        for connection in connections:
            if not await connection.fetchval(moving.TRY_CLAIM, schema):
                raise ConfigurationError(
                    f"schema {schema!r} is being moved by another program, or both places are the same database"
                )
            taken.append(connection)
        yield
    finally:
        for connection in taken:
            # A lost connection has no lock.
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await connection.execute(moving.RELEASE, schema)


async def clear_new_place(new: "asyncpg.Connection", schema: str, number: int) -> None:
    """Drops at the new place what an interrupted move has left. A pointer stays until the bucket arrives.

    Raises:
        ConfigurationError: A schema has something else.
    """
    for name, is_pointer in ((schema, True), (arriving_schema(schema), False)):
        if not await new.fetchval(moving.HAS_SCHEMA, name):
            continue
        rows = []
        if await new.fetchval(moving.HAS_TABLE, name, "session_buckets"):
            rows = await new.fetch(moving.read_bucket(name))
        if [(row["number"], row["moved_to"] is not None) for row in rows] != [(number, is_pointer)]:
            raise ConfigurationError(
                f"schema {name!r} is there already at the new place: drop it, or name another place"
            )
        if not is_pointer:
            await new.execute(moving.drop_schema(name))


async def arrive(new: "asyncpg.Connection", schema: str, move_id: UUID) -> None:
    """Gives the copy of this move the name of the bucket. Does nothing where that is done.

    The old place has a pointer to this one: the copy is the bucket.
    """
    arriving = arriving_schema(schema)
    async with new.transaction():
        await new.execute(moving.CLAIM_WITHIN_TRANSACTION, schema)
        if not await new.fetchval(moving.HAS_TABLE, arriving, "session_buckets"):
            return
        [row] = await new.fetch(moving.read_bucket(arriving))
        if row["move_id"] != move_id:
            return
        for sql in moving.take_name(arriving, schema, TRIGGER):
            await new.execute(sql)
        # Their texts name the schema.
        await new.execute(";".join(one.create_sql(schema, replace=True) for one in function_files().values()))
