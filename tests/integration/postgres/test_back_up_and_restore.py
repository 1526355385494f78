"""A dump of the database, or of the schema alone, restored elsewhere: what is missing is told, then all is equal."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from session_lifecycle import SchemaError, SessionDatabase
from session_lifecycle.maintenance import doctor
from session_lifecycle.models.doctor import DoctorReport
from session_lifecycle.postgres.binaries import find_binaries, run_program
from session_lifecycle.testing import TemplateServer
from support.answers import VIEWERS, answers, fill
from support.commands import run, succeed

PROGRAMS = find_binaries()
pytestmark = pytest.mark.skipif(
    not (PROGRAMS / "pg_dump").is_file(), reason=f"pg_dump is not beside the server in {PROGRAMS}: install the client"
)


class Copies:
    """A database with rows in every table, and an empty one beside it."""

    def __init__(self, source: str, target: str, folder: Path) -> None:
        self.source = source
        self.target = target
        self.file = folder / "dump"

    def program(self, name: str, url: str, *arguments: str) -> tuple[int, str]:
        """Runs a program of Postgres on a database. Its version is that of the server, or newer."""
        parsed = make_url(url)
        place = {
            "PGHOST": str(parsed.query.get("host", parsed.host)),
            "PGPORT": str(parsed.query.get("port", parsed.port)),
            "PGUSER": str(parsed.username),
            "PGPASSWORD": str(parsed.password or ""),
            "PGDATABASE": str(parsed.database),
        }
        ran = run_program([PROGRAMS / name, *arguments], None, subprocess.PIPE, **place)
        return ran.returncode, ran.stdout

    def dump(self, *arguments: str) -> None:
        code, said = self.program("pg_dump", self.source, "--format=custom", f"--file={self.file}", *arguments)
        assert code == 0, said

    def restore(self, *arguments: str) -> tuple[int, str]:
        database = make_url(self.target).database
        return self.program("pg_restore", self.target, f"--dbname={database}", *arguments, str(self.file))


@pytest_asyncio.fixture
async def copies(session_template_server: TemplateServer, tmp_path: Path) -> AsyncIterator[Copies]:
    names = [f"session_lifecycle_copy_{os.getpid()}_{which}" for which in ("source", "target")]
    for name in names:
        await session_template_server.run(f'CREATE DATABASE "{name}"')
    source, target = (session_template_server.url_of(name) for name in names)
    async with SessionDatabase.connect(source) as db:
        await db.migrate()
    await fill(source, source)
    yield Copies(source, target, tmp_path)
    for name in names:
        await session_template_server.drop(name)


async def everything(url: str) -> list[list[object]]:
    async with SessionDatabase.connect(url) as db:
        return [await answers(db, viewer) for viewer in VIEWERS]


async def diagnosed(url: str) -> DoctorReport:
    async with SessionDatabase.connect(url) as db:
        return await db.diagnose(full=True)


def to_do(report: DoctorReport) -> dict[str, str | None]:
    return {one.check: one.do for one in report.findings if one.check != "durability"}


async def works_on(url: str) -> None:
    """The copy takes writes and is in order."""
    async with SessionDatabase.connect(url) as db:
        await db.check()
        await db.lifecycle.accumulate_usage("new", UUID(int=77), "m", 1, cost_usd=1)
        await db.maintenance.roll_up()
        assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_a_whole_database_is_restored_and_analysed(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LARGE_TABLE_BYTES", 0)
    await asyncio.to_thread(copies.dump)
    before = await everything(copies.source)
    code, said = await asyncio.to_thread(copies.restore, "--exit-on-error")
    assert code == 0, said
    found = to_do(await diagnosed(copies.target))
    assert found.keys() <= {"statistics"}  # from version 18 on a dump has the statistics
    if found:
        assert await asyncio.to_thread(copies.program, "psql", copies.target, "-c", "ANALYZE") == (0, "ANALYZE\n")
    assert to_do(await diagnosed(copies.target)) == {}
    assert await everything(copies.target) == before
    await works_on(copies.target)


async def test_a_schema_alone_comes_without_the_extension_and_is_told_so(copies: Copies) -> None:
    await asyncio.to_thread(copies.dump, "--schema=session_lifecycle")
    before = await everything(copies.source)
    code, said = await asyncio.to_thread(copies.restore)
    assert code == 1
    assert "gin_trgm_ops" in said
    # The answers are equal all the same: the index only makes the search fast.
    assert await everything(copies.target) == before
    checked = run("db", "check", "--database-url", copies.target)
    assert checked.returncode == 0
    assert "CREATE EXTENSION pg_trgm" in checked.stderr
    ran = run("doctor", "--database-url", copies.target)
    assert ran.returncode == 1
    assert 'do: psql -c "CREATE EXTENSION pg_trgm" && session-lifecycle db upgrade' in ran.stdout
    await asyncio.to_thread(copies.program, "psql", copies.target, "-c", "CREATE EXTENSION pg_trgm SCHEMA public")
    succeed("db", "upgrade", "--database-url", copies.target)
    assert to_do(await diagnosed(copies.target)) == {}
    assert await everything(copies.target) == before
    await works_on(copies.target)


async def test_a_restore_that_was_interrupted_before_its_indexes_is_finished(copies: Copies) -> None:
    await asyncio.to_thread(copies.dump)
    before = await everything(copies.source)
    for section in ("pre-data", "data"):
        code, said = await asyncio.to_thread(copies.restore, f"--section={section}", "--exit-on-error")
        assert code == 0, said
    checked = run("db", "check", "--database-url", copies.target)
    assert checked.returncode == 1
    assert "lacks unique index pk_" in checked.stderr
    assert to_do(await diagnosed(copies.target))["schema"] == "session-lifecycle db upgrade"
    async with SessionDatabase.connect(copies.target) as db:
        with pytest.raises(SchemaError, match="session-lifecycle db upgrade"):
            await db.lifecycle.aggregate_stats(VIEWERS[0])
    succeed("db", "upgrade", "--database-url", copies.target)
    assert to_do(await diagnosed(copies.target)) == {}
    assert await everything(copies.target) == before
    await works_on(copies.target)


async def test_an_empty_schema_is_restored_from_a_dump_without_data(copies: Copies) -> None:
    await asyncio.to_thread(copies.dump, "--schema-only")
    code, said = await asyncio.to_thread(copies.restore, "--exit-on-error")
    assert code == 0, said
    # The revision is a row of the version table, which such a dump leaves out.
    checked = run("db", "check", "--database-url", copies.target)
    assert checked.returncode == 1
    assert "session-lifecycle db stamp" in run("db", "upgrade", "--database-url", copies.target).stderr
    succeed("db", "stamp", "0001", "--yes", "--database-url", copies.target)
    assert to_do(await diagnosed(copies.target)) == {}
    await works_on(copies.target)
