"""What the doctor finds, and that what it says to do mends it."""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from session_lifecycle import InvalidValueError, SessionDatabase, Settings, Spool, Touch
from session_lifecycle.maintenance import doctor
from session_lifecycle.models import PriceOverride
from session_lifecycle.models.doctor import DoctorReport, Finding, Severity
from session_lifecycle.postgres.permissions import DatabaseRole
from session_lifecycle.testing import TemplateServer
from support.commands import run
from support.roles import database_roles, grant, url_as

USER = UUID(int=1)
# The tests' server does not wait for its disk.
OF_TEST_SERVER = {"durability"}


def found(report: DoctorReport) -> dict[str, Finding]:
    return {one.check: one for one in report.findings if one.check not in OF_TEST_SERVER}


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(autouse=True)
def no_spool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


async def test_a_database_in_order_needs_no_action(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1)
    report = await session_database.diagnose(full=True)
    assert found(report) == {}
    assert report.revision == "0001"
    assert report.figures is not None
    assert (report.figures.drift_sample_sessions, report.figures.drift_sample_mismatches) == (1, 0)


async def test_what_the_test_server_leaves_out_is_found(session_database: SessionDatabase) -> None:
    durability = [one for one in (await session_database.diagnose()).findings if one.check == "durability"]
    for one in durability:
        assert one.do is not None
        assert one.do.startswith("ALTER SYSTEM SET ")


async def test_a_database_that_is_not_migrated_is_told_so(
    session_template_server: TemplateServer, session_database_url: str
) -> None:
    async with SessionDatabase.connect(session_database_url, schema="another") as db:
        report = await db.diagnose()
        assert found(report)["schema"].do == "session-lifecycle db upgrade"
        assert (report.revision, report.figures) == (None, None)
        await db.migrate()
        assert "schema" not in found(await db.diagnose())


async def test_missing_and_invalid_indexes_are_found_and_mended(session_database_url: str) -> None:
    name = "ix_session_records_session_id_activity_minute"
    await execute(
        session_database_url,
        "DROP INDEX session_lifecycle.ix_session_usage_events_at",
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'session_lifecycle.{name}'::regclass",
    )
    async with SessionDatabase.connect(session_database_url) as db:
        findings = found(await db.diagnose())
        assert "index ix_session_usage_events_at" in findings["schema"].says
        assert name in findings["indexes"].says
        assert findings["indexes"].severity is Severity.ERROR
        await db.migrate()
        assert found(await db.diagnose()) == {}


