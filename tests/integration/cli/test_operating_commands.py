"""The commands that change something, as operators run them: good, bad, asked, interrupted, without a server."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import make_url

from session_lifecycle import Message, SessionDatabase, SessionStatus, Spool, Touch, UsageEvent
from support.command_line import OTHERS_CONNECTED, WAITING_FOR_LOCKS, connected, until
from support.commands import on_terminal, run, running, succeed, without_database
from support.faulty_proxy import FaultyProxy

ANN, BEN = UUID(int=1), UUID(int=2)
OF_ANN = ("--user", str(ANN))
LONG_AGO = datetime.now(UTC) - timedelta(days=40)
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
SLOW_DELETION = """
    CREATE FUNCTION public.sleep() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_catalog.pg_sleep(60); RETURN OLD; END $$;
    CREATE TRIGGER sleep BEFORE DELETE ON session_lifecycle.session_records
        FOR EACH ROW WHEN (OLD.session_id = 'c') EXECUTE FUNCTION public.sleep();
"""
LEFT = """
    SELECT array_agg(session_id || ' ' || kind ORDER BY session_id, kind) FROM (
        SELECT session_id, 'session' AS kind FROM session_lifecycle.session_records
        UNION ALL SELECT session_id, 'event' FROM session_lifecycle.session_usage_events
        UNION ALL SELECT session_id, 'message' FROM session_lifecycle.session_messages) AS every_row
