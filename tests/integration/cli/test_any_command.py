"""Every command: the database that it opens, the arguments that it refuses, and the errors that it prints."""

import asyncio
import io
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from session_lifecycle import Message, SessionDatabase, SessionListFilters, Viewer
from session_lifecycle.cli.tables import sessions_table
from support.command_line import HEADER, USER, ask, of_user
from support.commands import on_pipe, on_terminal, options_of_commands, run, run_raw, succeed

WITHOUT_TYPER = """
import sys
sys.modules["typer"] = None
from session_lifecycle.cli import main
main()
"""


def test_an_error_is_one_line_without_the_password(tmp_path: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(f"{HEADER}\n0,s,1,2,3\n0,t,1,2,3\n")
    nowhere = ("--database-url", "postgresql://someone:secret@127.0.0.1:1/x")
    unreachable = "the database cannot be reached"
    for command, message, code in (
        (("db", "check", *nowhere), unreachable, 1),
        (("replay", str(file), *nowhere), unreachable, 1),
        (("db", "check", "--database-url", "mysql://someone:secret@h/x"), "expected postgresql://", 2),
        (("db", "check", "--database-url", "someone:secret"), "the database URL cannot be read", 2),
    ):
        failed = run(*command, SESSION_LIFECYCLE_RETRIES="0")
        assert (failed.returncode, failed.stdout) == (code, "")
        assert failed.stderr.startswith("error: ")
        assert failed.stderr.count("\n") == 1
        assert message in failed.stderr
        assert "secret" not in failed.stderr
    missing = run("replay", str(tmp_path / "missing.csv"), *nowhere)
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
    unknown = run("db", "check", *nowhere, SESSION_LIFECYCLE_POOL_SIZE="many")
    assert unknown.returncode == 2
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


def test_a_missing_extra_is_named() -> None:
    ran = run(program=(sys.executable, "-c", WITHOUT_TYPER))
    assert ran.returncode == 1
    assert ran.stderr == "the command line needs an extra: pip install 'session-lifecycle[cli]'\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("export", "sessions", "--output"), 1),
        (("import", "claude-code"), 2),
        (("import", "codex"), 2),
        (("import", "litellm-spend-logs"), 2),
        (("import", "langfuse"), 2),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_a_path_that_cannot_be_looked_at_is_no_crash(
    session_database_url: str, command: tuple[str, ...], code: int
) -> None:
    refused = run(*command, "x" * 300, "--database-url", session_database_url)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert refused.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("command", [("db", "roles"), ("db", "sql"), ("db", "rls", "sql")], ids=" ".join)
@pytest.mark.parametrize("schema", ["", "pg_x", "x" * 64, "a\nb"], ids=ascii)
def test_the_name_of_a_schema_is_refused_without_a_database(command: tuple[str, ...], schema: str) -> None:
    key = {"SESSION_LIFECYCLE_ROW_LEVEL_SECURITY_KEY": "k" * 40}
    refused = run(*command, f"--schema={schema}", **key)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: schema: got ")


def test_the_name_of_a_foreign_schema_is_refused(session_database_url: str) -> None:
    for command in ("reference", "litellm-spend-logs"):
        for schema in ("", "\udcff"):
            refused = run(
                "import",
                command,
                session_database_url,
                f"--source-schema={schema}",
                "--database-url",
                session_database_url,
            )
            assert (refused.returncode, refused.stdout) == (1, ""), command
            assert "error: schema: got " in refused.stderr
