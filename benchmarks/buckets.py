"""What do buckets cost beside one schema: eight in one server, and on Citus where a cluster is named?"""

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import count
from typing import Any
from uuid import UUID

from sqlalchemy import text

from session_lifecycle import SessionDatabase, SessionListFilters, UsageEvent
from session_lifecycle.buckets.database import BucketDatabase
from support.databases import database, machine
from support.measuring import in_turns
from support.tables import table

BUCKETS = 8
BATCH_USERS = 40
USERS = [UUID(int=number) for number in range(1, 401)]
SESSIONS_OF_USER = 50

Database = SessionDatabase | BucketDatabase
Call = Callable[[], Awaitable[Any]]

_numbers = count()


def calls(db: Database, one_bucket: Sequence[UUID]) -> dict[str, Call]:
    """The calls of one side.

    Args:
        db: The database.
        one_bucket: Users of one bucket of every side that has buckets.
    """
    lifecycle, user = db.lifecycle, USERS[7]
    filters = SessionListFilters(user_id=user)

    def events(users: Sequence[UUID]) -> list[UsageEvent]:
        numbers = [next(_numbers) for _ in range(500)]
        return [
            UsageEvent(
                session_id=f"s{number % SESSIONS_OF_USER}",
                user_id=users[number % len(users)],
                model="gpt-4o",
                tokens_in=120,
                tokens_out=40,
                idempotency_key=f"{id(db)}-{number}",
            )
            for number in numbers
        ]

    return {
        "one use": lambda: lifecycle.accumulate_usage("s1", user, "gpt-4o", 120, 40),
        "batch of 500, users of one bucket": lambda: lifecycle.record(events(one_bucket)),
        "batch of 500, users of all buckets": lambda: lifecycle.record(events(USERS[:BATCH_USERS])),
        "own page of 50": lambda: lifecycle.list_session_rows(filters),
        "own stats": lambda: lifecycle.aggregate_stats(user),
    }


async def fill(db: Database) -> None:
    for first in range(0, len(USERS), 20):
        await db.lifecycle.record(
            [
                UsageEvent(session_id=f"s{number}", user_id=user, model="gpt-4o", tokens_in=10, tokens_out=5)
                for user in USERS[first : first + 20]
                for number in range(SESSIONS_OF_USER)
            ]
        )


async def compare(plain: SessionDatabase, buckets: BucketDatabase, name: str, seconds: float) -> None:
    for db in (plain, buckets):
        await fill(db)
        stats = await db.lifecycle.aggregate_stats(USERS[7])
        if (stats.sessions, stats.tokens_in) != (SESSIONS_OF_USER, 10 * SESSIONS_OF_USER):
            raise SystemExit(f"{name}: wrong totals {stats}")
    one_bucket = [user for user in USERS if buckets.bucket_of(user) == 0][:BATCH_USERS]
    await plain.maintenance.roll_up()
    await buckets.maintenance.roll_up()
    async with plain.engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("VACUUM (ANALYZE)"))
    on_plain, on_buckets = calls(plain, one_bucket), calls(buckets, one_bucket)
    rows: list[list[str]] = []
    for what in on_plain:
        found = await in_turns({"plain": on_plain[what], "buckets": on_buckets[what]}, seconds)
        ratio = found["buckets"] / found["plain"]
        rows.append([what, f"{found['plain']:.2f} ms", f"{found['buckets']:.2f} ms", f"{ratio:.2f}x"])
    print(table(name, ["call", "plain", "buckets", "ratio"], rows))


async def on_one_server(seconds: float) -> None:
    async with database() as (server, plain):
        print(machine(server), f"load {os.getloadavg()[0]:.1f}", sep=", ")
        async with SessionDatabase.buckets([f"bucket_{number}" for number in range(BUCKETS)], url=server.url) as db:
            await db.migrate()
            await compare(plain, db, f"{BUCKETS} buckets in one server", seconds)


async def on_citus(url: str, seconds: float) -> None:
    """Both sides are on the cluster; the plain schema is a local one of the coordinator."""
    schemas = [f"bench_{os.getpid()}_{number}" for number in range(BUCKETS)]
    alone = f"bench_{os.getpid()}"
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(SessionDatabase.connect(url, schema=alone))
        db = await stack.enter_async_context(SessionDatabase.buckets(schemas, url=url))

        async def drop() -> None:
            async with plain.engine.connect() as connection:
                autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
                for schema in (*schemas, alone):
                    await autocommit.execute(text(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))

        stack.push_async_callback(drop)
        await plain.migrate()
        await db.migrate()
        await db.placement.distribute()
        print(f"load {os.getloadavg()[0]:.1f}")
        await compare(plain, db, f"{BUCKETS} buckets on Citus", seconds)


async def main(seconds: float, citus: str | None) -> None:
    await on_one_server(seconds)
    if citus is not None:
        await on_citus(citus, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="for each call")
    parser.add_argument("--citus", help="URL of the coordinator of a Citus cluster, whose user may create schemas")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.seconds, arguments.citus))
