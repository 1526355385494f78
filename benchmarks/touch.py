"""What touching costs: HOT or not, and how much WAL, with our indexes and with one on the instant of the activity."""

import asyncio
import time
from uuid import uuid4

import asyncpg

from session_lifecycle import SessionDatabase
from session_lifecycle.embedded import EmbeddedPostgres, temporary_data_dir

SESSIONS = 200
ROUNDS = 20
TABLE = "session_lifecycle.session_records"


async def measure(url: str, db: SessionDatabase) -> tuple[float, float, float]:
    """Share of HOT updates, bytes of WAL and microseconds, per touch."""
    user_id = uuid4()
    sessions = [f"s{number}" for number in range(SESSIONS)]
    for session in sessions:
        await db.lifecycle.ensure_and_touch_session(session, user_id)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"VACUUM {TABLE}")
        await connection.execute("CHECKPOINT")
        await settle(db)
        before = await counters(connection)
        began = time.perf_counter()
        for _ in range(ROUNDS):
            for session in sessions:
                await db.lifecycle.ensure_and_touch_session(session, user_id)
        seconds = time.perf_counter() - began
        await settle(db)
        updates, hot, wal = (after - then for after, then in zip(await counters(connection), before, strict=True))
    finally:
        await connection.close()
    touches = SESSIONS * ROUNDS
    if updates != touches:
        raise SystemExit(f"{updates} updates were counted for {touches} touches")
    return hot / updates, wal / touches, seconds / touches * 1e6


async def settle(db: SessionDatabase) -> None:
    """A backend hands its statistics over when it ends."""
    await db.engine.dispose()
    await asyncio.sleep(0.5)


async def counters(connection: asyncpg.Connection) -> tuple[int, int, int]:
    row = await connection.fetchrow(
        "SELECT n_tup_upd, n_tup_hot_upd, pg_current_wal_lsn() - '0/0' "
        "FROM pg_stat_user_tables WHERE relid = $1::text::regclass",
        TABLE,
    )
    return tuple(map(int, row))


async def main() -> None:
    with temporary_data_dir() as data_dir:
        async with (
            await EmbeddedPostgres.start(data_dir) as server,
            SessionDatabase.connect(server.url) as db,
        ):
            await db.migrate()
            print(f"PostgreSQL {server.version}, {SESSIONS} sessions touched {ROUNDS} times each, one caller\n")
            print(f"{'indexes':42} {'HOT':>6} {'WAL bytes':>10} {'µs':>6}")
            await measure(server.url, db)
            for name, change in (
                ("ours, on the minute of the activity", "SELECT 1"),
                ("and one on the instant of the activity", f"CREATE INDEX added ON {TABLE} (last_activity_at)"),
            ):
                async with db.engine.begin() as connection:
                    await connection.exec_driver_sql(change)
                hot, wal, us = await measure(server.url, db)
                print(f"{name:42} {hot:6.0%} {wal:10.0f} {us:6.0f}")


if __name__ == "__main__":
    asyncio.run(main())