async def test_a_bloated_index_is_found_and_rebuilt(session_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BLOATED_BYTES", 100_000)
    insert = """
        INSERT INTO session_lifecycle.session_tombstones (user_id)
        SELECT gen_random_uuid() FROM generate_series(1, 20000)
    """
    await execute(session_database_url, insert, "VACUUM ANALYZE session_lifecycle.session_tombstones")
    async with SessionDatabase.connect(session_database_url) as db:
        assert "bloat" not in found(await db.diagnose())
        delete = "DELETE FROM session_lifecycle.session_tombstones WHERE random() < 0.95"
        await execute(session_database_url, delete, "VACUUM ANALYZE session_lifecycle.session_tombstones")
        bloat = found(await db.diagnose())["bloat"]
        assert "pk_session_tombstones" in bloat.says
        assert bloat.do is not None
        await execute(session_database_url, bloat.do, "ANALYZE session_lifecycle.session_tombstones")
        assert "bloat" not in found(await db.diagnose())


async def test_an_idle_transaction_is_found_and_ended(
    session_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "MOST_IDLE_SECONDS", 0.05)
    idle = await asyncpg.connect(session_database_url, server_settings={"application_name": "forgotten"})
    await idle.execute("BEGIN")
    await idle.execute("SELECT 1")
    await asyncio.sleep(0.2)
    async with SessionDatabase.connect(session_database_url) as db:
        report = await db.diagnose()
        transaction = found(report)["transactions"]
        assert "'forgotten'" in transaction.says
        assert report.figures is not None
        assert report.figures.idle_in_transaction_seconds > 0.05
        assert transaction.do is not None
        await execute(session_database_url, transaction.do)
        assert "transactions" not in found(await db.diagnose())
    idle.terminate()


async def test_statistics_and_dead_rows_are_found(session_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MANY_DEAD_ROWS", 100)
    monkeypatch.setattr(doctor, "LARGE_TABLE_BYTES", 10_000)
    table = "session_lifecycle.session_tombstones"
    await execute(
        session_database_url,
        f"ALTER TABLE {table} SET (autovacuum_enabled = false)",
        f"INSERT INTO {table} (user_id) SELECT gen_random_uuid() FROM generate_series(1, 1000)",
    )
    async with SessionDatabase.connect(session_database_url) as db:
        statistics = found(await db.diagnose())["statistics"]
        assert statistics.do == 'ANALYZE "session_lifecycle"."session_tombstones"'
        await execute(session_database_url, statistics.do, f"DELETE FROM {table}", "SELECT pg_stat_force_next_flush()")
        findings = found(await db.diagnose())
        assert "statistics" not in findings
        vacuum = findings["vacuum"]
        assert vacuum.do is not None
        await execute(session_database_url, vacuum.do)
        assert "vacuum" not in found(await db.diagnose())


def later(clock: Callable[[], float], seconds: float) -> float:
    return clock() + seconds


async def test_a_clock_that_differs_is_found(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    for ahead, severity, says in ((30.0, Severity.WARNING, "30 s behind"), (-400.0, Severity.ERROR, "400 s ahead of")):
        monkeypatch.setattr("session_lifecycle.maintenance.doctor.time.time", partial(later, real, ahead))
        clock = found(await session_database.diagnose())["clock"]
        assert clock.severity is severity
        assert says in clock.says


async def test_sessions_that_wait_for_a_roll_up_are_found(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "FEW_SESSIONS", 2)
    long_ago = datetime.now(UTC) - timedelta(days=1)
    await session_database.lifecycle.record([Touch(session_id=f"s{n}", user_id=USER, at=long_ago) for n in range(3)])
    report = await session_database.diagnose()
    assert report.figures is not None
    assert report.figures.sessions_to_roll_up == 3
    assert 86_000 < report.figures.roll_up_lag_seconds < 87_000
    assert found(report)["roll_up"].do == "session-lifecycle roll-up"
    await session_database.maintenance.roll_up()
    assert found(await session_database.diagnose()) == {}


async def test_unpriced_models_are_found_with_what_would_price_them(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    async with SessionDatabase.connect(session_database_url) as db:
        await db.lifecycle.accumulate_usage("s", USER, "made-up", 1, 1, provider="acme")
        report = await db.diagnose()
        price = found(report)["prices"]
        assert "1 events of the last 7 days are unpriced: model 'made-up' of provider 'acme'" in price.says
        assert price.do is not None
        assert "PriceOverride(model_pattern='made-up', provider='acme', …)" in price.do
        assert report.figures is not None
        assert (report.figures.unpriced_events, report.figures.unpriced_models) == (1, 1)
    prices = [
        PriceOverride(model_pattern="made-up", provider="acme", input_usd_per_million=1, output_usd_per_million=1)
    ]
    async with SessionDatabase.connect(session_database_url, prices=prices) as db:
        price = found(await db.diagnose())["prices"]
        assert price.do == "session-lifecycle reprice --model made-up"
        assert (await db.maintenance.reprice("made-up")).events == 1
        assert found(await db.diagnose()) == {}
    assert json.loads(run("doctor", "--json", *at).stdout)["figures"]["unpriced_events"] == 0


@pytest.mark.parametrize("full", [False, True])
async def test_drift_is_found_and_repaired(session_database: SessionDatabase, full: bool) -> None:
    db = session_database
    await db.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1)
    async with db.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE session_lifecycle.session_records SET tokens_in = 9")
        await connection.exec_driver_sql("UPDATE session_lifecycle.session_model_usage SET tokens_in = 9")
    ledger = found(await db.diagnose(full=full))["ledger"]
    assert ledger.says == "2 totals differ from the ledger in 1 sessions that were compared"
    assert ledger.do == "session-lifecycle reconcile --repair"
    await db.maintenance.reconcile(repair=True)
    assert found(await db.diagnose(full=full)) == {}


async def test_a_spool_with_items_is_found(session_database: SessionDatabase, tmp_path: Path) -> None:
    path = tmp_path / "spool"
    assert found(await session_database.diagnose(spool=path)) == {}
    with Spool(path) as spool:
        event = {"kind": "usage", "session_id": "s", "user_id": str(USER), "model": "m", "tokens_in": 1}
        spool.append([{**event, "cost_usd": "1", "idempotency_key": "k"}])
        waiting = found(await session_database.diagnose(spool=path))["spool"]
        assert waiting.says == "1 items wait in the spool, and nobody delivers them"
        assert waiting.do == f"session-lifecycle spool drain --path {path}"
        with spool.draining():
            assert found(await session_database.diagnose(spool=path)) == {}
        await spool.drain(session_database)
    assert found(await session_database.diagnose(spool=path)) == {}


async def test_the_rights_of_a_role_are_found(
    session_template_server: TemplateServer, session_database_url: str
) -> None:
    async with database_roles(session_template_server, DatabaseRole.WORKER, DatabaseRole.READER) as names:
        try:
            async with SessionDatabase.connect(session_database_url) as owner:
                for role, name in names.items():
                    await grant(owner, role, name)
                assert "SUPERUSER" in found(await owner.diagnose(role="worker"))["permissions"].says
                with pytest.raises(InvalidValueError, match="expected one of migrator"):
                    await owner.diagnose(role="king")
            async with SessionDatabase.connect(url_as(session_database_url, names[DatabaseRole.WORKER])) as worker:
                findings = found(await worker.diagnose(role="worker"))
                assert findings.keys() == {"transactions"}
                assert findings["transactions"].severity is Severity.NOTE
                assert "lacks" in found(await worker.diagnose(role="operator"))["permissions"].says
            revoke = f"REVOKE SELECT ON session_lifecycle.session_usage_events FROM {names[DatabaseRole.READER]}"
            await execute(session_database_url, revoke)
            async with SessionDatabase.connect(url_as(session_database_url, names[DatabaseRole.READER])) as reader:
                findings = found(await reader.diagnose(role="reader"))
                assert "SELECT on session_usage_events" in findings["permissions"].says
                assert findings["prices"].says.startswith("could not be checked: the database refuses access")
        finally:
            for name in names.values():
                await execute(session_database_url, f"DROP OWNED BY {name}")


async def test_a_pooler_is_noted(session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    async def is_direct(_connection: object) -> bool:
        return False  # as behind a pooler, which gives a client no process number of a backend

    monkeypatch.setattr(doctor, "is_direct", is_direct)
    pooler = found(await session_database.diagnose())["pooler"]
    assert (pooler.severity, pooler.do) == (Severity.NOTE, None)


async def test_a_wall_that_shows_nothing_is_found(
    session_template_server: TemplateServer, session_database_url: str
) -> None:
    async with database_roles(session_template_server, DatabaseRole.READER) as names:
        name = names[DatabaseRole.READER]
        try:
            on = Settings(row_level_security=True, row_level_security_key="k" * 32)
            async with SessionDatabase.connect(session_database_url, settings=on) as owner:
                await grant(owner, DatabaseRole.READER, name)
                assert found(await owner.diagnose())["row_level_security"].do == "session-lifecycle db rls enable"
                await owner.administration.enable_row_level_security()
                assert found(await owner.diagnose()) == {}
            async with SessionDatabase.connect(url_as(session_database_url, name)) as reader:
                assert "sees no row" in found(await reader.diagnose())["row_level_security"].says
            async with SessionDatabase.connect(url_as(session_database_url, name), settings=on) as reader:
                noted = found(await reader.diagnose())["row_level_security"]
                assert (noted.severity, noted.do) == (Severity.NOTE, "session-lifecycle doctor as a trusted role")
        finally:
            await execute(session_database_url, f"DROP OWNED BY {name}")


def test_the_command_says_what_to_do_and_ends_with_one(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    ran = run("doctor", *at)
    needs = "durability: " in ran.stdout
    assert ran.returncode == (1 if needs else 0)
    assert "schema at revision 0001" in ran.stdout
    of_another = run("doctor", "--schema", "another", *at)
    assert of_another.returncode == 1
    assert (
        "error: schema: schema 'another' is not migrated\n    do: session-lifecycle db upgrade\n" in of_another.stdout
    )
    answer = json.loads(run("doctor", "--json", "--full", *at).stdout)
    assert answer["revision"] == "0001"
    assert {one["check"] for one in answer["findings"]} <= OF_TEST_SERVER
    refused = run("doctor", "--role", "king", *at)
    assert refused.returncode == 2
    away = run("doctor", "--database-url", "postgresql://me@127.0.0.1:1/x")
    assert (away.returncode, away.stdout) == (1, "")
