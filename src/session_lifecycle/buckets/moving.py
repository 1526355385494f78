"""Moving a bucket to another server: copy, catch up, switch. Its writers wait for less than a second.

The old place is the one truth until one transaction there renames the schema and leaves a pointer to the new place. A
program that has not heard of it finds nothing at the old place any more, reads the pointer and goes on at the new one.
Before that transaction nobody uses the copy, and after it nobody the original, whatever crashes in between.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from session_lifecycle.entities import quoted
from session_lifecycle.errors import ConfigurationError, TransactionConflictError
from session_lifecycle.models.maintenance import MoveReport
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.postgres.schema_check import TRIGGER
from session_lifecycle.statements.buckets import moving

LOCK_TIMEOUT_MS = 300
"""How long the move waits for the writers at work, while all others wait behind it, before it lets them through."""
LOCK_ATTEMPTS = 300
PAUSE_SECONDS = 0.05
MOST_NOTES = 5_000
"""How many changes one round of catching up carries over."""
FEW_NOTES = 500
"""With so few changes left, the writers are locked out for the rest."""
MOST_ROUNDS = 10_000
LEFT = " (moved)"
MOST_NAME_BYTES = 63

OnProgress = Callable[[str], object] | None


class Mover:
    """Moves the rows of one bucket from one connection to another. Neither is in a transaction.

    The bucket's schema has the same name at both places, and is migrated and empty at the new one.
    """

    def __init__(
        self, old: "asyncpg.Connection", new: "asyncpg.Connection", schema: str, on_progress: OnProgress = None
    ) -> None:
        self._old = old
        self._new = new
        self._schema = schema
        self._on_progress = on_progress
        self._keys = moving.moved_tables()
        self._columns: dict[str, list[str]] = {}

    async def move(self, moved_to: str, *, keeps_copy: bool) -> MoveReport:
        """Moves the bucket.

        Args:
            moved_to: The URL of the new place, without a password.
            keeps_copy: Whether the rows stay at the old place, under the schema's name and `LEFT`.

        Raises:
            ConfigurationError: Another move of this bucket is at work.
            TransactionConflictError: The writers never let the move have its lock, or wrote faster than it copies.
        """
        key = f"{self._schema} moves"
        if not await self._old.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 3))", key):
            raise ConfigurationError(f"schema {self._schema!r} is being moved by another program")
        try:
            rows = await self._copy()
            changes, paused = await self._switch(moved_to)
        except BaseException:
            # What cannot be dropped now is dropped by the next move.
            with suppress(TransactionConflictError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await self._drop_notes()
            raise
        finally:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await self._old.execute("SELECT pg_advisory_unlock(hashtextextended($1, 3))", key)
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
        await self._new.execute(moving.set_trigger(schema, TRIGGER, enabled=False))
        copied = 0
        for table in self._keys:
            rows = await self._carry(table, moving.select_rows(schema, table, self._columns[table]))
            copied += rows
            self._tell(f"{table}: {rows:,} rows")
        for table in self._keys:
            await self._new.execute(f"ANALYZE {moving.place(schema, table)}")
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
            except Exception:
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
                table, schema_name=self._schema, columns=self._columns[table], source=source(), format="binary"
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
                await self._new.execute(moving.delete_rows(self._schema, table, self._keys[table]), keys)
                query = moving.select_rows(self._schema, table, self._columns[table], self._keys[table])
                await self._carry(table, query, keys)
        return sum(row["notes"] for row in taken)

    async def _switch(self, moved_to: str) -> tuple[int, float]:
        """Catches up until few changes are left, then locks writers out for those and leaves the pointer.

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
            await self._new.execute(moving.set_trigger(schema, TRIGGER, enabled=True))
            # What notes changes goes with the schema: dropping it here would wait for the readers.
            for sql in moving.leave_pointer(schema, left_schema(schema)):
                await self._old.execute(sql)
            await self._old.execute(moving.point_to(schema), moved_to)
        return changes

    async def _copy_sequences(self) -> None:
        name = quoted(self._schema)
        there = {row["name"]: row["sequence"] for row in await self._new.fetch(moving.SEQUENCES, name)}
        for sequence, here in await self._old.fetch(moving.SEQUENCES, name):
            if sequence in there:
                [state] = await self._old.fetch(moving.read_sequence(here))
                await self._new.execute(moving.SET_SEQUENCE, there[sequence], *state)


def left_schema(schema: str) -> str:
    """The name of the schema that stays at the old place."""
    return schema.encode()[: MOST_NAME_BYTES - len(LEFT)].decode(errors="ignore") + LEFT


async def clear_new_place(new: "asyncpg.Connection", schema: str, number: int) -> None:
    """Drops at the new place what an interrupted move or an earlier stay of this bucket has left.

    Raises:
        ConfigurationError: The schema has something else.
    """
    if not await new.fetchval(moving.HAS_SCHEMA, schema):
        return
    if await new.fetchval(moving.HAS_TABLE, moving.place(schema, "session_buckets")):
        rows = await new.fetch(moving.read_bucket(schema))
        if [row["number"] for row in rows] == [number] and (rows[0]["is_arriving"] or rows[0]["moved_to"] is not None):
            await new.execute(moving.drop_schema(schema))
            return
    raise ConfigurationError(f"schema {schema!r} is there already at the new place: drop it, or name another place")
