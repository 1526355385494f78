"""Pruning: old sessions are deleted whole, in batches that no writer waits for, and nothing else is deleted."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import (
    ConfigurationError,
    InvalidValueError,
    Message,
    Run,
    SessionDatabase,
    SessionStatus,
    Step,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models import PruneReport
from session_lifecycle.testing import SessionClock
from support.stored_rows import ask, counts, store_message, store_run, store_step

A, B = UUID(int=1), UUID(int=2)
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
NOTHING = dict.fromkeys(("sessions", "runs", "steps", "messages", "events", "model_rows"), 0)


def rows_of(report: PruneReport) -> dict[str, int]:
    return {name: getattr(report, name) for name in NOTHING}


async def live(db: SessionDatabase, session_id: str, days_ago: float, user: UUID = A) -> None:
    """A session with two events, a run with a step, and a message."""
    at = NOW - days_ago * DAY
    await db.lifecycle.record(
        [
            UsageEvent(
                session_id=session_id,
                user_id=user,
                model="gpt-4o",
                tokens_in=10,
                at=at,
                idempotency_key="k",
                run_id=None,
            ),
            UsageEvent(session_id=session_id, user_id=user, model=None, tokens_in=5, cost_usd=1, at=at),
        ]
    )
    run_id = f"run of {session_id}"
    await store_run(db, user, run_id, at, session_id=session_id, status="failed", error="no", input={"a": 1})
    await store_step(db, user, run_id, "step", at, errors=["boom"], inputs=[1], output="o", prompt="p")
    await store_step(db, user, run_id, "quiet", at, errors=[])
    await store_message(db, user, session_id, f"said in {session_id}", run_id=run_id, created_at=at)


async def test_idle_sessions_are_deleted_with_all_their_rows(session_database: SessionDatabase) -> None:
    for session_id, user, days_ago in (("old", A, 31), ("old", B, 40), ("young", A, 29)):
        await live(session_database, session_id, days_ago, user)
    would_be = await session_database.maintenance.prune_sessions(30 * DAY, dry_run=True)
    before = await counts(session_database)
    progress: list[PruneReport] = []
    report = await session_database.maintenance.prune_sessions(30 * DAY, on_progress=progress.append)
    assert rows_of(report) == {"sessions": 2, "runs": 2, "steps": 4, "messages": 2, "events": 4, "model_rows": 4}
    assert rows_of(would_be) == rows_of(report)
    assert would_be.dry_run
    assert not report.dry_run
    assert progress == [report]
    left = await counts(session_database)
    assert left == {name: count - rows_of(report)[name] for name, count in before.items()}
    assert await counts(session_database, user_id=A) == left
    stats = await session_database.lifecycle.aggregate_stats(Viewer.auditor())
    assert (stats.sessions, stats.tokens_in) == (1, 15)
    assert rows_of(await session_database.maintenance.prune_sessions(30 * DAY)) == NOTHING


async def test_the_cut_is_by_the_databases_clock(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    now = await session_clock.freeze()
    microsecond = timedelta(microseconds=1)
    await session_database.lifecycle.record(
        [
            Touch(session_id="at", user_id=A, at=now - DAY),
            Touch(session_id="before", user_id=A, at=now - DAY - microsecond),
        ]
    )
    report = await session_database.maintenance.prune_sessions(DAY)
    assert (report.sessions, report.cut_at) == (1, now - DAY)
    assert await session_database.lifecycle.get_session_row("at", A) is not None


async def test_progress_is_reported_after_each_batch_of_the_given_size(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [Touch(session_id=f"s{n}", user_id=A, at=NOW - (10 + n) * DAY) for n in range(5)]
    )
    progress: list[int] = []
    await session_database.maintenance.prune_sessions(
        DAY, batch=2, on_progress=lambda report: progress.append(report.sessions)
    )
    assert progress == [2, 4, 5]


async def test_an_interrupted_pruning_is_finished_by_the_next(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [Touch(session_id=f"s{n}", user_id=A, at=NOW - (10 + n) * DAY) for n in range(5)]
    )

    def interrupt(report: PruneReport) -> None:
        raise KeyError(report.sessions)

    with pytest.raises(KeyError):
        await session_database.maintenance.prune_sessions(DAY, batch=2, on_progress=interrupt)
    # The oldest sessions are deleted first.
    assert await ask(session_database, "SELECT session_id FROM session_records ORDER BY 1") == [
        ("s0",),
        ("s1",),
        ("s2",),
    ]
    assert (await session_database.maintenance.prune_sessions(DAY, batch=2)).sessions == 3


async def test_a_session_locked_by_a_writer_is_left_for_the_next_call(session_database: SessionDatabase) -> None:
    await live(session_database, "held", 40)
    await live(session_database, "free", 40)
    async with session_database.engine.begin() as host:
        await session_database.bind(host).lifecycle.ensure_and_touch_session("held", A, at=NOW - 39 * DAY)
        report = await session_database.maintenance.prune_sessions(30 * DAY)
        assert (report.sessions, report.runs) == (1, 1)
    assert (await session_database.maintenance.prune_sessions(30 * DAY)).sessions == 1


async def test_a_session_active_since_it_was_found_stays(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    await session_database.lifecycle.record(
        [Touch(session_id=name, user_id=A, at=NOW - 40 * DAY) for name in ("one", "two", "three")]
    )

    async def touch() -> None:
        async with SessionDatabase.connect(session_database_url) as other:
            await other.lifecycle.ensure_and_touch_session("two", A)

    def meanwhile(report: PruneReport) -> None:
        """After the first batch, when all keys are found; on another event loop, since this one runs the callback."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, touch()).result()

    report = await session_database.maintenance.prune_sessions(30 * DAY, batch=1, on_progress=meanwhile)
    assert report.sessions == 2
    assert await session_database.lifecycle.get_session_row("two", A) is not None