"""


@asynccontextmanager
async def locked(url: str) -> AsyncGenerator[None]:
    """Has every command that reads sessions or usage wait, until the block is left."""
    async with connected(url) as connection, connection.transaction():
        for table in ("session_usage_events", "session_records"):
            await connection.execute(f"LOCK TABLE session_lifecycle.{table}")
        yield


async def record(url: str, *names: str, at: datetime | None = None, user: UUID = ANN) -> None:
    """Records a session of each name with a message and one dollar of usage."""
    moment = at or datetime.now(UTC) - timedelta(minutes=1)
    async with SessionDatabase.connect(url) as db:
        for number, name in enumerate(names):
            then = moment + timedelta(seconds=number)
            key = {"session_id": name, "user_id": user}
            message = Message(**key, message_id="1", role="user", content="secret", created_at=then)
            event = UsageEvent(**key, model="m", tokens_in=1, cost_usd=1, at=then, idempotency_key="1")
            await db.lifecycle.record([Touch(**key, at=then), message, event])


def answer(*arguments: str) -> Any:
    """The answer as a program reads it: one line of JSON."""
    said = succeed(*arguments, "--json")
    assert said.count("\n") == 1
    return json.loads(said)


async def test_an_operator_ends_and_reopens_a_session(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    await record(session_database_url, "s")
    await record(session_database_url, "s", user=BEN)
    one = ("s", *OF_ANN)
    ended = succeed("sessions", "end", *one, "--status", "failed", "--reason", "it hung", *at)
    assert ended == f"Session s of user {ANN}: ended\n"
    again = {"session_id": "s", "user_id": str(ANN), "outcome": "already_ended"}
    assert answer("sessions", "end", *one, "--status", "completed", *at) == again
    [row] = answer("sessions", "list", "--status", "failed", *at)["sessions"]
    assert (row["record"]["user_id"], row["record"]["end_reason"]) == (str(ANN), "it hung")
    assert answer("sessions", "reopen", *one, *at)["outcome"] == "reopened"
    assert succeed("sessions", "reopen", *one, *at) == f"Session s of user {ANN}: already_running\n"
    moment = (datetime.now(UTC) - timedelta(seconds=10)).isoformat(timespec="seconds")
    succeed("sessions", "end", *one, "--status", "completed", "--at", moment, *at)
    assert answer("sessions", "show", *one, *at)["summary"]["record"]["ended_at"] == moment.replace("+00:00", "Z")


async def test_an_operator_updates_a_session(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    await record(session_database_url, "s")
    one = ("sessions", "update", "s", *OF_ANN)
    given = {"--title": "a title", "--agent": "coder", "--dataset": str(UUID(int=9)), "--parent": "p"}
    options = [word for pair in given.items() for word in pair]
    record_ = answer(*one, *options, "--metadata", '{"k": 1.5}', "--tag", "a=b", "--tag", "c=", *at)
    stored = [record_[name] for name in ("title", "agent_name", "dataset_id", "parent_session_id", "metadata", "tags")]
    assert stored == ["a title", "coder", str(UUID(int=9)), "p", {"k": 1.5}, {"a": "b", "c": ""}]
    cleared = [
        word for name in ("title", "metadata", "tags", "dataset", "agent", "parent") for word in ("--clear", name)
    ]
    shown = succeed(*one, *cleared, *at)
    assert "1.000000" in shown
    assert "coder" not in shown
    assert answer(*one, "--title", "t", *at)["agent_name"] is None
    for wrong, message in (
        (("--clear", "nothing"), "--clear: got nothing, expected title, metadata, "),
        (("--clear", "title", "--title", "x"), "--clear title: the field is also given"),
        (("--parent", "s"), "parent_session_id: got 's', expected the id of another session"),
    ):
        refused = run(*one, *wrong, *at)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith(f"error: {message}")


async def test_an_operator_deletes_a_session(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    await record(session_database_url, "a", "b")
    one = ("sessions", "delete", "a", *OF_ANN)
    assert succeed(*one, "--dry-run", *at).startswith(f"Would delete: session a of user {ANN}\n")
    assert answer(*one, "--dry-run", *at)["record"]["session_id"] == "a"
    assert len(answer("sessions", "list", *at)["sessions"]) == 2
    assert succeed(*one, "--yes", *at) == f"Deleted: session a of user {ANN}\n"
    deleted = {"session_id": "b", "user_id": str(ANN), "deleted": True}
    assert answer("sessions", "delete", "b", *OF_ANN, "--yes", *at) == deleted
    async with connected(session_database_url) as connection:
        assert await connection.fetchval(LEFT) is None


@pytest.mark.parametrize(
    "command",
    [
        ("show", "s"),
        ("end", "s", *OF_ANN, "--status", "failed"),
        ("reopen", "s", *OF_ANN),
        ("update", "s", *OF_ANN, "--title", "t"),
        ("delete", "s", *OF_ANN, "--yes"),
        ("delete", "s", *OF_ANN, "--dry-run"),
    ],
    ids=" ".join,
)
def test_a_session_that_does_not_exist_is_told(session_database_url: str, command: tuple[str, ...]) -> None:
    for as_json in ((), ("--json",)):
        failed = run("sessions", *command, *as_json, "--database-url", session_database_url)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr.startswith("error: there is no session s")


async def test_an_operator_reprices(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    async with SessionDatabase.connect(session_database_url) as db:
        for name in ("gpt-4o", "gpt-4o-mini"):
            await db.lifecycle.accumulate_usage("s", ANN, name, 1_000_000)
    async with connected(session_database_url) as connection:
        before = await connection.fetchval("SELECT sum(cost_usd) FROM session_lifecycle.session_usage_events")
        await connection.execute("UPDATE session_lifecycle.session_usage_events SET cost_usd = cost_usd * 2")
        would_be = answer("reprice", "--dry-run", "--model", "gpt-4o", *at)
        assert (would_be["repricing_id"], would_be["looked_at"], would_be["events"]) == (None, 1, 1)
        assert answer("reprice", "--dry-run", "--until", "1d", *at)["looked_at"] == 0
        ran = run("reprice", "--batch", "1", "--since", "1d", *at)
        assert ran.returncode == 0
        assert ran.stdout.startswith("Repriced: repricing_id ")
        assert "looked_at 2, events 2, " in ran.stdout
        assert ran.stderr.startswith("1 events so far\n2 events so far\n")
        after = await connection.fetchval("SELECT sum(cost_usd) FROM session_lifecycle.session_usage_events")
        assert after == before
        assert answer("reprice", *at)["events"] == 0


async def test_every_job_answers_programs(session_database_url: str, tmp_path: Path) -> None:
    at = ("--database-url", session_database_url)
    await record(session_database_url, "old", at=LONG_AGO)
    await record(session_database_url, "new")
    assert answer("db", "check", *at) == {"is_up_to_date": True, "advice": []}
    assert answer("db", "upgrade", *at) == {"is_up_to_date": True, "advice": []}
    old = ("--older-than-days", "30")
    counts = answer("prune-payloads", *old, "--yes", *at)
    assert (counts["sessions"], counts["messages"], counts["dry_run"]) == (1, 1, False)
    assert "session_keys" not in counts
    assert answer("prune-sessions", *old, "--dry-run", *at)["sessions"] == 1
    assert answer("prune-sessions", *old, "--yes", *at)["events"] == 1
    assert answer("roll-up", *at)["sessions"] == 0
    assert answer("reconcile", *at)["mismatch_count"] == 0
    async with connected(session_database_url) as connection:
        await connection.execute("UPDATE session_lifecycle.session_records SET tokens_in = 9")
    differing = run("reconcile", "--json", *at)
    assert differing.returncode == 1
    [mismatch] = json.loads(differing.stdout)["mismatches"]
    assert (mismatch["field"], mismatch["found"], mismatch["expected"]) == ("tokens_in", "9", "1")
    assert answer("reconcile", "--repair", *at)["repaired"] == 1

    spool_at = ("--path", str(tmp_path / "spool"))
    item = {"kind": "usage", "session_id": "s", "user_id": str(ANN), "cost_usd": "1"}
    with Spool(tmp_path / "spool") as spool:
        spool.append([item | {"tokens_in": 1}, item | {"tokens_in": -1}])
    status = answer("spool", "status", *spool_at)
    assert (status["items"], status["poison"], status["path"]) == (2, 0, str(tmp_path / "spool"))
    assert answer("spool", "drain", *spool_at, *at) == {"delivered": 1, "set_aside": 1, "left": 0}
    assert json.loads(answer("spool", "poison", *spool_at)["item"])["tokens_in"] == -1
    assert answer("spool", "poison", "--retry", *spool_at) == {"put_back": 1}
    assert answer("spool", "drain", *spool_at, *at)["set_aside"] == 1
    assert answer("spool", "poison", "--drop", "--yes", *spool_at) == {"deleted": 1}

    transcripts = tmp_path / "none"
    transcripts.mkdir()
    read = answer("import", "codex", str(transcripts), *at)
    assert read == {"files": 0, "lines": 0, "items": 0, "new_events": 0, "conflicts": 0, "bad_lines": 0}
    file = tmp_path / "requests.csv"
    file.write_text("offset_ms,session_id,turn,tokens_in,tokens_out\n0,s,1,2,3\n")
    replayed = answer("replay", str(file), *at)
    assert (replayed["requests"], replayed["outcomes"], replayed["stats"]["tokens_in"]) == (1, {"applied": 1}, 2)
    shown = answer("demo", *at)
    assert sum(Decimal(row["cost_usd"]) for row in shown["costs"]) == Decimal(shown["stats"]["total_spend_usd"])


async def test_an_erasure_is_tried_before_it_is_done(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    await record(session_database_url, "a", "b")
    await record(session_database_url, "c", user=BEN)
    expected = {"user_id": str(ANN), "sessions": 2, "runs": 0, "events": 2}
    assert answer("erase-user", str(ANN), "--dry-run", *at) == expected
    said = succeed("erase-user", str(ANN), "--dry-run", *at)
    assert said == f"Would erase: user_id {ANN}, sessions 2, runs 0, events 2\n"
    receipt = answer("erase-user", str(ANN), "--yes", *at)
    assert (receipt["sessions"], receipt["events"], receipt["pseudonym"]) == (2, 2, None)
    async with connected(session_database_url) as connection:
        assert await connection.fetchval(LEFT) == ["c event", "c message", "c session"]


async def test_an_operator_keeps_budgets(session_database_url: str) -> None:
    at = ("--database-url", session_database_url)
    await record(session_database_url, "s")
    limit = ("--limit-usd", "0.100000000000000000000000000001", "--limit-tokens", "1000")
    assert succeed("budgets", "set", "b", *OF_ANN, *limit, *at) == "Created: budget b\n"
    again = answer("budgets", "set", "b", *OF_ANN, *limit, "--window", "7d", "--on-unpriced", "admit", *at)
    assert (again["is_new"], again["budget"]["window"]) == (False, "P7D")
    rest = ("--agent", "coder", "--dataset", str(UUID(int=9)), "--limit-tokens", "5")
    succeed("budgets", "set", "c", *rest, "--window", "day", "--timezone", "Asia/Tokyo", *at)
    shown = succeed("budgets", "list", *at)
    for text in ("0.100000000000000000000000000001", "1,000", "7 days", "coder", "Asia/Tokyo", str(ANN)):
        assert text in shown, text
    first = run("budgets", "list", "--limit", "1", *at)
    assert first.stderr == "more may follow: --after b\n"
    assert [one["budget_id"] for one in answer("budgets", "list", "--after", "b", *at)["budgets"]] == ["c"]
    assert [one["budget_id"] for one in answer("budgets", "list", *OF_ANN, *at)["budgets"]] == ["b"]
    use = answer("budgets", "show", "b", *at)
    assert (Decimal(use["spent_usd"]), use["spent_tokens"]) == (Decimal(1), 1)
    assert "0.100000000000000000000000000001" in succeed("budgets", "show", "b", *OF_ANN, *at)

    unseen = run("budgets", "show", "b", "--user", str(BEN), *at)
    assert (unseen.returncode, unseen.stdout, unseen.stderr) == (1, "", "error: there is no budget b\n")
    assert succeed("budgets", "delete", "b", "--dry-run", *at) == "Would delete: budget b\n"
    asked = run("budgets", "delete", "b", *at)
    assert (asked.returncode, asked.stderr) == (2, "error: there is no terminal to confirm on: give --yes\n")
    for word, code, left in (("n", 1, 2), ("y", 0, 1)):
        ended, _ = await asyncio.to_thread(on_terminal, f"{word}\n", "budgets", "delete", "b", *at)
        assert (ended, len(answer("budgets", "list", *at)["budgets"])) == (code, left)
    assert answer("budgets", "delete", "c", "--yes", *at) == {"budget_id": "c", "deleted": True}
    for missing in (("--yes",), ("--dry-run",)):
        gone = run("budgets", "delete", "c", *missing, *at)
        assert (gone.returncode, gone.stderr) == (1, "error: there is no budget c\n")


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_a_job_between_its_batches(
    session_database_url: str, ending: signal.Signals, code: int
) -> None:
    prune = ("prune-sessions", "--older-than-days", "30", "--batch", "1", "--yes", "--database-url")
    await record(session_database_url, "a", "b", "c", "d", at=LONG_AGO)
    async with connected(session_database_url) as connection:
        await connection.execute(SLOW_DELETION)
        with running(*prune, session_database_url) as process:
            await until(connection, SLEEPING, 1)
            process.send_signal(ending)
            _, said = await asyncio.to_thread(partial(process.communicate, timeout=30))
        assert (process.returncode, without_database(said)) == (code, "1 sessions so far\n2 sessions so far\n")
        await until(connection, OTHERS_CONNECTED, 0)
        whole = [f"{session} {kind}" for session in "cd" for kind in ("event", "message", "session")]
        assert await connection.fetchval(LEFT) == whole
        await connection.execute("DROP TRIGGER sleep ON session_lifecycle.session_records")
        assert ", sessions 2, " in succeed(*prune, session_database_url)
        assert await connection.fetchval(LEFT) is None


@pytest.mark.parametrize("command", [("sessions", "list"), ("cost", "--json"), ("reprice",)], ids=" ".join)
async def test_a_signal_ends_a_command_that_waits_for_its_answer(
    session_database_url: str, command: tuple[str, ...]
) -> None:
    await record(session_database_url, "a")
    async with connected(session_database_url) as connection:
        for ending, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            async with locked(session_database_url):
                with running(*command, "--database-url", session_database_url) as process:
                    await until(connection, WAITING_FOR_LOCKS, 1)
                    process.send_signal(ending)
                    _, said = await asyncio.to_thread(partial(process.communicate, timeout=30))
                assert (process.returncode, without_database(said)) == (code, "")
            await until(connection, OTHERS_CONNECTED, 0)


@pytest.mark.parametrize(
    "command",
    [("sessions", "list"), ("sessions", "delete", "a", *OF_ANN, "--yes"), ("reconcile", "--repair")],
    ids=lambda command: " ".join(command[:2]),
)
async def test_a_server_that_is_lost_in_the_middle_is_told(session_database_url: str, command: tuple[str, ...]) -> None:
    await record(session_database_url, "a")
    parsed = make_url(session_database_url)
    proxy = FaultyProxy(parsed.port or 5432, share=0)
    async with proxy.running(), connected(session_database_url) as connection:
        url = parsed.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        async with locked(session_database_url):
            with running(*command, "--database-url", url, SESSION_LIFECYCLE_RETRIES="1") as process:
                await until(connection, WAITING_FOR_LOCKS, 1)
                async with proxy.refusing():
                    _, said = await asyncio.to_thread(partial(process.communicate, timeout=60))
        assert process.returncode == 1
        told = without_database(said)
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        assert "Traceback" not in told
    assert succeed("reconcile", "--database-url", session_database_url).endswith(" 0 mismatches, 0 repaired\n")


async def test_rolling_up_again_and_again_answers_programs(session_database_url: str) -> None:
    await record(session_database_url, "a")
    async with SessionDatabase.connect(session_database_url) as db:
        await db.lifecycle.end_session("a", ANN, SessionStatus.COMPLETED)
    report = answer("roll-up", "--database-url", session_database_url)
    assert (report["sessions"], report["idle_before"][-1]) == (1, "Z")
