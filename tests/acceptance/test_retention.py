"""Rows of the tables about retention, pruning and telemetry: conversations, proxied requests, traces."""

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import Message, Run, SessionDatabase, SessionStatus, Step, Touch, UsageEvent, Viewer
from session_lifecycle.models import Item, PruneReport, TelemetryKey
from session_lifecycle.testing import SessionClock
from support.stored_rows import ask, counts
from support.world import World

LOG = logging.getLogger(__name__)
NOW = datetime.now(UTC)
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
AUDITOR = Viewer.auditor()


def conversation(session_id: str, user: UUID, at: datetime) -> list[Item]:
    """A session with a run, a failed task, a message and usage, all at one moment."""
    run_id = f"run of {session_id}"
    return [
        Touch(session_id=session_id, user_id=user, at=at),
        Run(run_id=run_id, user_id=user, session_id=session_id, started_at=at, ended_at=at, input="in", output="out"),
        Step(step_id="1", run_id=run_id, user_id=user, kind="task", started_at=at, inputs="in", errors=["boom"]),
        Message(message_id="1", user_id=user, session_id=session_id, role="user", content="hi", created_at=at),
        UsageEvent(
            session_id=session_id,
            user_id=user,
            model="gpt-4o",
            tokens_in=10,
            tokens_out=5,
            cost_usd=1,
            run_id=run_id,
            at=at,
        ),
    ]


ONE = {"sessions": 1, "runs": 1, "steps": 1, "messages": 1, "events": 1, "model_rows": 1}


async def test_K19_a_deleted_session_is_gone_and_the_others_stay(world: World) -> None:
    for user, session_id in ((world.a, "S1"), (world.a, "S2"), (world.b, "S1")):
        await world.lifecycle.record(conversation(session_id, user, NOW))
    assert await world.db.maintenance.delete_session("S1", world.a)
    assert await counts(world.db, user_id=world.a) == ONE
    assert await counts(world.db, user_id=world.b) == ONE
    assert await world.listed(world.a) == ["S2"]


async def test_K21_payloads_are_pruned_in_batches_and_usage_stays(world: World) -> None:
    for days in (90, 60, 40, 0):
        await world.lifecycle.record(conversation(f"idle {days}", world.a, NOW - days * DAY))
    before = await world.lifecycle.aggregate_stats(world.a)

    async def without_messages() -> list[str]:
        rows = await ask(
            world.db,
            "SELECT session_id FROM session_records s WHERE NOT EXISTS "
            "(SELECT FROM session_messages m WHERE m.session_id = s.session_id) ORDER BY last_activity_at",
        )
        return [row[0] for row in rows]

    progress: list[int] = []
    report = await world.db.maintenance.prune_payloads(
        30 * DAY, batch=2, on_progress=lambda report: progress.append(report.sessions)
    )
    assert progress == [2, 3]
    assert await without_messages() == ["idle 90", "idle 60", "idle 40"]
    assert (report.sessions, report.runs, report.steps, report.messages, report.events) == (3, 3, 3, 3, 0)
    payloads = "SELECT count(*) FROM session_runs r JOIN session_steps s USING (user_id, run_id) WHERE {}"
    assert await ask(world.db, payloads.format("r.input IS NULL AND r.output IS NULL AND s.inputs IS NULL")) == [(3,)]
    assert await ask(world.db, payloads.format("s.is_error")) == [(4,)]
    assert await world.lifecycle.aggregate_stats(world.a) == before
    assert (await world.db.maintenance.prune_payloads(30 * DAY)).sessions == 0


async def test_K22_a_run_of_today_counts_whenever_its_session_began(world: World) -> None:
    await world.lifecycle.record(conversation("old", world.a, NOW - 40 * DAY))
    await world.lifecycle.end_session("old", world.a, SessionStatus.COMPLETED, at=NOW - 39 * DAY)
    run = Run(run_id="r", user_id=world.a, session_id="old", started_at=NOW - MINUTE, ended_at=NOW)
    await world.lifecycle.record([run])
    assert (await world.db.reports.telemetry(world.a, since=NOW - 30 * DAY)).runs_count == 1
    assert len(await world.db.reports.list_telemetry_keys(world.a, since=NOW - 30 * DAY)) == 1