async def test_late_usage_that_arrives_meanwhile_leaves_no_orphan(session_database: SessionDatabase) -> None:
    sessions = [f"s{n}" for n in range(40)]
    for session_id in sessions:
        await live(session_database, session_id, 40)
        await session_database.lifecycle.end_session(session_id, A, SessionStatus.COMPLETED, at=NOW - 39 * DAY)

    async def write() -> None:
        for session_id in sessions * 3:
            # Frozen while the session exists, so it is no activity; afterwards it creates the session anew.
            await session_database.lifecycle.record(
                [UsageEvent(session_id=session_id, user_id=A, model="m", tokens_in=1, touch=False)]
            )

    await asyncio.gather(write(), write(), session_database.maintenance.prune_sessions(30 * DAY, batch=3))
    orphans = """
        SELECT count(*) FROM session_usage_events e
        LEFT JOIN session_records s USING (user_id, session_id) WHERE s.user_id IS NULL
    """
    assert await ask(session_database, orphans) == [(0,)]
    assert (await session_database.maintenance.reconcile()).mismatch_count == 0


async def test_old_runs_outside_a_session_are_deleted(session_database: SessionDatabase) -> None:
    db = session_database
    await store_run(db, A, "waiting", NOW - 40 * DAY, parent_run_id="never recorded", root_run_id=None)
    await store_run(db, A, "never recorded", None)
    await store_step(db, A, "waiting", "1", NOW - 40 * DAY)
    await store_run(db, A, "with a young step", NOW - 40 * DAY, last_seen=NOW, parent_run_id="still named")
    await store_run(db, A, "still named", None, last_seen=NOW - 40 * DAY)
    await store_run(db, A, "only steps", None, last_seen=NOW - 40 * DAY)
    await store_step(db, A, "only steps", "1", NOW - 40 * DAY)
    would_be = await db.maintenance.prune_sessions(30 * DAY, dry_run=True)
    report = await db.maintenance.prune_sessions(30 * DAY)
    assert rows_of(report) == {**NOTHING, "runs": 1, "steps": 2} == rows_of(would_be)
    left = await ask(db, "SELECT run_id FROM session_runs ORDER BY 1")
    assert left == [("still named",), ("with a young step",)]
    assert (await counts(db))["steps"] == 0


