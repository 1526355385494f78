"""The command line as users run it: a process, a database, an exit code."""

import asyncio
import csv
import io
import os
import random
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from rich.console import Console

from session_lifecycle import Message, SessionDatabase, SessionListFilters, SessionStatus, Spool, Touch, Viewer
from session_lifecycle.cli.tables import sessions_table
from session_lifecycle.testing import TemplateServer
from support.commands import (
    interrupt,
    on_pipe,
    on_terminal,
    options_of_commands,
    run,
    run_raw,
    running,
    succeed,
    without_database,
)
from support.eventually import eventually

COLUMNS = ("offset_ms", "session_id", "turn", "tokens_in", "tokens_out")
HEADER = ",".join(COLUMNS)
ODD_SCHEMA = 'odd "name"; --'
SCHEMAS = pytest.mark.parametrize("schema", [None, ODD_SCHEMA], ids=["default", "odd"])
USER = UUID(int=1)
UP_TO_DATE = "The schema is up to date.\n"

REQUESTS, SESSIONS = 600, 60
EVENTS = "SELECT count(*) FROM session_lifecycle.session_usage_events"
OF_REPLAY = f"{EVENTS} WHERE session_id LIKE 'conv-%'"
ROLLED_UP = "SELECT count(*) FROM session_lifecycle.rolled_up_sessions"
WRITERS_WAITING = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
OTHERS_CONNECTED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""

WITHOUT_TYPER = """
import sys
sys.modules["typer"] = None
from session_lifecycle.cli import main
main()
"""

# Root's own server has a fixed place on the machine; this moves it, as HOME moves other users' servers.
WITH_ANOTHER_HOME_OF_ROOT = """
import sys
from pathlib import Path
from session_lifecycle.postgres import data_directory
from session_lifecycle.cli import main
data_directory.HOME_OF_ROOT = Path(sys.argv.pop(1))
main()
"""


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def ask(url: str, sql: str) -> Any:
    async with connected(url) as connection:
        return await connection.fetchval(sql)


async def until(connection: Any, sql: str, reached: Callable[[int], bool]) -> None:
    """Waits until the one value of the query is as wanted."""

    async def is_reached() -> bool:
        return reached(await connection.fetchval(sql))

    await eventually(is_reached)


@pytest_asyncio.fixture
async def empty_url(session_template_server: TemplateServer) -> AsyncIterator[str]:
    """The URL of a database without our schema."""
    name = f"command_line_{os.getpid()}"
    await session_template_server.run(f'CREATE DATABASE "{name}"')
    yield session_template_server.url_of(name)
    await session_template_server.drop(name)


def in_schema(schema: str | None) -> list[str]:
    return ["--schema", schema] if schema else []


@pytest.mark.parametrize("command", ["prune-sessions", "prune-payloads"])
async def test_X17_an_operator_narrows_pruning(session_database_url: str, command: str) -> None:
    users, datasets = [UUID(int=number) for number in (1, 2)], [UUID(int=number) for number in (11, 12)]
    long_ago = datetime.now(UTC) - timedelta(days=40)
    names = [(user, agent, dataset) for user in users for agent in ("a", "b", "c") for dataset in datasets]
    async with SessionDatabase.connect(session_database_url) as db:
        for user, agent, dataset in names:
            key = {"session_id": f"{agent} {dataset.int}", "user_id": user}
            touch = Touch(**key, at=long_ago, agent_name=agent, dataset_id=dataset)
            await db.lifecycle.record(
                [touch, Message(**key, message_id=key["session_id"], role="user", content="c", created_at=long_ago)]
            )

    def report(*options: str) -> str:
        return succeed(command, "--older-than-days", "30", "--yes", *options, "--database-url", session_database_url)

    assert ", sessions 0, " in report("--user", str(UUID(int=3)))
    assert ", sessions 12, " in report("--dry-run")
    one_agent = report("--user", str(users[0]), "--agent", "a", "--dry-run")
    assert ", sessions 2, " in one_agent
    two_agents = ("--agent", "a", "--agent", "b", "--dataset", str(datasets[0]))
    assert ", sessions 4, " in report(*two_agents)
    left = "SELECT count(*) FROM session_lifecycle.session_messages"
    assert await ask(session_database_url, left) == 8
    of_user = f"{left} WHERE user_id = '{users[1]}'"
    assert await ask(session_database_url, of_user) == 4
    assert ", sessions 8, " in report("--user", str(users[0]), "--user", str(users[1]))
    assert await ask(session_database_url, left) == 0


