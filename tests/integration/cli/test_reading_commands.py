"""The commands that read, as operators and programs run them."""

import io
import json
import os
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from rich.console import Console

from session_lifecycle import (
    Message,
    Run,
    SessionDatabase,
    SessionListFilters,
    SessionStatus,
    Step,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.cli.tables import money, sessions_table
from session_lifecycle.models.fields import exact_sum
from support.commands import PROGRAM, environment, run, succeed, without_database

ANN, BEN, TEAM = (UUID(int=number) for number in (1, 2, 11))
START = datetime(2026, 1, 10, 12, tzinfo=UTC)
# More digits than a float has, and more decimals than a table had once.
TINY = Decimal("0.000000000000123456789012345678")
LARGE = Decimal("123456789.000000000000000000000001")
TOTAL = exact_sum([LARGE, TINY, Decimal(3)])
LONG_ID = "long-" + "Q" * 500
HOSTILE = "[red]\x1b[2Jevil\u202e\n[link=http://x]y[/]"


@pytest_asyncio.fixture
async def at(session_database_url: str) -> AsyncIterator[tuple[str, str]]:
    """The option that names a database with sessions of two users: one of Ben's has the id of one of Ann's."""
    async with SessionDatabase.connect(session_database_url) as db:
        await db.lifecycle.record(
            [
                *_session("first", ANN, START, "coder", cost=LARGE, dataset_id=TEAM, tags={"team": "red"}),
                *_session("second", ANN, START + timedelta(days=1), "writer", cost=TINY, metadata={"k": [1]}),
                *_session("same", ANN, START + timedelta(days=2), "coder", cost=Decimal(1)),
                *_session("same", BEN, START + timedelta(days=3), "coder", cost=Decimal(2)),
                *_session(LONG_ID, BEN, START + timedelta(days=4), HOSTILE, cost=None),
            ]
        )
        await db.lifecycle.end_session("first", ANN, SessionStatus.COMPLETED, at=START + timedelta(minutes=10))
        await db.lifecycle.annotate_session("first", ANN, "quality", score=0.5, label="good", annotator="me")
    yield ("--database-url", session_database_url)


def _session(session_id: str, user: UUID, at: datetime, agent: str, *, cost: Decimal | None, **touch: Any) -> list[Any]:
    key = {"session_id": session_id, "user_id": user}
    run_id = f"run of {session_id[:20]} {user.int}"
    model = "m" if cost is not None else f"unknown {HOSTILE}"
    return [
        Touch(**key, at=at, agent_name=agent, **touch),
        Run(**key, run_id=run_id, started_at=at, ended_at=at + timedelta(seconds=5), agent_name=agent, model=model),
        Step(user_id=user, run_id=run_id, step_id="s", kind="tool", name="grep", started_at=at, ended_at=at),
        Message(**key, message_id="1", run_id=run_id, role="user", content=f"Find the {agent} needle", created_at=at),
        UsageEvent(
            **key, run_id=run_id, model=model, tokens_in=1000, tokens_out=10, cost_usd=cost, at=at, idempotency_key="1"
        ),
    ]


def answer(*arguments: str) -> Any:
    """The answer as a program reads it: one line of JSON in ASCII."""
    said = succeed(*arguments, "--json")
    assert said.count("\n") == 1
    assert said.isascii()
    assert all(character.isprintable() for character in said[:-1])
    return json.loads(said)


def listed(*arguments: str) -> list[str]:
    return [row["record"]["session_id"] for row in answer("sessions", "list", "--ascending", *arguments)["sessions"]]


def test_sessions_are_listed_by_every_filter(at: tuple[str, str]) -> None:
    assert listed(*at) == ["first", "second", "same", "same", LONG_ID]
    for options, expected in {
        ("--user", str(ANN)): ["first", "second", "same"],
        ("--user", str(ANN), "--user", str(BEN), "--limit", "2"): ["first", "second"],
        ("--since", "2026-01-11T12:00:00Z", "--until", "2026-01-12T12:00:00"): ["second"],
        ("--since", "2026-01-11T14:00:00+02:00", "--until", "2026-01-12"): ["second"],
        ("--status", "completed"): ["first"],
        ("--status", "running"): [],
        ("--agent", "coder"): ["first", "same", "same"],
        ("--agent", "coder", "--agent", "writer"): ["first", "second", "same", "same"],
        ("--dataset", str(TEAM)): ["first"],
        ("--without-dataset", "--user", str(ANN)): ["second", "same"],
        ("--prefix", "s"): ["second", "same", "same"],
        ("--prefix", "s", "--excluded-prefix", "sa"): ["second"],
        ("--min-cost", "123456789.000000000000000000000001"): ["first"],
        ("--min-cost", "123456789.000000000000000000000002"): [],
        ("--max-cost", str(TINY)): ["second", LONG_ID],
        ("--min-tokens", "1011"): [],
        ("--max-tokens", "1010", "--user", str(ANN)): ["first", "second", "same"],
        ("--min-errors", "1"): [],
        ("--max-errors", "0", "--agent", "writer"): ["second"],
        ("--min-seconds", "600"): ["first"],
        ("--max-seconds", "600", "--min-seconds", "600"): ["first"],
        ("--metadata", '{"k": [1]}'): ["second"],
        ("--tag", "team=red"): ["first"],
        ("--tag", "team=red", "--tag", "x=y"): [],
        ("--tool", "grep", "--agent", "writer"): ["second"],
        ("--tool", "other"): [],
        ("--annotation", "quality"): ["first"],
        ("--annotation-label", "good", "--annotator", "me", "--min-score", "0.5"): ["first"],
        ("--max-score", "0.4"): [],
        ("--order-by", "cost_usd", "--user", str(ANN)): ["second", "same", "first"],
    }.items():
        assert listed(*options, *at) == expected, options


def test_pages_follow_each_other(at: tuple[str, str]) -> None:
    found: list[str] = []
    more: list[str] = []
    while True:
        page = answer("sessions", "list", "--limit", "2", "--total", "none", *more, *at)
        found += [f"{row['record']['user_id']} {row['record']['session_id']}" for row in page["sessions"]]
        if not page["has_more"]:
            break
        more = ["--cursor", page["next_cursor"]]
        shown = run("sessions", "list", "--limit", "2", *at)
        assert shown.stderr.startswith("more follow: --cursor ")
    assert (len(found), len(set(found))) == (5, 5)
    assert run("sessions", "list", *at).stderr == ""


async def test_programs_get_what_the_library_answers(at: tuple[str, str]) -> None:
    async with SessionDatabase.connect(at[1]) as db:
        page = await db.lifecycle.list_session_rows(SessionListFilters(viewer=Viewer.auditor()))
        stats = await db.lifecycle.aggregate_stats(Viewer.auditor())
    assert answer("sessions", "list", *at) == page.model_dump(mode="json")
    assert answer("stats", *at) == stats.model_dump(mode="json")
    [second] = answer("sessions", "list", "--agent", "writer", *at)["sessions"]
    assert Decimal(second["record"]["cost_usd"]) == TINY
    assert second["record"]["started_at"] == "2026-01-11T12:00:00Z"


def test_tables_have_exact_money_and_utc(at: tuple[str, str]) -> None:
    shown = succeed("sessions", "list", *at)
    for text in (
        "0.000000000000123456789012345678",
        "123,456,789.000000000000000000000001",
        " 1.000000 ",
        " 0.000000 ",
    ):
        assert text in shown, text
    assert "2026-01-11T12:00:05Z" in shown
    for figures in (("stats",), ("usage",), ("cost",)):
        assert money(TOTAL) in succeed(*figures, *at), figures


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.000000"),
        ("0E-10", "0.000000"),
        ("1E-7", "0.0000001"),
        ("1E+3", "1,000.000000"),
        ("1234.5", "1,234.500000"),
        ("-0.10000000", "-0.100000"),
        (str(LARGE), "123,456,789.000000000000000000000001"),
        ("9" * 40 + ".1", f"{int('9' * 40):,}.100000"),
    ],
)
def test_money_has_all_its_digits(amount: str, text: str) -> None:
    assert money(Decimal(amount)) == text