async def test_a_run_of_another_session_loses_its_usage_in_the_pruned_one(session_database: SessionDatabase) -> None:
    db = session_database
    await db.lifecycle.record(
        [
            UsageEvent(
                session_id="old",
                user_id=A,
                model="m",
                tokens_in=7,
                tokens_out=3,
                cost_usd=1,
                run_id="r",
                at=NOW - 40 * DAY,
            )
        ]
    )
    await db.lifecycle.record(
        [UsageEvent(session_id="young", user_id=A, model="m", tokens_in=2, tokens_out=1, cost_usd=2, run_id="r")]
    )
    await ask(db, "DELETE FROM session_runs")
    sums = {"events_cost_usd": 3, "events_tokens_in": 9, "events_tokens_out": 4}
    await store_run(db, A, "r", NOW, session_id="young", **sums)
    await db.maintenance.prune_sessions(30 * DAY)
    sql = "SELECT events_cost_usd, events_tokens_in, events_tokens_out FROM session_runs"
    assert await ask(db, sql) == [(2, 2, 1)]
    assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_a_run_never_recorded_is_deleted_with_the_last_session_that_named_it(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    await db.lifecycle.record(
        [
            UsageEvent(
                session_id="old",
                user_id=A,
                model="m",
                tokens_in=7,
                tokens_out=3,
                cost_usd=1,
                run_id="r",
                at=NOW - 40 * DAY,
            )
        ]
    )
    await ask(db, "DELETE FROM session_runs")
    await store_run(db, A, "r", None, root_run_id=None, events_cost_usd=1, events_tokens_in=7, events_tokens_out=3)
    report = await db.maintenance.prune_sessions(30 * DAY)
    assert rows_of(report) == {**NOTHING, "sessions": 1, "events": 1, "model_rows": 1}
    assert await counts(db) == NOTHING


async def test_payloads_are_deleted_and_figures_stay(session_database: SessionDatabase) -> None:
    db = session_database
    await live(db, "old", 40)
    await live(db, "young", 10)
    before = (await db.lifecycle.aggregate_stats(A)).model_dump()
    would_be = await db.maintenance.prune_payloads(30 * DAY, dry_run=True)
    report = await db.maintenance.prune_payloads(30 * DAY)
    assert rows_of(report) == {**NOTHING, "sessions": 1, "runs": 1, "steps": 2, "messages": 1} == rows_of(would_be)
    assert (await db.lifecycle.aggregate_stats(A)).model_dump() == before
    assert await ask(db, "SELECT input, output, error, status FROM session_runs WHERE session_id = 'old'") == [
        (None, None, None, "failed")
    ]
    steps = "SELECT step_id, inputs, output, prompt, errors, is_error FROM session_steps WHERE run_id = :run ORDER BY 1"
    assert await ask(db, steps, run="run of old") == [
        ("quiet", None, None, None, None, False),
        ("step", None, None, None, "pruned", True),
    ]
    assert (await ask(db, steps, run="run of young"))[1] == ("step", [1], "o", "p", ["boom"], True)
    assert await ask(db, "SELECT session_id FROM session_messages") == [("young",)]
    assert rows_of(await db.maintenance.prune_payloads(30 * DAY)) == NOTHING
    assert rows_of(await db.maintenance.prune_payloads(30 * DAY, dry_run=True)) == NOTHING


@pytest.mark.parametrize("call", ["prune_sessions", "prune_payloads"])
async def test_wrong_arguments_are_refused_by_name(session_database: SessionDatabase, call: str) -> None:
    await live(session_database, "old", 1000)
    before = await counts(session_database)
    prune: Callable[..., Any] = getattr(session_database.maintenance, call)
    for field, arguments in (
        ("older_than", {"older_than": timedelta(0)}),
        ("older_than", {"older_than": -DAY}),
        ("older_than", {"older_than": 30}),
        ("older_than", {"older_than": timedelta.max}),
        ("batch", {"older_than": DAY, "batch": 0}),
        ("batch", {"older_than": DAY, "batch": 10_001}),
        ("dry_run", {"older_than": DAY, "dry_run": "yes"}),
    ):
        with pytest.raises(InvalidValueError, match=field):
            await prune(**arguments)
    with pytest.raises(ConfigurationError, match="on_progress"):
        await prune(DAY, on_progress="loudly")
    assert await counts(session_database) == before


async def test_a_rolled_back_host_transaction_undoes_the_pruning(session_database: SessionDatabase) -> None:
    await live(session_database, "old", 40)
    async with session_database.engine.connect() as host:
        report = await session_database.bind(host).maintenance.prune_sessions(30 * DAY)
        assert report.sessions == 1
        await host.rollback()
    assert (await counts(session_database))["sessions"] == 1


async def speak(db: SessionDatabase, session_id: str, days: list[float], user: UUID = A, **more: Any) -> None:
    """A session whose run of each of these days ago has payloads, a step with payloads and a message."""
    for ago in days:
        at = NOW - ago * DAY
        run_id = f"{session_id} {ago}"
        named: dict[str, Any] = {"user_id": user, "run_id": run_id}
        await db.lifecycle.record(
            [
                Run(**named, session_id=session_id, started_at=at, ended_at=at, input="i", output="o", **more),
                Step(**named, step_id="x", kind="tool", started_at=at, inputs=[1], prompt="p", errors=["boom"]),
                Message(**named, session_id=session_id, message_id=run_id, role="user", content="c", created_at=at),
            ]
        )


async def test_X17_payloads_go_by_their_own_age_in_sessions_that_live(session_database: SessionDatabase) -> None:
    db = session_database
    await speak(db, "s", [40, 31, 29, 0])
    await speak(db, "t", [10, 0])
    # An open run is as old as its start; a step that began before the cut and ended after it stays.
    long_ago = {"user_id": A, "run_id": "open", "started_at": NOW - 50 * DAY}
    ended = {**long_ago, "kind": "task", "inputs": [1], "ended_at": NOW - DAY}
    await db.lifecycle.record([Run(**long_ago, session_id="s", input="i"), Step(**ended, step_id="long")])
    would_be = await db.maintenance.prune_payloads(30 * DAY, dry_run=True)
    report = await db.maintenance.prune_payloads(30 * DAY)
    assert rows_of(report) == {**NOTHING, "sessions": 1, "runs": 3, "steps": 2, "messages": 2} == rows_of(would_be)
    assert [(one.user_id, one.session_id) for one in report.session_keys] == [(A, "s")]
    detail = await db.activity.get_session_detail("s", A)
    assert detail is not None
    kept = {one.run_id: (one.input, [step.inputs for step in one.steps]) for one in detail.runs}
    assert kept == {"s 40": (None, [None]), "s 31": (None, [None]), "s 29": ("i", [[1]]), "s 0": ("i", [[1]])} | {
        "open": (None, [[1]])
    }
    assert [one.message_id for one in detail.messages] == ["s 29", "s 0"]
    assert detail.summary.errors_count == 4
    assert rows_of(await db.maintenance.prune_payloads(30 * DAY)) == NOTHING


async def test_X17_late_parts_of_an_ended_session_go_as_well(session_database: SessionDatabase) -> None:
    db = session_database
    await db.lifecycle.ensure_and_touch_session("s", A)
    await db.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    await speak(db, "s", [40])
    report = await db.maintenance.prune_payloads(30 * DAY)
    assert rows_of(report) == {**NOTHING, "sessions": 1, "runs": 1, "steps": 1, "messages": 1}


NARROW: list[tuple[dict[str, Any], set[str]]] = [
    ({"user_ids": [A]}, {"a", "b"}),
    ({"user_ids": [str(B)]}, {"c"}),
    ({"agent_names": {"coder"}}, {"a", "c"}),
    ({"dataset_ids": [UUID(int=8)]}, {"b", "c"}),
    ({"user_ids": [A, B], "agent_names": ["coder"], "dataset_ids": [UUID(int=8)]}, {"c"}),
    ({"user_ids": []}, set()),
    ({"user_ids": [UUID(int=n) for n in range(40_000)], "agent_names": ["nobody"]}, set()),
]


@pytest.mark.parametrize("job", ["prune_sessions", "prune_payloads"])
@pytest.mark.parametrize(("narrow", "expected"), NARROW)
async def test_X17_pruning_can_be_narrowed_and_tells_which_sessions_went(
    session_database: SessionDatabase, job: str, narrow: dict[str, Any], expected: set[str]
) -> None:
    db = session_database
    for session_id, user, agent, dataset in (
        ("a", A, "coder", 7),
        ("b", A, "writer", 8),
        ("c", B, "coder", 8),
    ):
        await speak(db, session_id, [40], user, agent_name=agent, dataset_id=UUID(int=dataset))
        await db.lifecycle.record(
            [
                Run(
                    run_id=f"waits {session_id}",
                    user_id=user,
                    parent_run_id="nobody",
                    started_at=NOW - 40 * DAY,
                    agent_name=agent,
                    dataset_id=UUID(int=dataset),
                )
            ]
        )
    prune: Callable[..., Any] = getattr(db.maintenance, job)
    would_be = await prune(30 * DAY, dry_run=True, **narrow)
    went: list[str] = []
    report = await prune(
        30 * DAY,
        batch=1,
        on_progress=lambda progress: went.extend(one.session_id for one in progress.session_keys),
        **narrow,
    )
    assert sorted(went) == sorted(expected)
    assert rows_of(report) == rows_of(would_be)
    of_runs = 2 if job == "prune_sessions" else 1
    assert (report.sessions, report.runs) == (len(expected), of_runs * len(expected))


@pytest.mark.parametrize(
    "narrow", [{"user_ids": ["x"]}, {"user_ids": A}, {"agent_names": "coder"}, {"dataset_ids": [1]}]
)
async def test_X17_a_narrowing_that_makes_no_sense_is_refused(
    session_database: SessionDatabase, narrow: dict[str, Any]
) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(narrow))):
        await session_database.maintenance.prune_sessions(DAY, **narrow)