def request(run_id: str, user: UUID, seconds: float | None, **more: Any) -> Run:
    """A run of a proxied request; `seconds` is None while it is in flight."""
    began = NOW - DAY
    ended = None if seconds is None else began + seconds * SECOND
    named: dict[str, Any] = {"provider": "anthropic", "model": "m", "client": "Cursor", **more}
    return Run(run_id=run_id, user_id=user, started_at=began, ended_at=ended, **named)


async def test_C29_telemetry_of_two_requests(world: World) -> None:
    tool: dict[str, Any] = {"kind": "tool", "started_at": NOW - DAY}
    for user, run_id, seconds in ((world.a, "i1", 60), (world.b, "i2", 120)):
        prompt: dict[str, Any] = {
            "message_id": "p",
            "session_id": run_id,
            "run_id": run_id,
            "role": "user",
            "content": "hi",
        }
        await world.lifecycle.record(
            [
                request(run_id, user, seconds),
                UsageEvent(
                    session_id=run_id,
                    user_id=user,
                    model="m",
                    tokens_in=1000,
                    tokens_out=200,
                    cache_read_tokens=300,
                    cache_write_tokens=400,
                    run_id=run_id,
                ),
                Message(user_id=user, created_at=NOW, **prompt),
                Message(user_id=user, created_at=NOW, **{**prompt, "message_id": "a", "role": "assistant"}),
            ]
        )
    await world.lifecycle.record(
        [
            Step(step_id="1", run_id="i1", user_id=world.a, injected=True, tool_call_id="c1", errors="no", **tool),
            Step(step_id="2", run_id="i2", user_id=world.b, tool_call_id="c2", **tool),
            request("other model", world.a, 5, model="n"),
            request("other client", world.a, 5, client=None),
        ]
    )
    summary = await world.db.reports.telemetry(AUDITOR, provider="anthropic", model="m", client="Cursor")
    assert summary.model_dump() == {
        "runs_count": 2,
        "users_count": 2,
        "duration_p50_ms": 90000.0,
        "duration_p90_ms": 114000.0,
        "duration_p95_ms": 117000.0,
        "duration_p99_ms": 119400.0,
        "tokens_in": 2000,
        "tokens_out": 400,
        "cache_read_tokens": 600,
        "cache_write_tokens": 800,
        "tool_calls_injected": 1,
        "tool_calls_failed": 1,
        "tool_calls_not_injected": 1,
        "prompts_count": 2,
    }


async def test_C30_telemetry_leaves_out_what_is_in_flight(world: World) -> None:
    await world.lifecycle.record([request("i1", world.a, 180), request("twin", world.a, None)])
    summary = await world.db.reports.telemetry(world.a)
    percentiles = {value for name, value in summary if name.startswith("duration")}
    assert (summary.runs_count, percentiles) == (1, {180000.0})


async def test_C31_keys_of_what_ended_in_the_window(world: World) -> None:
    end = NOW - DAY + 60 * SECOND
    await world.lifecycle.record(
        [
            request("i1", world.a, 60),
            request("i2", world.a, 60),
            request("i3", world.a, 60, client=None),
            request("i4", world.a, 60, client="Unknown"),
            request("too early", world.a, 59.999, model="early"),
            request("too late", world.a, 120, model="late"),
            request("in flight", world.a, None, model="open"),
        ]
    )
    keys = await world.db.reports.list_telemetry_keys(world.a, since=end, until=end + 60 * SECOND)
    assert keys == [
        TelemetryKey(provider="anthropic", model="m", client="Cursor"),
        TelemetryKey(provider="anthropic", model="m", client="Unknown"),
    ]
    assert (await world.db.reports.telemetry(world.a, client="Unknown")).runs_count == 2


