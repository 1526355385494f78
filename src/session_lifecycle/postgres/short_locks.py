"""A change of the schema gives up a lock that it does not get, and lets the writers through.

A statement that waits for a table's lock makes every later writer of that table wait behind it. So a migration gives up
a lock after `LOCK_TIMEOUT_SECONDS`, lets the writers through and tries again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asyncpg import LockNotAvailableError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_lifecycle.errors import TransactionConflictError, shortened
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.postgres.failures import DRIVER_FAILURES, driver_error
from session_lifecycle.postgres.schema_check import UPGRADE_COMMAND

LOCK_TIMEOUT_SECONDS = 0.5
LOCK_ATTEMPTS = 60
"""How often a migration tries to get its locks: for more than a minute."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
_OLDEST_TRANSACTION = """
SELECT pid, application_name, round(extract(epoch FROM clock_timestamp() - xact_start))::bigint AS seconds
FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() AND xact_start IS NOT NULL
    AND backend_type = 'client backend'
ORDER BY xact_start
LIMIT 1
"""

Migrated = TypeVar("Migrated")
OnProgress = Callable[[str], object]
"""Gets a sentence at each step of a migration that takes longer."""


async def with_short_locks(
    engine: AsyncEngine, migrate: Callable[[AsyncConnection], Awaitable[Migrated]], on_progress: OnProgress | None
) -> Migrated:
    """Runs a migration in one transaction, again and again until it gets its locks.

    A lock that it does not get within `LOCK_TIMEOUT_SECONDS` it gives up, with all others, so that the writers behind
    it go on.
    """
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            async with engine.begin() as connection:
                # A migration may take longer than the statement timeout, which is for requests.
                await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                return await migrate(connection)
        except DRIVER_FAILURES as error:
            if not isinstance(driver_error(error), LockNotAvailableError):
                raise
            holder = await _oldest_transaction(engine)
            if attempt == LOCK_ATTEMPTS:
                raise TransactionConflictError(
                    f"the migration did not get its locks in {LOCK_ATTEMPTS} attempts (lock timeout). Nothing was "
                    f"changed, and the database works as before. {holder} Wait for it or end it, then run "
                    f"`{UPGRADE_COMMAND}` again"
                ) from error
        tell(on_progress, f"attempt {attempt} of {LOCK_ATTEMPTS} did not get its locks, and writers go on. {holder}")
        await asyncio.sleep(with_jitter(pause))
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
    raise AssertionError("unreachable: the last attempt returns or raises")


def tell(on_progress: OnProgress | None, sentence: str) -> None:
    if on_progress is not None:
        on_progress(sentence)


async def _oldest_transaction(engine: AsyncEngine) -> str:
    """A sentence on the oldest transaction of the database, which most likely holds the lock."""
    async with engine.connect() as connection:
        found = (await connection.exec_driver_sql(_OLDEST_TRANSACTION)).first()
    if found is None:
        return "No transaction is open now."
    application = shortened(found.application_name)
    return f"The oldest transaction is of process {found.pid} ({application}), open for {found.seconds} s."
