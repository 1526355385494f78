"""The demo and the replay of a file by the command line."""

import re
import signal
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.command_line import (
    EVENTS,
    HEADER,
    OTHERS_CONNECTED,
    REQUESTS,
    WAITING_FOR_LOCKS,
    ask,
    assert_agree,
    connected,
    costs,
    figures,
    until,
)
from support.commands import interrupt, run, running, succeed


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
                await until(connection, WAITING_FOR_LOCKS, lambda waiting: waiting > 0)
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