async def test_C32_sessions_older_than_the_retention_are_deleted_whole(world: World) -> None:
    for number, days in enumerate((31, 31, 15, 29)):
        run = Run(run_id=f"i{number}", user_id=world.a, started_at=NOW - days * DAY, ended_at=NOW - days * DAY)
        await world.lifecycle.record([run])
    at = NOW - 31 * DAY
    await world.lifecycle.record(
        [
            UsageEvent(session_id="i1", user_id=world.a, model="m", tokens_in=1, run_id="i1", at=at),
            Step(step_id="1", run_id="i1", user_id=world.a, kind="tool", started_at=at),
            Step(step_id="2", run_id="i1", user_id=world.a, kind="tool", started_at=at),
            Message(
                message_id="1", user_id=world.a, session_id="i1", run_id="i1", role="user", content="", created_at=at
            ),
        ]
    )
    report = await world.db.maintenance.prune_sessions(30 * DAY)
    deleted = (report.sessions, report.runs, report.steps, report.messages, report.events, report.model_rows)
    assert deleted == (2, 2, 2, 1, 1, 1)
    assert await ask(world.db, "SELECT run_id FROM session_runs ORDER BY 1") == [("i2",), ("i3",)]
    assert list((await counts(world.db)).values()) == [2, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("call", ["prune_sessions", "prune_payloads"])
async def test_C33_pruning_all_or_the_future_is_refused(world: World, refuses: Callable[..., Any], call: str) -> None:
    await world.lifecycle.record(conversation("old", world.a, NOW - 1000 * DAY))
    for older_than in (timedelta(0), -DAY):
        with refuses("older_than"):
            await getattr(world.db.maintenance, call)(older_than)
    assert await counts(world.db) == ONE


@pytest.mark.parametrize("call", ["prune_sessions", "prune_payloads"])
async def test_C34_a_session_exactly_at_the_cut_stays(world: World, session_clock: SessionClock, call: str) -> None:
    now = await session_clock.freeze(NOW)
    await world.lifecycle.record(conversation("at the cut", world.a, now - 30 * DAY))
    assert (await getattr(world.db.maintenance, call)(30 * DAY)).sessions == 0
    assert await counts(world.db) == ONE
    await session_clock.advance(timedelta(microseconds=1))
    assert (await getattr(world.db.maintenance, call)(30 * DAY)).sessions == 1


async def test_T24_a_session_is_kept_or_deleted_as_a_whole(world: World) -> None:
    await world.use(cost_usd=1, at=NOW - 100 * DAY)
    await world.use(cost_usd=2)
    await world.use(cost_usd=1, session_id="idle", at=NOW - 100 * DAY)
    await world.use(cost_usd=2, session_id="idle", at=NOW - 95 * DAY)
    report = await world.db.maintenance.prune_sessions(90 * DAY)
    assert (report.sessions, report.events) == (1, 2)
    assert (await world.row()).cost_usd == 3
    assert await world.listed() == ["s"]


BACKLOG = """
    INSERT INTO session_records (user_id, session_id, started_at, last_activity_at, tokens_in, cost_usd)
    SELECT uuid '{user}', 'old ' || n, '{at}', timestamptz '{at}' + n * interval '1 millisecond', 2, 2
    FROM generate_series(1, {sessions}) n;
    INSERT INTO session_model_usage (user_id, session_id, model, tokens_in, cost_usd, events)
    SELECT uuid '{user}', 'old ' || n, 'm', 2, 2, 2 FROM generate_series(1, {sessions}) n;
    INSERT INTO session_usage_events (user_id, session_id, event_id, at, model, tokens_in, cost_usd, run_id)
    SELECT uuid '{user}', 'old ' || n, gen_random_uuid(), '{at}', 'm', 1, 1, 'run ' || n
    FROM generate_series(1, {sessions}) n, generate_series(1, 2);
    INSERT INTO session_runs (user_id, run_id, session_id, root_run_id, started_at, first_seen, last_seen, input,
                              events_cost_usd, events_tokens_in)
    SELECT uuid '{user}', 'run ' || n, 'old ' || n, 'run ' || n, timestamptz '{at}', '{at}', '{at}', '"in"', 2, 2
    FROM generate_series(1, {sessions}) n;
    INSERT INTO session_steps (user_id, run_id, step_id, kind, started_at)
    SELECT uuid '{user}', 'run ' || n, 'step ' || k, 'tool', '{at}'
    FROM generate_series(1, {sessions}) n, generate_series(1, 3) k;
    INSERT INTO session_messages (user_id, session_id, message_id, role, content, content_folded, created_at)
    SELECT uuid '{user}', 'old ' || n, '1', 'user', 'hi', 'hi', '{at}' FROM generate_series(1, {sessions}) n
"""


class InterruptedHalfwayError(Exception):
    """Stops a pruning between two batches."""


async def prune_under_writers(db: SessionDatabase, user: UUID, sessions: int) -> dict[str, float]:
    """Prunes while writers come back to old sessions and begin new ones; interrupts it once. Returns figures."""
    for statement in BACKLOG.format(user=user, at=NOW - 40 * DAY, sessions=sessions).split(";"):
        await ask(db, statement)
    await ask(db, "ANALYZE")
    done = asyncio.Event()
    waits: list[float] = []

    async def write(chance: random.Random) -> None:
        while not done.is_set():
            old = f"old {chance.randrange(1, sessions + 1)}"
            name = chance.choice([old, f"new {chance.randrange(100)}"])
            used = UsageEvent(
                session_id=name, user_id=user, model="m", tokens_in=1, cost_usd=1, run_id=f"run of {name}"
            )
            choices: list[Item] = [Touch(session_id=name, user_id=user), used]
            item = chance.choice(choices)
            began = monotonic()
            await db.lifecycle.record([item])
            waits.append(monotonic() - began)
            await asyncio.sleep(chance.random() / 50)

    progress: list[PruneReport] = []

    def interrupt(report: PruneReport) -> None:
        progress.append(report)
        if report.sessions > sessions / 2:
            raise InterruptedHalfwayError

    writers = [asyncio.create_task(write(random.Random(number))) for number in range(8)]
    began = monotonic()
    with pytest.raises(InterruptedHalfwayError):
        await db.maintenance.prune_sessions(30 * DAY, on_progress=interrupt)
    report = await db.maintenance.prune_sessions(30 * DAY, on_progress=progress.append)
    seconds = monotonic() - began
    done.set()
    await asyncio.gather(*writers)

    # The call leaves sessions that a writer had locked to the next call; now no writer is left.
    last = await db.maintenance.prune_sessions(30 * DAY)
    assert last.sessions <= len(writers)
    reports = [next(one for one in progress if one.sessions > sessions / 2), report, last]
    pruned = sum(one.sessions for one in reports)
    # Each pruned session was deleted once with all its rows; the old ones left were written to before their turn.
    [(revived,)] = await ask(db, "SELECT count(*) FROM session_records WHERE started_at < :at", at=NOW - 30 * DAY)
    assert pruned + revived == sessions
    assert sum(one.messages for one in reports) == pruned
    assert sum(one.steps for one in reports) == 3 * pruned
    assert sum(one.events for one in reports) == 2 * pruned
    assert (await counts(db))["messages"] == revived
    assert len(progress) > 2
    reconciled = await db.maintenance.reconcile()
    assert reconciled.mismatches == []
    assert max(waits) < 1
    return {
        "pruned": pruned,
        "seconds": seconds,
        "writes": len(waits),
        "longest_wait": max(waits),
        "batches": len(progress),
    }


async def test_C35_pruning_beside_writers_deletes_each_old_session_once(world: World) -> None:
    await prune_under_writers(world.db, world.a, 3_000)


@pytest.mark.soak
async def test_C35_pruning_100_000_beside_writers_deletes_each_old_session_once(world: World) -> None:
    LOG.info("%s", await prune_under_writers(world.db, world.a, 100_000))