READS = (
    ("sessions", "list"),
    ("sessions", "show", LONG_ID, "--messages"),
    ("search", "needle"),
    ("runs",),
    ("events",),
    ("cost", "--by", "session,agent,model"),
)


def test_every_table_escapes_and_cuts_nothing(at: tuple[str, str]) -> None:
    for arguments in READS:
        shown = succeed(*arguments, *at)
        assert all(character.isprintable() for line in shown.split("\n") for character in line), arguments
        assert HOSTILE.encode("unicode_escape").decode() in shown, arguments
        assert "…" not in shown
        if arguments != READS[1]:
            assert any(
                LONG_ID in line and HOSTILE.encode("unicode_escape").decode() in line for line in shown.split("\n")
            )
        answer(*arguments, *at)


async def test_a_narrow_terminal_cuts_no_cell(at: tuple[str, str]) -> None:
    async with SessionDatabase.connect(at[1]) as db:
        page = await db.lifecycle.list_session_rows(SessionListFilters(viewer=Viewer(BEN), limit=1))
    written = io.StringIO()
    Console(width=80, file=written, force_terminal=True, color_system=None).print(sessions_table(page))
    shown = written.getvalue()
    assert shown.count("Q") == LONG_ID.count("Q")
    assert "…" not in shown


def test_an_operator_reads_as_the_auditor_or_as_a_user(at: tuple[str, str]) -> None:
    assert answer("stats", *at)["sessions"] == 5
    assert answer("stats", "--user", str(ANN), *at)["sessions"] == 3
    assert answer("stats", "--user", str(UUID(int=3)), *at)["sessions"] == 0
    assert answer("usage", "--user", str(BEN), *at)["events"] == 2
    assert [row["user_id"] for row in answer("cost", "--by", "user", "--order-by", "user", *at)["rows"]] == [
        str(ANN),
        str(BEN),
    ]
    for owner, options in ((BEN, ()), (ANN, ("--user", str(ANN))), (BEN, ("--user", str(BEN)))):
        detail = answer("sessions", "show", "same", *options, *at)
        assert detail["summary"]["record"]["user_id"] == str(owner)
    unseen = run("sessions", "show", "first", "--user", str(BEN), *at)
    assert (unseen.returncode, unseen.stdout, unseen.stderr) == (1, "", "error: there is no session first\n")


