"""What touching costs: HOT or not, and how much WAL, with our indexes and with one on the instant of the activity."""

import asyncio
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import asyncpg

from session_lifecycle import SessionDatabase
from session_lifecycle.embedded import EmbeddedPostgres

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
        before = await counters(connection)
        began = time.perf_counter()
        for _ in range(ROUNDS):
            for session in sessions:
                await db.lifecycle.ensure_and_touch_session(session, user_id)
        seconds = time.perf_counter() - began
        await asyncio.sleep(1.5)  # the statistics arrive with a delay
        updates, hot, wal = (after - then for after, then in zip(await counters(connection), before, strict=True))
    finally:
        await connection.close()
    touches = SESSIONS * ROUNDS
    assert updates == touches, f"{updates} updates for {touches} touches"
    return hot / updates, wal / touches, seconds / touches * 1e6


async def counters(connection: asyncpg.Connection) -> tuple[int, int, int]:
    row = await connection.fetchrow(
        "SELECT n_tup_upd, n_tup_hot_upd, pg_current_wal_lsn() - '0/0' FROM pg_stat_user_tables WHERE relid = $1::regclass",
        TABLE,
    )
    return tuple(map(int, row))


async def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        async with await EmbeddedPostgres.start(Path(folder) / "data") as server:
            async with SessionDatabase.connect(server.url) as db:
                await db.migrate()
                print(f"PostgreSQL {server.version}, {SESSIONS} sessions touched {ROUNDS} times each, one caller\n")
                print(f"{'indexes':42} {'HOT':>6} {'WAL bytes':>10} {'µs':>6}")
                await measure(server.url, db)
                for name, change in (
                    ("ours, on the minute of the activity", None),
                    ("and one on the instant of the activity", f"CREATE INDEX added ON {TABLE} (last_activity_at)"),
                ):
                    if change:
                        connection = await asyncpg.connect(server.url)
                        await connection.execute(change)
                        await connection.close()
                    hot, wal, us = await measure(server.url, db)
                    print(f"{name:42} {hot:6.0%} {wal:10.0f} {us:6.0f}")


if __name__ == "__main__":
    asyncio.run(main())
