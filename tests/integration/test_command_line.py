"""The command line as its users run it: a process, a database, an exit code."""

import asyncio
import csv
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from session_lifecycle.testing import TemplateServer

PROGRAM = Path(sys.executable).with_name("session-lifecycle")
COLUMNS = ("offset_ms", "session_id", "turn", "tokens_in", "tokens_out")
EVENTS = "SELECT count(*) FROM session_lifecycle.session_usage_events"


def environment() -> dict[str, str]:
    """The machine's, without a database that a setting names."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SESSION_LIFECYCLE_PG_BIN" or not name.startswith("SESSION_")
    }


def run(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    ran = subprocess.run(
        [PROGRAM, *arguments],
        env={**environment(), **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [PROGRAM, *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, interrupts are ignored, and so they would be here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )


def succeed(*arguments: str, **more: str) -> str:
    ran = run(*arguments, **more)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def flat(text: str) -> str:
    return " ".join(text.split())


async def ask(url: str, sql: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@pytest_asyncio.fixture
async def empty_url(session_template_server: TemplateServer) -> AsyncIterator[str]:
    """A database that nobody has migrated."""
    name = f"command_line_{os.getpid()}"
    await session_template_server.run(f'CREATE DATABASE "{name}"')
    yield session_template_server.url_of(name)
    await session_template_server.drop(name)


@pytest.mark.parametrize("schema", [[], ["--schema", 'odd "name"; --']], ids=["default", "odd"])
def test_a_database_is_checked_upgraded_and_checked(empty_url: str, schema: list[str]) -> None:
    database = ["--database-url", empty_url, *schema]
    unmigrated = run("db", "check", *database)
    assert unmigrated.returncode == 1
    assert "session-lifecycle db upgrade" in unmigrated.stderr
    for command in ("upgrade", "upgrade", "check"):
        assert succeed("db", command, *database) == "The schema is up to date.\n"
    assert succeed("db", "check", *schema, SESSION_LIFECYCLE_DATABASE_URL=empty_url) == "The schema is up to date.\n"


@pytest.mark.parametrize("schema", [[], ["--schema", 'odd "name"; --']], ids=["default", "odd"])
async def test_the_printed_sql_migrates_an_empty_database(empty_url: str, schema: list[str]) -> None:
    await ask(empty_url, "SELECT 1")
    connection = await asyncpg.connect(empty_url)
    await connection.execute(succeed("db", "sql", *schema))
    await connection.close()
    succeed("db", "check", "--database-url", empty_url, *schema)


def test_the_demo_shows_three_tables_that_agree(session_database_url: str) -> None:
    shown = succeed("demo", "--database-url", session_database_url)
    for title in ("Sessions (", "Figures", "Cost by model"):
        assert title in shown
    figures = dict(re.findall(r"│ +(running|completed|failed|abandoned|spend USD) +│ +([\d.,]+) +│", shown))
    assert all(int(figures[status]) > 0 for status in ("running", "completed", "failed", "abandoned"))
    [total] = re.findall(r"│ all .* ([\d.]+) │", shown)
    assert total == figures["spend USD"]


@pytest.fixture
def requests(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """A file of 2,000 requests in 200 sessions, and what it adds up to."""
    chance = random.Random(1)
    rows = [
        (number * 10, f"conv-{number % 200}", number // 200 + 1, chance.randint(1, 9000), chance.randint(1, 900))
        for number in range(2000)
    ]
    file = tmp_path / "requests.csv"
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([COLUMNS, *rows])
    return file, {"tokens in": sum(row[3] for row in rows), "tokens out": sum(row[4] for row in rows)}


def assert_shows(shown: str, totals: dict[str, int]) -> None:
    figures = dict(re.findall(r"│ +(sessions|tokens in|tokens out|spend USD) +│ +([\d.,]+) +│", shown))
    assert {name: int(figures[name].replace(",", "")) for name in totals} == totals
    assert figures["sessions"] == "200"
    [total] = re.findall(r"│ all .* ([\d.,]+) │", shown)
    assert total == figures["spend USD"]


async def test_a_replay_that_is_killed_and_run_again_counts_everything_once(
    session_database_url: str, requests: tuple[Path, dict[str, int]]
) -> None:
    file, totals = requests
    replay = ("replay", str(file), "--database-url", session_database_url)
    with start(*replay, "--concurrency", "1") as first:
        while await ask(session_database_url, EVENTS) < 100:
            assert first.poll() is None
            await asyncio.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    counted = await ask(session_database_url, EVENTS)
    assert 100 <= counted < 2000
    again = succeed(*replay)
    # One more may have been counted without the killed process hearing of it; its key tells.
    assert f"{2000 - counted:,} applied, {counted:,} duplicate" in again
    assert_shows(again, totals)
    third = succeed(*replay)
    assert "2,000 duplicate" in third
    assert_shows(third, totals)


async def test_an_interrupted_replay_ends_quietly(
    session_database_url: str, requests: tuple[Path, dict[str, int]]
) -> None:
    with start("replay", str(requests[0]), "--database-url", session_database_url, "--speed", "1") as process:
        while await ask(session_database_url, EVENTS) < 1:
            assert process.poll() is None
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the column offset_ms is missing"),
        ("offset_ms,session_id,turn,tokens_in\n", "the column tokens_out is missing"),
        ("0,s,1,2,3\n0,s,x,2,3\n", ":3: turn: got 'x'"),
        ("0,s,1,-2,3\n", ":2: tokens_in: got '-2'"),
        ("0,s,1,2\n", ":2: tokens_out: got ''"),
        ("0, ,1,2,3\n", ":2: session_id: got ' '"),
        ("0,s,1,2,9999999999999\n", "at most 12 digits"),
        ("0,s\udcff,1,2,3\n", "utf-8"),
    ],
)
async def test_a_file_that_is_no_replay_is_refused_by_its_line(
    session_database_url: str, tmp_path: Path, content: str, told: str
) -> None:
    file = tmp_path / "requests.csv"
    header = "" if not content or content.startswith("offset_ms") else f"{','.join(COLUMNS)}\n"
    file.write_bytes((header + content).encode("utf-8", "surrogateescape"))
    refused = run("replay", str(file), "--database-url", session_database_url)
    assert refused.returncode == 2
    assert told in flat(refused.stderr)
    assert await ask(session_database_url, EVENTS) == 0


def test_what_is_wrong_is_told_in_one_line_without_the_password(tmp_path: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(f"{','.join(COLUMNS)}\n0,s,1,2,3\n0,t,1,2,3\n")
    settings = {"SESSION_LIFECYCLE_RETRIES": "0"}
    nowhere = ("--database-url", "postgresql://someone:secret@127.0.0.1:1/x")
    for command in (("db", "check"), ("demo",), ("replay", str(file))):
        failed = run(*command, *nowhere, **settings)
        assert (failed.returncode, failed.stderr.count("error:")) == (1, 1)
        assert "the database cannot be reached" in failed.stderr
        assert "secret" not in failed.stdout + failed.stderr
    other = run("db", "check", "--database-url", "mysql://someone:secret@h/x")
    assert other.returncode == 1
    assert "expected postgresql://" in other.stderr
    assert "secret" not in other.stderr
    assert run("replay", str(tmp_path / "missing.csv"), *nowhere).returncode == 2
    unknown = run("db", "check", SESSION_LIFECYCLE_POOL_SIZE="many")
    assert unknown.returncode == 1
    assert "setting pool_size" in unknown.stderr


@pytest.mark.parametrize("command", [(), ("demo",), ("replay",), ("db",), ("db", "upgrade"), ("db", "check")])
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    assert "Usage: session-lifecycle" in succeed(*command, "--help")


def test_a_missing_extra_is_named() -> None:
    program = "import sys; sys.modules['typer'] = None; from session_lifecycle.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip() == "the command line needs an extra: pip install 'session-lifecycle[cli]'"


def test_without_a_url_it_brings_its_own_postgres_and_takes_it_away() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)  # the server of root is another user's
        data_dir = Path(name) / "data"
        for _ in range(2):
            assert "Cost by model" in succeed("demo", "--data-dir", str(data_dir))
            assert (data_dir / "PG_VERSION").exists()
            assert not (data_dir / "postmaster.pid").exists()
        both = run("demo", "--data-dir", str(data_dir), "--database-url", "postgresql://h/x")
        assert (both.returncode, "give one" in both.stderr) == (1, True)