def test_X17_a_user_that_is_no_id_is_refused() -> None:
    ran = run("prune-sessions", "--older-than-days", "30", "--yes", "--user", "me", "--data-dir", "/nowhere")
    assert ran.returncode == 2
    assert "--user" in ran.stderr


async def test_an_operator_prunes_erases_and_reconciles(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    user = "00000000-0000-0000-0000-000000000001"
    long_ago = datetime.now(UTC) - timedelta(days=40)
    async with SessionDatabase.connect(session_database_url) as db:
        await db.lifecycle.record([Touch(session_id=name, user_id=UUID(user), at=long_ago) for name in ("s", "t")])
        await db.lifecycle.accumulate_usage("young", UUID(user), "m", 1, cost_usd=1)
    would_be = succeed("prune-sessions", "--older-than-days", "30", "--dry-run", *at)
    assert would_be.startswith("Would delete: cut_at ")
    assert ", sessions 2, runs 0," in would_be
    assert "Emptied: " in succeed("prune-payloads", "--older-than-days", "30", "--yes", *at)
    pruned = succeed("prune-sessions", "--older-than-days", "30", "--batch", "1", "--yes", *at)
    assert ", sessions 2, runs 0," in pruned

    assert succeed("reconcile", *at) == "1 sessions, 0 mismatches, 0 repaired\n"
    await ask(session_database_url, "UPDATE session_lifecycle.session_records SET tokens_in = 9 RETURNING 1")
    differing = run("reconcile", *at)
    assert (differing.returncode, differing.stderr) == (1, "")
    found = f"Differs: table session_records, user_id {user}, session_id young, field tokens_in, found 9, expected 1\n"
    assert differing.stdout == f"{found}1 sessions, 1 mismatches, 0 repaired\n"
    assert succeed("reconcile", "--repair", *at) == f"{found}1 sessions, 1 mismatches, 1 repaired\n"

    assert "sessions 1, runs 0" in succeed("erase-user", user, "--anonymise", "--tombstone", "--yes", *at)
    assert await ask(session_database_url, "SELECT sum(cost_usd) FROM session_lifecycle.session_records") == 1
    assert await ask(session_database_url, "SELECT count(*) FROM session_lifecycle.session_tombstones") == 1


async def test_an_operator_rolls_up(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    async with SessionDatabase.connect(session_database_url) as db:
        await db.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1)
        await db.lifecycle.accumulate_usage("still running", USER, "m", 1, cost_usd=1)
        await db.lifecycle.end_session("s", USER, SessionStatus.COMPLETED)
    for sessions in (1, 0):
        rolled_up = run("roll-up", *at)
        assert rolled_up.returncode == 0
        # The first call makes the buckets from the sessions, so nothing has changed them yet.
        assert re.fullmatch(rf"Rolled up: idle_before .*, sessions {sessions}, changes 0\n", rolled_up.stdout)
        assert re.fullmatch(rf"({sessions} sessions so far\n)+", rolled_up.stderr)
    refused = run("roll-up", "--every", "0", *at)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: every: got 0.0, expected")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
async def test_roll_up_repeats_until_a_signal_ends_it(session_database_url: str, ending: signal.Signals) -> None:
    async with connected(session_database_url) as connection, SessionDatabase.connect(session_database_url) as db:
        with running("roll-up", "--every", "0.01", "--database-url", session_database_url) as process:
            for number in range(1, 3):
                await db.lifecycle.accumulate_usage(f"s{number}", USER, "m", 1, cost_usd=1)
                await db.lifecycle.end_session(f"s{number}", USER, SessionStatus.COMPLETED)
                await until(connection, ROLLED_UP, partial(eq, number))
            process.send_signal(ending)
            _, said = process.communicate(timeout=30)
            assert process.returncode == 0
            assert re.fullmatch(r"(\d+ sessions so far\n)+", without_database(said))
        await db.close()
        await until(connection, OTHERS_CONNECTED, lambda others: others == 0)


async def test_roll_up_goes_on_once_the_database_is_migrated(empty_url: str) -> None:
    with running("roll-up", "--every", "0.01", "--database-url", empty_url) as process:
        assert process.stderr is not None
        assert (await asyncio.to_thread(process.stderr.readline)).startswith("database: ")
        said = await asyncio.to_thread(process.stderr.readline)
        assert said.startswith(
            "the roll-up failed; the next attempt is in about 0.01 s: schema 'session_lifecycle' is not"
        )
        async with SessionDatabase.connect(empty_url) as db:
            await db.migrate()
            await db.lifecycle.accumulate_usage("s", USER, "m", 1, cost_usd=1)
            await db.lifecycle.end_session("s", USER, SessionStatus.COMPLETED)
        async with connected(empty_url) as connection:
            await until(connection, ROLLED_UP, lambda sessions: sessions == 1)
        assert interrupt(process)[0] == 0


async def schemas(url: str) -> list[str]:
    found: list[str] = await ask(
        url, "SELECT array_agg(nspname::text) FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$|public$)'"
    )
    return found


@SCHEMAS
async def test_a_database_is_checked_upgraded_and_checked(empty_url: str, schema: str | None) -> None:
    database = ["--database-url", empty_url, *in_schema(schema)]
    unmigrated = run("db", "check", *database)
    assert (unmigrated.returncode, unmigrated.stdout) == (1, "")
    assert "session-lifecycle db upgrade" in unmigrated.stderr
    for _ in range(2):
        assert succeed("db", "upgrade", *database) == UP_TO_DATE
    assert succeed("db", "check", *in_schema(schema), SESSION_LIFECYCLE_DATABASE_URL=empty_url) == UP_TO_DATE
    assert await schemas(empty_url) == [schema or "session_lifecycle"]


@SCHEMAS
async def test_the_sql_printed_without_a_database_migrates_an_empty_one(empty_url: str, schema: str | None) -> None:
    sql = succeed("db", "sql", *in_schema(schema), SESSION_LIFECYCLE_DATABASE_URL="postgresql://127.0.0.1:1/x")
    async with connected(empty_url) as connection:
        await connection.execute(sql)
    assert succeed("db", "check", "--database-url", empty_url, *in_schema(schema)) == UP_TO_DATE
    assert await schemas(empty_url) == [schema or "session_lifecycle"]


def figures(shown: str) -> dict[str, str]:
    [table] = re.findall(r"Figures\s+┌.*?└", shown, re.DOTALL)
    return dict(re.findall(r"│ +(\S.*?) +│ +([\d.,]+)", table))


def costs(shown: str) -> list[list[Decimal]]:
    """Events, tokens in, tokens out and USD of each model; the last row is their sum."""
    [table] = re.findall(r"Cost by model\s+┏.*?└", shown, re.DOTALL)
    rows = re.findall(r"│ \S+ +│ +[\d,]* │ +([\d,]+) │ +([\d,]+) │ +([\d,]+) │ +([\d.,]+)", table)
    return [[Decimal(cell.replace(",", "")) for cell in row] for row in rows]


def assert_agree(shown: str) -> None:
    """The models add up to the sum row, and the sum equals the figures; money to six decimals."""
    *models, total = costs(shown)
    sums = [sum(column, Decimal(0)) for column in zip(*models, strict=True)]
    assert sums[:3] == total[:3]
    assert abs(sums[3] - total[3]) <= len(models) * Decimal("0.000001")
    said = [figures(shown)[name].replace(",", "") for name in ("tokens in", "tokens out", "spend USD")]
    assert [Decimal(figure) for figure in said] == total[1:]
    assert total[3] > 0


def test_the_demo_shows_three_tables_that_agree(session_database_url: str) -> None:
    shown = succeed("demo", "--database-url", session_database_url)
    assert_agree(shown)
    [(listed, of)] = re.findall(r"Sessions \((\d+) of (\d+)\)", shown)
    statuses = Counter(re.findall(r"│ (running|completed|failed|abandoned) +│ \S+ +│ +[\d,]+ │", shown))
    assert len(statuses) == 4
    assert {status: figures(shown)[status] for status in statuses} == {
        status: str(count) for status, count in statuses.items()
    }
    assert figures(shown)["sessions"] == listed == of == str(statuses.total())


@pytest.fixture
def requests(tmp_path: Path) -> tuple[str, dict[str, int]]:
    """A file of requests, one every ten milliseconds, and its sums."""
    chance = random.Random(1)
    rows = [
        (n * 10, f"conv-{n % SESSIONS}", n // SESSIONS + 1, chance.randint(1, 9000), chance.randint(1, 900))
        for n in range(REQUESTS)
    ]
    file = tmp_path / "requests.csv"
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([COLUMNS, *rows])
    totals = {"tokens in": sum(row[3] for row in rows), "tokens out": sum(row[4] for row in rows)}
    return str(file), {"sessions": SESSIONS, **totals}


def assert_shows(shown: str, totals: dict[str, int]) -> None:
    assert {name: int(figures(shown)[name].replace(",", "")) for name in totals} == totals
    assert costs(shown)[-1][0] == REQUESTS
    assert_agree(shown)


async def test_a_replay_adds_up_and_run_again_counts_nothing_twice(
    session_database_url: str, requests: tuple[str, dict[str, int]]
) -> None:
    file, totals = requests
    for outcome in ("applied", "duplicate"):
        shown = succeed("replay", file, "--database-url", session_database_url)
        assert shown.startswith(f"{REQUESTS} requests in ")
        assert shown.splitlines()[0].endswith(f": {REQUESTS} {outcome}")
        assert_shows(shown, totals)
    assert await ask(session_database_url, EVENTS) == REQUESTS


async def test_a_replay_killed_in_the_middle_of_a_write_and_run_again_counts_everything_once(
    session_database_url: str, requests: tuple[str, dict[str, int]]
) -> None:
    file, totals = requests
    replay = ("replay", file, "--database-url", session_database_url)
    async with connected(session_database_url) as connection:
        # The whole replay takes three seconds at this speed, so the lock comes half-way; then a write waits for it.
        with running(*replay, "--speed", "2") as process:
            await until(connection, EVENTS, lambda counted: counted >= 100)
            async with connection.transaction():
                await connection.execute("LOCK TABLE session_lifecycle.session_usage_events IN SHARE MODE")
                await until(connection, WRITERS_WAITING, lambda waiting: waiting > 0)
                process.kill()
                assert process.wait() == -signal.SIGKILL
        await until(connection, OTHERS_CONNECTED, lambda others: others == 0)
        counted = await connection.fetchval(EVENTS)
    assert 100 <= counted < REQUESTS
    again = succeed(*replay)
    assert again.splitlines()[0].endswith(f": {REQUESTS - counted} applied, {counted} duplicate")
    assert_shows(again, totals)
    assert await ask(session_database_url, EVENTS) == REQUESTS


async def test_an_interrupted_replay_ends_quietly(
    session_database_url: str, requests: tuple[str, dict[str, int]]
) -> None:
    async with connected(session_database_url) as connection:
        with running("replay", requests[0], "--database-url", session_database_url, "--speed", "1") as process:
            await until(connection, EVENTS, lambda counted: counted > 0)
            assert interrupt(process) == (130, "")
        await until(connection, OTHERS_CONNECTED, lambda others: others == 0)
        assert 0 < await connection.fetchval(EVENTS) < REQUESTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": the column offset_ms is missing"),
        ("offset_ms,session_id,turn,tokens_in\n0,s,1,2\n", ": the column tokens_out is missing"),
        (f"{HEADER}\n0,s,1,2,3\n0,s,x,2,3\n", ":3: turn: got 'x'"),
        (f"{HEADER}\n0,s,1,2,3\n0,s,2,2.5,3\n", ":3: tokens_in: got '2.5'"),
        (f"{HEADER}\n0,s,1,-2,3\n", ":2: tokens_in: got '-2'"),
        (f"{HEADER}\n0,s,1,2\n", ":2: tokens_out: got ''"),
        (f"{HEADER}\n0, ,1,2,3\n", ":2: session_id: got ' '"),
        (f"{HEADER}\n0,s,1,2,9999999999999\n", ":2: tokens_out: got '9999999999999'"),
        (f"{HEADER}\n0,s\udcff,1,2,3\n", ":2: session_id: got 's\\udcff'"),
        (f"{HEADER}\n0,s,1,2,3\n0,{'s' * 200_000},1,2,3\n", ":3: field larger than field limit"),
    ],
    ids=["empty", "column", "text", "fraction", "negative", "short", "blank", "digits", "no-utf-8", "long"],
)
async def test_a_wrong_replay_file_is_refused_with_its_line(
    session_database_url: str, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "requests.csv"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    refused = run("replay", str(file), "--database-url", session_database_url)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {file}{message}")
    assert await ask(session_database_url, EVENTS) == 0


def test_a_file_of_a_spreadsheet_is_read_up_to_a_moment(session_database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(f"{HEADER},note\r\n0,s,1,2,3,kept aside\r\n", encoding="utf-8-sig")
    replay = ("replay", str(file), "--database-url", session_database_url)
    refused = run(*replay, "--end", "0001-01-01")
    assert (refused.returncode, "--end: got 0001-01-01" in refused.stderr) == (2, True)
    shown = figures(succeed(*replay, "--end", "2026-01-31"))
    assert [shown[name] for name in ("sessions", "abandoned", "tokens in", "tokens out")] == ["1", "1", "2", "3"]


async def test_the_end_of_a_replay_is_in_utc_as_every_time_is(session_database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(f"{HEADER}\n0,s,1,2,3\n")
    replay = ("replay", str(file), "--database-url", session_database_url)
    assert run(*replay, "--end", "2026-01-31T12:00:00", PYTHONUTF8="1", TZ="Asia/Tokyo").returncode == 0
    found = await ask(session_database_url, "SELECT at FROM session_lifecycle.session_usage_events")
    assert found == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert run(*replay, "--end", "2h").returncode == 0


def test_an_error_is_one_line_without_the_password(tmp_path: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(f"{HEADER}\n0,s,1,2,3\n0,t,1,2,3\n")
    nowhere = ("--database-url", "postgresql://someone:secret@127.0.0.1:1/x")
    unreachable = "the database cannot be reached"
    for command, message in (
        (("db", "check", *nowhere), unreachable),
        (("replay", str(file), *nowhere), unreachable),
        (("db", "check", "--database-url", "mysql://someone:secret@h/x"), "expected postgresql://"),
        (("db", "check", "--database-url", "someone:secret"), "the database URL cannot be read"),
    ):
        failed = run(*command, SESSION_LIFECYCLE_RETRIES="0")
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr.startswith("error: ")
        assert failed.stderr.count("\n") == 1
        assert message in failed.stderr
        assert "secret" not in failed.stderr
    missing = run("replay", str(tmp_path / "missing.csv"), *nowhere)
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
    unknown = run("db", "check", *nowhere, SESSION_LIFECYCLE_POOL_SIZE="many")
    assert unknown.returncode == 1
    assert "setting pool_size" in unknown.stderr


ON_DATABASE = (
    ("demo",),
    ("replay", os.devnull),
    ("db", "upgrade"),
    ("db", "check"),
    ("db", "current"),
    ("db", "history"),
    ("db", "downgrade", "base", "--yes"),
    ("db", "stamp", "base", "--yes"),
    ("db", "roles", "--check", "reader"),
    ("db", "rls", "enable"),
    ("db", "rls", "disable", "--yes"),
    ("db", "rls", "check"),
    ("doctor",),
    ("metrics",),
    ("prune-sessions", "--older-than-days", "1", "--yes"),
    ("prune-payloads", "--older-than-days", "1", "--yes"),
    ("erase-user", str(USER), "--yes"),
    ("reconcile",),
    ("reprice",),
    ("roll-up",),
    ("sessions", "list"),
    ("sessions", "show", "s"),
    ("sessions", "end", "s", "--user", str(USER), "--status", "failed"),
    ("sessions", "reopen", "s", "--user", str(USER)),
    ("sessions", "update", "s", "--user", str(USER), "--title", "t"),
    ("sessions", "delete", "s", "--user", str(USER), "--yes"),
    ("search", "text"),
    ("runs",),
    ("events",),
    ("tail",),
    ("serve", "--port", "0"),
    ("stats",),
    ("usage",),
    ("cost",),
    ("budgets", "list"),
    ("budgets", "show", "b"),
    ("budgets", "set", "b", "--user", str(USER), "--limit-usd", "1"),
    ("budgets", "delete", "b", "--yes"),
    ("spool", "drain"),
    ("import", "claude-code", os.devnull),
    ("import", "codex", os.devnull),
    ("import", "lifecycle", os.devnull),
    ("import", "reference", "postgresql://127.0.0.1:1/theirs"),
    ("import", "litellm-spend-logs", os.devnull),
    ("import", "langfuse", os.devnull),
    ("export", "sessions"),
    ("export", "usage-events"),
    ("export", "runs"),
    ("export", "steps"),
    ("export", "messages"),
    ("export", "all", "--output", "nowhere"),
    ("move", "--to", "postgresql://127.0.0.1:1/theirs"),
)
DELETING = (
    ("prune-sessions", "--older-than-days", "0.00001"),
    ("prune-payloads", "--older-than-days", "0.00001"),
    ("erase-user", str(USER)),
    ("sessions", "delete", "s", "--user", str(USER)),
)


def test_X42_every_command_that_opens_a_database_is_among_these() -> None:
    commands = options_of_commands()
    opening = {name for name, options in commands.items() if "--data-dir" in options}
    without = {"db sql", "db rls sql", "spool status", "spool poison", "hook claude-code"}
    # They open several servers, which they name by places.
    works = ("migrate", "list", "move", "rebalance", "export", "import")
    of_buckets = {f"db buckets {name}" for name in works} | {"db distribute"}
    assert opening == commands.keys() - without - of_buckets

    def among(some: Sequence[tuple[str, ...]]) -> set[str]:
        return {name for name in commands for one in some if one[: len(name.split())] == tuple(name.split())}

    assert opening == among(ON_DATABASE)
    assert {name for name in opening if "--yes" in commands[name]} == among(DELETING) | {
        "budgets delete",
        "db downgrade",
        "db stamp",
        "db rls disable",
    }


@pytest.mark.parametrize("command", ON_DATABASE, ids=" ".join)
def test_X42_a_command_needs_the_name_of_its_database(command: tuple[str, ...], tmp_path: Path, home: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(f"{HEADER}\n0,s,1,2,3\n")
    arguments = [str(file) if word == os.devnull else word for word in command]
    mistyped = run_raw(*arguments, SESSION_LIFECYCLE_DATABSE_URL="postgresql://h/x", HOME=str(home))
    assert (mistyped.returncode, mistyped.stdout) == (2, "")
    assert mistyped.stderr.startswith("error: no database is named: give --database-url, --embedded or --data-dir")
    assert list(home.iterdir()) == []
    # The database is named before it is reached, by whom it was named, and without the password.
    url = "postgresql://someone:secret@127.0.0.1:1/x"
    named = "database: postgresql://someone:***@127.0.0.1:1/x, schema odd\n"
    # `metrics` prints what it knows all the same, and logs what stopped it.
    shows_up = command == ("metrics",)
    by_option = run_raw(*arguments, "--database-url", url, "--schema", "odd", SESSION_LIFECYCLE_RETRIES="0")
    by_variable = run_raw(
        *arguments, "--schema", "odd", SESSION_LIFECYCLE_RETRIES="0", SESSION_LIFECYCLE_DATABASE_URL=url
    )
    for ran in (by_option, by_variable):
        told = [line for line in ran.stdout.splitlines() if not line.startswith("#")]
        assert (ran.returncode, told[-1:]) == (1, ["session_lifecycle_database_up 0"] if shows_up else [])
        failed = "the figures of the database could not be read: " if shows_up else "error: "
        assert ran.stderr.startswith(named)
        assert f"{failed}the database cannot be reached" in ran.stderr
        assert ran.stderr.splitlines()[-1].startswith("error: ")
        assert "secret" not in ran.stderr
    both = run_raw(*arguments, "--database-url", url, "--embedded")
    assert (both.returncode, "give one" in both.stderr) == (2, True)


async def of_user(url: str) -> int:
    return int(await ask(url, "SELECT count(*) FROM session_lifecycle.session_messages"))


@pytest.mark.parametrize("command", DELETING, ids=lambda command: command[0])
async def test_X42_a_command_that_deletes_asks_on_a_terminal_and_is_refused_elsewhere(
    session_database_url: str, command: tuple[str, ...]
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    said = Message(message_id="m", user_id=USER, session_id="s", role="user", content="hi", created_at=long_ago)
    async with SessionDatabase.connect(session_database_url) as db:
        await db.lifecycle.record([said])
    at = ("--database-url", session_database_url)
    # A pipe is no terminal, whatever comes through it.
    piped = await asyncio.to_thread(on_pipe, "y\n", *command, *at)
    assert (piped.returncode, piped.stdout) == (2, "")
    assert piped.stderr.startswith("database: postgresql://")
    assert piped.stderr.endswith("error: there is no terminal to confirm on: give --yes\n")
    assert await of_user(session_database_url) == 1
    refusals = (("n", 1, 1), ("", 1, 1)) if command == DELETING[0] else ()
    for answer, code, left in (*refusals, ("y", 0, 0)):
        ended, shown = await asyncio.to_thread(on_terminal, f"{answer}\n", *command, *at)
        assert (ended, await of_user(session_database_url)) == (code, left)
        assert shown.index("database: ") < shown.index("This cannot be undone. [y/N]")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400", "-1", "0", "365001"])
@pytest.mark.parametrize("command", ["prune-sessions", "prune-payloads"])
def test_X48_an_age_that_is_no_age_is_refused(command: str, number: str) -> None:
    refused = run(command, f"--older-than-days={number}", "--yes", "--database-url", "postgresql://127.0.0.1:1/x")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: --older-than-days: got ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *([option, number] for option in ("--speed", "--concurrency", "--end") for number in ("nan", "-1", "1e400")),
        ["--concurrency", "9" * 5000],
        ["--speed", "[/x]"],
        ["--user", "[/x]"],
    ],
    ids=" ".join,
)
def test_X48_no_number_of_a_replay_is_a_crash(tmp_path: Path, arguments: list[str]) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(f"{HEADER}\n0,s,1,2,3\n")
    refused = run("replay", str(file), "--database-url", "postgresql://127.0.0.1:1/x", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("roll-up", "--every", "nan"),
        ("roll-up", "--every", "inf"),
        ("roll-up", "--every", "1e400"),
        ("roll-up", "--every", "-1"),
        ("prune-sessions", "--older-than-days", "1", "--yes", "--batch", "0"),
        ("prune-sessions", "--older-than-days", "1", "--yes", "--batch", "9" * 30),
        ("prune-payloads", "--older-than-days", "1", "--yes", "--batch", "nan"),
        ("prune-payloads", "--older-than-days", "1e-30", "--yes"),
        ("demo", "--seed", "nan"),
        ("demo", "--seed", "9" * 5000),
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_X48_no_number_is_a_crash(session_database_url: str, arguments: tuple[str, ...]) -> None:
    refused = run(*arguments, "--database-url", session_database_url)
    assert refused.returncode in {1, 2}
    assert refused.stdout == ""


HOSTILE = (
    "[/x]",
    "[red]",
    "a:cat:b",
    "\x1b[2J\x1b]0;title\x07",
    "one\ntwo",
    "\u202eevil",
    "\x9b31m",
    "[link=http://x]y[/]",
)


async def test_X48_a_name_is_printed_as_it_is_and_commands_no_terminal(
    session_database_url: str, tmp_path: Path
) -> None:
    async with SessionDatabase.connect(session_database_url) as db:
        for number, name in enumerate(HOSTILE):
            await db.lifecycle.accumulate_usage(f"{name}{number}", USER, name, 1, cost_usd=1)
    rows = "".join(f'0,"{name}",1,2,3\n' for name in HOSTILE)
    file = tmp_path / "requests.csv"
    file.write_text(f"{HEADER}\n{rows}")
    await ask(session_database_url, "UPDATE session_lifecycle.session_records SET tokens_in = 9 RETURNING 1")
    at = ("--database-url", session_database_url)
    differing = run("reconcile", *at)
    assert differing.stdout.count("\n") == len(HOSTILE) + 1
    for model in HOSTILE:
        replayed = succeed("replay", str(file), "--user", str(USER), "--model", model, *at, COLUMNS="200")
        for shown in (differing.stdout, replayed):
            assert all(character.isprintable() for line in shown.split("\n") for character in line)
            for name in HOSTILE:
                assert name.encode("unicode_escape").decode() in shown.replace("…", ""), name
    in_ascii = succeed("replay", str(file), "--model", "größer", *at, PYTHONIOENCODING="ascii")
    assert "gr\\xf6\\xdfer" in in_ascii


async def test_X48_a_table_of_sessions_prints_any_name(session_database: SessionDatabase) -> None:
    for name in HOSTILE:
        await session_database.lifecycle.ensure_and_touch_session(name, USER, agent_name=name)
        await session_database.lifecycle.accumulate_usage(name, USER, name, 1, cost_usd=1)
    page = await session_database.lifecycle.list_session_rows(SessionListFilters(viewer=Viewer(USER)))
    for name in HOSTILE:
        written = io.StringIO()
        Console(width=300, file=written).print(sessions_table(page, {USER: name}))
        shown = written.getvalue()
        assert shown.count(name.encode("unicode_escape").decode()) >= 3 + len(HOSTILE)
        assert all(character.isprintable() for line in shown.split("\n") for character in line)


@pytest.mark.parametrize("command", ["", "db", "sessions", "spool", "export", "import", "hook", *options_of_commands()])
def test_every_command_explains_itself(command: str) -> None:
    assert f"Usage: session-lifecycle {command}".strip() in succeed(*command.split(), "--help")


def usage_of(session_id: str, tokens: int) -> dict[str, Any]:
    return {"kind": "usage", "session_id": session_id, "user_id": str(USER), "tokens_in": tokens, "cost_usd": "1"}


async def test_the_spool_is_shown_delivered_and_its_poison_kept(session_database_url: str, tmp_path: Path) -> None:
    at = ("--path", str(tmp_path / "spool"))
    with Spool(tmp_path / "spool") as spool:
        spool.append([usage_of("s", 1), usage_of("s", -1), usage_of("s\x1b[31m", -1)])
        assert succeed("spool", "status", *at).startswith(f"{tmp_path / 'spool'}: 3 items, 0 set aside, ")
        to_database = ("--database-url", session_database_url)
        assert succeed("spool", "drain", *at, *to_database) == "Drained: 1 delivered, 2 set aside, 0 left\n"
        first, second = succeed("spool", "poison", *at).splitlines()
        assert "tokens_in: expected a whole number from 0" in first
        assert "\\u001b" in second
        assert "\x1b" not in second
        assert succeed("spool", "poison", "--retry", *at) == "Put back: 2 items\n"
        assert succeed("spool", "drain", *at, *to_database) == "Drained: 0 delivered, 2 set aside, 0 left\n"
        unasked = run("spool", "poison", "--drop", *at)
        assert (unasked.returncode, unasked.stdout) == (2, "")
        assert unasked.stderr == "error: there is no terminal to confirm on: give --yes\n"
        assert succeed("spool", "poison", "--drop", "--yes", *at) == "Deleted: 2 items\n"
        assert "0 items, 0 set aside" in succeed("spool", "status", *at)
    both = run("spool", "poison", "--retry", "--drop", *at)
    assert (both.returncode, both.stderr) == (2, "error: --retry and --drop exclude each other: give one\n")


async def test_a_spool_that_cannot_be_drained_is_told(session_database_url: str, tmp_path: Path) -> None:
    at = ("--path", str(tmp_path / "spool"))
    with Spool(tmp_path / "spool") as spool:
        spool.append([usage_of("s", 1)])
        away = run("spool", "drain", *at, "--database-url", "postgresql://me@127.0.0.1:1/x")
        assert (away.returncode, away.stdout) == (1, "")
        assert away.stderr.startswith("error: the database cannot be reached")
        assert spool.status().items == 1
        with spool.draining():
            refused = run("spool", "drain", *at, "--database-url", session_database_url)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: another drainer is at work on ")
    (tmp_path / "file").touch()
    refused = run("spool", "status", "--path", str(tmp_path / "file"))
    assert refused.returncode == 1
    assert "is not a directory" in refused.stderr


async def test_following_a_spool_ends_with_an_interrupt(session_database_url: str, tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        at = ("--path", str(tmp_path / "spool"), "--database-url", session_database_url)
        with running("spool", "drain", "--follow", *at) as process:
            for number in range(2):
                spool.append([usage_of(f"s{number}", 1)])
                await eventually(lambda: spool.status().items == 0)
            assert spool.status().is_draining
            code, said = interrupt(process)
            assert (code, said) == (0, "")
        assert not spool.status().is_draining
    async with connected(session_database_url) as connection:
        assert await connection.fetchval(EVENTS) == 2


def test_a_missing_extra_is_named() -> None:
    ran = run(program=(sys.executable, "-c", WITHOUT_TYPER))
    assert ran.returncode == 1
    assert ran.stderr == "the command line needs an extra: pip install 'session-lifecycle[cli]'\n"


def servers_in(data_dir: Path) -> list[str]:
    """The processes that work in a data directory; without /proc, the process in the server's pid file."""
    if not Path("/proc/self").exists():
        return [path.name for path in data_dir.glob("postmaster.pid")]
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found += [process.name] if (process / "cwd").resolve() == data_dir else []
    return found


async def url_of_server_in(data_dir: Path) -> str:
    """The URL of the server in this directory, once the server is ready."""
    async with asyncio.timeout(30):
        while True:
            with suppress(FileNotFoundError):
                said = (data_dir / "postmaster.pid").read_text().splitlines()
                if said[7:] and said[7].strip() == "ready":
                    password = (data_dir.with_name(f"{data_dir.name}.control") / "password").read_text()
                    return f"postgresql://postgres:{password}@/postgres?host={data_dir}&port={said[3]}"
            await asyncio.sleep(0.01)


def data_dir_in(home: Path) -> Path:
    [version] = home.glob("**/embedded-*/PG_VERSION")
    return version.parent


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that the server can enter, also when root runs the tests and another user the server."""
    with tempfile.TemporaryDirectory(prefix="sl-") as name:
        path = Path(name).resolve()
        path.chmod(0o711)
        yield path


async def test_embedded_it_brings_its_own_postgres_and_takes_it_away(
    home: Path, requests: tuple[str, dict[str, int]]
) -> None:
    program = (sys.executable, "-c", WITH_ANOTHER_HOME_OF_ROOT, str(home))
    assert_agree(succeed("demo", "--embedded", program=program, HOME=str(home), XDG_DATA_HOME=str(home)))
    data_dir = data_dir_in(home)
    assert servers_in(data_dir) == []

    # The named directory keeps the data for further runs; a signal ends the server as well.
    for ending, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with running("replay", requests[0], "--data-dir", str(data_dir), "--speed", "1") as process:
            async with connected(await url_of_server_in(data_dir)) as connection:
                await until(connection, OF_REPLAY, lambda counted: counted > 0)
            assert servers_in(data_dir) != []
            process.send_signal(ending)
            _, said = process.communicate(timeout=30)
            assert (process.returncode, without_database(said)) == (code, "")
        assert servers_in(data_dir) == []