def test_a_session_is_shown_with_its_runs(at: tuple[str, str]) -> None:
    shown = succeed("sessions", "show", "first", *at)
    for text in ("first", str(ANN), "completed", "123,456,789.000000000000000000000001", "run of first 1", "0:00:05"):
        assert text in shown, text
    assert "needle" not in shown
    assert "Find the coder needle" in succeed("sessions", "show", "first", "--messages", *at)
    detail = answer("sessions", "show", "first", *at)
    assert [one["run_id"] for one in detail["runs"]] == ["run of first 1"]
    assert "messages" not in detail
    assert len(answer("sessions", "show", "first", "--messages", *at)["messages"]) == 1
    assert answer("sessions", "show", "first", "--offset", "1", *at)["runs"] == []


def test_messages_are_searched(at: tuple[str, str]) -> None:
    def found(*arguments: str) -> list[str]:
        sessions = answer("search", *arguments, "--ascending", *at)["sessions"]
        return [row["record"]["session_id"] for row in sessions]

    assert found("CODER needle") == ["first", "same", "same"]
    assert found("coder needle", "--user", str(BEN)) == ["same"]
    assert found("%") == []
    assert found("needle", "--agent", "writer", "--model", "m") == ["second"]
    assert found("needle", "--session", "first", "--order-by", "last_prompt_at") == ["first"]
    for empty in ("", "\u00ad"):
        assert "a text to search for" in run("search", empty, *at).stderr


def test_runs_and_events_are_listed_by_every_filter(at: tuple[str, str]) -> None:
    for options, expected in {
        (): 5,
        ("--user", str(ANN)): 3,
        ("--session", "same"): 2,
        ("--agent", "writer"): 1,
        ("--model", "M"): 4,
        ("--dataset", str(TEAM)): 1,
        ("--since", "2026-01-11", "--until", "2026-01-13"): 2,
        ("--provider", "other"): 0,
        ("--client", "Unknown", "--limit", "3"): 3,
    }.items():
        assert len(answer("runs", *options, *at)["runs"]) == expected, options
        assert len(answer("events", *options, *at)["events"]) == expected, options
        # The report has the filters of the ledger.
        if "--limit" not in options:
            assert answer("usage", *options, *at)["events"] == expected, options
    for options, expected in {
        ("--run", "run of first 1"): 1,
        ("--kind", "embedding"): 0,
        ("--billing", "api"): 5,
        ("--service-tier", "standard", "--tag", "team=red"): 1,
    }.items():
        assert len(answer("events", *options, *at)["events"]) == expected, options
        assert answer("usage", *options, *at)["events"] == expected, options
    assert len(answer("runs", "--include-open", "--project", "default", *at)["runs"]) == 5


def test_cost_is_split_by_any_dimension(at: tuple[str, str]) -> None:
    window = ("--since", "2026-01-10", "--until", "2026-01-16")
    for by, groups in {
        "model": 2,
        "agent": 3,
        "user": 2,
        "dataset": 2,
        "session": 5,
        "run": 5,
        "status": 2,
        "tag:team": 2,
        "day": 5,
        "week": 2,
        "month": 1,
        "hour": 5,
        "provider,client,kind,billing,service_tier": 1,
        "day,user,model": 5,
    }.items():
        report = answer("cost", "--by", by, *window, *at)
        assert len(report["rows"]) == groups, by
        assert exact_sum(Decimal(row["cost_usd"]) for row in report["rows"]) == TOTAL, by
        assert Decimal(report["total"]["cost_usd"]) == TOTAL, by
        shown = succeed("cost", "--by", by, *window, *at)
        assert f"Cost by {by.replace(',', ', ')}" in shown
        assert money(TOTAL) in shown
    assert "2026-01-11T00:00:00Z" in succeed("cost", "--by", "day", *window, *at)
    assert answer("cost", "--by", "day", "--since", "2026-01-10", *at)["total"]["events"] == 5
    limited = run("cost", "--by", "session", "--limit", "1", *at)
    assert limited.stderr == "more groups follow: give a greater --limit\n"
    zoned = answer("cost", "--by", "day", "--timezone", "Asia/Tokyo", *window, *at)
    assert zoned["rows"][0]["starts_at"].endswith("15:00:00Z")


def test_an_empty_database_has_empty_answers(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    for arguments in (("sessions", "list"), ("search", "x"), ("runs",), ("events",), ("stats",), ("usage",), ("cost",)):
        assert succeed(*arguments, *at) != ""
        answer(*arguments, *at)
    assert answer("cost", "--by", "user", *at)["rows"] == []
    assert answer("budgets", "list", *at) == {"budgets": []}


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_a_reader_that_goes_away_is_no_crash(at: tuple[str, str], form: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [*PROGRAM, "runs", *form, *at],
            env=environment(),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ran.returncode, without_database(ran.stderr)) == (1, "")
