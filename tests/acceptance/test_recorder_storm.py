"""A storm: several processes with recorders, killed backends, a crashed server, and a network with faults."""

import asyncio
import re
import sys
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from session_lifecycle import SessionDatabase, UsageEvent, Viewer
from session_lifecycle.postgres.embedded import EmbeddedPostgres, temporary_data_dir
from support import recorder_process
from support.faulty_proxy import FaultyProxy

TESTS = Path(__file__).parent.parent
"""The folder in which `support` is a package."""
KILL_ONE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY random() LIMIT 1
"""
PER_SESSION = """
    SELECT user_id, session_id, sum(tokens_in), sum(tokens_out), sum(cost_usd)
    FROM session_lifecycle.{table} GROUP BY user_id, session_id
"""
TABLES = ("session_records", "session_model_usage", "session_usage_events")


async def kill_backends(url: str, every_seconds: float) -> None:
    while True:
        try:
            connection = await asyncpg.connect(url)
            try:
                while True:
                    await asyncio.sleep(every_seconds)
                    await connection.execute(KILL_ONE)
            finally:
                connection.terminate()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await asyncio.sleep(0.1)  # the server restarts


def expected_totals(processes: int, tasks: int, uses: int) -> dict[tuple[object, ...], tuple[int, int, Decimal]]:
    """The totals of each session, from the highest revision of each key."""
    held: dict[tuple[object, ...], UsageEvent] = {}
    for process in range(processes):
        for task in range(tasks):
            for event in recorder_process.events_of(process, task, uses):
                held[event.user_id, event.session_id, event.idempotency_key] = event
    totals: dict[tuple[object, ...], tuple[int, int, Decimal]] = defaultdict(lambda: (0, 0, Decimal(0)))
    for (user_id, session_id, _), event in held.items():
        tokens_in, tokens_out, cost = totals[user_id, session_id]
        assert event.cost_usd is not None
        totals[user_id, session_id] = (
            tokens_in + event.tokens_in,
            tokens_out + event.tokens_out,
            cost + (Decimal(event.cost_usd) if event.billing == "api" else 0),
        )
    return totals


async def storm(*, processes: int, tasks: int, uses: int, crashes: int, share: float, every_seconds: float) -> None:
    deadlocks = 0
    with temporary_data_dir() as data_dir:
        async with await EmbeddedPostgres.start(data_dir, tcp=True) as server:
            async with SessionDatabase.connect(server.url) as db:
                await db.migrate()
            url = make_url(server.url)
            proxy = FaultyProxy(url.port or 0, share)
            log = data_dir.with_name("data.control") / "server.log"
            async with proxy.running():
                through = url.set(port=proxy.port).render_as_string(hide_password=False)
                running = [
                    await asyncio.create_subprocess_exec(
                        sys.executable, "-m", recorder_process.__name__, through, *map(str, (process, tasks, uses)),
                        cwd=TESTS, stderr=asyncio.subprocess.PIPE,
                    )
                    for process in range(processes)
                ]  # fmt: skip
                killer = asyncio.create_task(kill_backends(server.url, every_seconds))
                for _ in range(crashes):
                    await asyncio.sleep(2)
                    deadlocks += log.read_text().count("deadlock detected")
                    await server.restart("immediate")
                outputs = await asyncio.gather(*(process.communicate() for process in running))
                killer.cancel()
                assert [process.returncode for process in running] == [0] * processes, outputs
            assert min(proxy.faults.values()) > 0, proxy.faults
            deadlocks += log.read_text().count("deadlock detected")
            connection = await asyncpg.connect(server.url)
            try:
                expected = expected_totals(processes, tasks, uses)
                for table in TABLES:
                    rows = await connection.fetch(PER_SESSION.format(table=table))
                    assert {tuple(row)[:2]: tuple(row)[2:] for row in rows} == expected, table
                late = "SELECT count(*) FROM session_lifecycle.session_usage_events WHERE late"
                assert await connection.fetchval(late) == 0
            finally:
                await connection.close()
            async with SessionDatabase.connect(server.url) as db:
                assert (await db.maintenance.reconcile()).mismatches == []
                stats = await db.lifecycle.aggregate_stats(Viewer.auditor())
                assert stats.partial_events == 0
                assert stats.plan_cost_usd > 0
                costs = await db.lifecycle.cost_by_model(Viewer.auditor())
                assert (
                    sum(row.cost_usd for row in costs)
                    == stats.total_spend_usd
                    == sum(cost for _, _, cost in expected.values())
                )
        assert deadlocks == 0, re.findall(".*deadlock.*", log.read_text())


async def test_a_storm_loses_and_doubles_nothing() -> None:
    await storm(processes=2, tasks=16, uses=12, crashes=1, share=0.05, every_seconds=0.25)


@pytest.mark.soak
async def test_a_long_storm_loses_and_doubles_nothing() -> None:
    await storm(processes=4, tasks=128, uses=60, crashes=2, share=0.01, every_seconds=0.25)
