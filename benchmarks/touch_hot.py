"""Is a touch a HOT update, and how much WAL does it write: with our indexes, and with one on the activity's time?"""

import argparse
import asyncio
import time
from typing import NamedTuple
from uuid import uuid4

import asyncpg

from session_lifecycle import SessionDatabase
from support.databases import database, machine, run, settle
from support.tables import table

SESSIONS = 200
TABLE = "session_lifecycle.session_records"
COUNTERS = """
    SELECT n_tup_upd, n_tup_hot_upd, (pg_current_wal_lsn() - '0/0')::bigint
    FROM pg_stat_user_tables
    WHERE relid = $1::text::regclass
"""


class Counters(NamedTuple):
    """What the server has counted so far."""

    updates: int
    hot_updates: int
    wal_bytes: int


class Touched(NamedTuple):
    """What one touch costs."""

    hot_share: float
    wal_bytes: float
    microseconds: float


async def counters(connection: asyncpg.Connection) -> Counters:
    """The updates of the table and the WAL of the server."""
    row = await connection.fetchrow(COUNTERS, TABLE)
    if row is None:
        raise SystemExit(f"the server has no statistics of {TABLE}")
    return Counters(*map(int, row))


async def hand_in_statistics(db: SessionDatabase) -> None:
    """Ends our connections: only when it ends, a backend hands in all its statistics."""
    await db.engine.dispose()
    await asyncio.sleep(0.5)


async def measure_touching(url: str, db: SessionDatabase, rounds: int) -> Touched:
    """One caller touches each of the sessions, round after round."""
    user_id = uuid4()
    sessions = [f"s{number}" for number in range(SESSIONS)]
    for session in sessions:
        await db.lifecycle.ensure_and_touch_session(session, user_id)
    await settle(db, ["session_records"])
    await hand_in_statistics(db)
    connection = await asyncpg.connect(url)
    try:
        before = await counters(connection)
        began = time.perf_counter()
        for _ in range(rounds):
            for session in sessions:
                await db.lifecycle.ensure_and_touch_session(session, user_id)
        seconds = time.perf_counter() - began
        await hand_in_statistics(db)
        after = await counters(connection)
    finally:
        await connection.close()
    touches = SESSIONS * rounds
    updates = after.updates - before.updates
    if updates != touches:
        raise SystemExit(f"{updates} updates were counted for {touches} touches")
    hot = (after.hot_updates - before.hot_updates) / updates
    return Touched(hot, (after.wal_bytes - before.wal_bytes) / touches, seconds / touches * 1e6)


async def main() -> None:
    """One run: both sets of indexes on the same server, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how often each session is touched")
    arguments = parser.parse_args()
    async with database() as (server, db):
        print(f"{machine(server)}, {SESSIONS} sessions touched {arguments.rounds} times each, one caller\n")
        await measure_touching(server.url, db, arguments.rounds)  # warms up
        ours = await measure_touching(server.url, db, arguments.rounds)
        await run(db, f"CREATE INDEX added ON {TABLE} (last_activity_at)")
        added = await measure_touching(server.url, db, arguments.rounds)
        rows = [
            [name, f"{one.hot_share:.0%}", f"{one.wal_bytes:.0f}", f"{one.microseconds:.0f}"]
            for name, one in (
                ("ours, on the minute of the activity", ours),
                ("ours, and one on the time of the activity", added),
            )
        ]
        print(table("", ["indexes", "HOT", "WAL bytes", "µs"], rows))


if __name__ == "__main__":
    asyncio.run(main())
