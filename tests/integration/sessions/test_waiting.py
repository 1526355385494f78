"""A session that waits for somebody: what ends it, what counts it, and that nothing pays for it (finding X26)."""

import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import (
    End,
    Message,
    Run,
    SessionDatabase,
    SessionListFilters,
    SummaryFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.models import EffectiveStatus
from session_lifecycle.models.session_filters import SESSION_ORDERS
from session_lifecycle.testing import SessionClock
from support.stored_rows import ask

A = UUID(int=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
MOMENT = timedelta(microseconds=1)


def touch(session_id: str = "s", **more: Any) -> Touch:
    return Touch(session_id=session_id, user_id=A, **more)


async def status(db: SessionDatabase, session_id: str = "s") -> str:
    found = await db.lifecycle.get_session_row(session_id, A)
    assert found is not None
    return found.effective_status.value


@pytest.fixture
async def db(session_database: SessionDatabase, session_clock: SessionClock) -> SessionDatabase:
    await session_clock.freeze(NOON)
    return session_database


@pytest.mark.parametrize("waited", [False, True])
async def test_X26_a_touch_that_does_not_wait_is_a_hot_update(db: SessionDatabase, waited: bool) -> None:
    """No index of the sessions that wait has an entry for it, also of a session that waited once."""
    await db.lifecycle.record([touch(waiting=waited, at=NOON)])
    async with db.engine.begin() as connection:
        bound = db.bind(connection)
        for number in range(1, 4):
            at = NOON + number * timedelta(seconds=1)
            await bound.lifecycle.ensure_and_touch_session("s", A, at=at)
            await bound.lifecycle.accumulate_usage("s", A, "m", 1, 1, 1, at=at)
            await bound.lifecycle.record([touch(at=at, metadata={str(number): 1})])
        counted = await connection.execute(
            text(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables "
                "WHERE relid = 'session_lifecycle.session_records'::regclass"
            )
        )
        assert tuple(counted.one()) == (9, 9)
    assert await status(db) == "running"


async def test_X26_a_session_that_waits_is_never_abandoned(db: SessionDatabase, session_clock: SessionClock) -> None:
    assert await db.lifecycle.record([touch(waiting=True)]) == ["created"]
    assert await status(db) == "waiting"
    await session_clock.freeze(NOON + 1000 * HOUR)
    assert await status(db) == "waiting"
    assert await db.lifecycle.record([touch(waiting=True)]) == ["touched"]
    await session_clock.freeze(NOON + 2000 * HOUR)
    assert await status(db) == "waiting"


async def _ended_and_reopened(db: SessionDatabase) -> None:
    await db.lifecycle.end_session("s", A, "failed")
    await db.lifecycle.reopen_session("s", A)


Act = Callable[[SessionDatabase], Awaitable[Any]]
AFTER = NOON + MOMENT
ACTS: dict[str, Act] = {
    "a touch": lambda db: db.lifecycle.ensure_and_touch_session("s", A),
    "usage": lambda db: db.lifecycle.accumulate_usage("s", A, "m", 1, 1, 1),
    "a use with a revision": lambda db: db.lifecycle.record(
        [UsageEvent(session_id="s", user_id=A, tokens_in=1, cost_usd=1, idempotency_key="k", revision=1)]
    ),
    "a batch": lambda db: db.lifecycle.record([touch(), touch("t")]),
    "a run": lambda db: db.lifecycle.record([Run(run_id="r", user_id=A, session_id="s", started_at=AFTER)]),
    "a message": lambda db: db.lifecycle.record(
        [Message(message_id="m", user_id=A, session_id="s", role="user", content="c", created_at=AFTER)]
    ),
    "metadata": lambda db: db.lifecycle.record([touch(metadata={"a": 1})]),
    "an end and a new begin": _ended_and_reopened,
}


@pytest.mark.parametrize("name", ACTS)
async def test_X26_any_activity_ends_it(db: SessionDatabase, session_clock: SessionClock, name: str) -> None:
    await db.lifecycle.record([touch(waiting=True)])
    await session_clock.freeze(AFTER)
    await ACTS[name](db)
    assert await status(db) == "running"
    await session_clock.freeze(NOON + HOUR)
    assert await status(db) == "abandoned"


async def test_X26_what_is_no_activity_does_not_end_it(db: SessionDatabase, session_clock: SessionClock) -> None:
    await db.lifecycle.record([touch(waiting=True)])
    await session_clock.freeze(NOON + HOUR)
    await db.lifecycle.record([UsageEvent(session_id="s", user_id=A, tokens_in=1, cost_usd=1, touch=False)])
    await db.lifecycle.record([touch(at=NOON - HOUR), touch(at=NOON)])
    await db.lifecycle.ensure_and_touch_session("s", A, at=NOON)
    await db.lifecycle.update_session("s", A, title="t")
    await db.lifecycle.annotate_session("s", A, "quality", score=1)
    assert await status(db) == "waiting"


async def test_X26_an_end_ends_it_for_good(db: SessionDatabase) -> None:
    await db.lifecycle.record([touch(waiting=True)])
    await db.lifecycle.end_session("s", A, "completed")
    assert await status(db) == "completed"
    assert await db.lifecycle.record([touch(waiting=True)]) == ["terminal"]
    assert await status(db) == "completed"
    await db.lifecycle.reopen_session("s", A, at=NOON)
    assert await status(db) == "running"


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("plain", [0, 1, 2])
@pytest.mark.parametrize("later", [{}, {"metadata": {"a": 1}}])
async def test_X26_within_one_call_the_later_item_decides(
    db: SessionDatabase, exists: bool, plain: int, later: dict[str, Any]
) -> None:
    if exists:
        await db.lifecycle.record([touch()])
    waits = touch(waiting=True)
    items = [touch(**later) for _ in range(plain)]
    await db.lifecycle.record([waits, *items, waits])
    assert await status(db) == "waiting"
    await db.lifecycle.record([waits, waits, touch(**later), UsageEvent(session_id="s", user_id=A, model="m")])
    assert await status(db) == "running"
    await db.lifecycle.record([waits, UsageEvent(session_id="s", user_id=A, tokens_in=1)])
    assert await status(db) == "running"


async def test_X26_given_times_decide_in_any_order(db: SessionDatabase) -> None:
    items = [
        touch(at=NOON - 2 * HOUR, waiting=True),
        touch(at=NOON - HOUR),
        touch(at=NOON - HOUR, waiting=True),
        touch(at=NOON - HOUR),
    ]
    for number, order in enumerate(itertools.permutations(items)):
        session_id = f"{number}"
        for item in order:
            await db.lifecycle.record([item.model_copy(update={"session_id": session_id})])
        assert await status(db, session_id) == "waiting", order
        await db.lifecycle.record([item.model_copy(update={"session_id": f"{number}b"}) for item in order])
        assert await status(db, f"{number}b") == "waiting", order
    await db.lifecycle.record([touch("late", at=NOON), touch("late", at=NOON - HOUR, waiting=True)])
    assert await status(db, "late") == "running"


async def every_kind(db: SessionDatabase) -> dict[str, list[str]]:
    """Sessions of each effective status at noon."""
    old = NOON - 2 * HOUR
    await db.lifecycle.record(
        [
            *(touch(f"running-{number}", at=NOON - timedelta(minutes=number)) for number in range(3)),
            *(touch(f"waiting-{number}", at=NOON - number * HOUR, waiting=True) for number in range(4)),
            touch("abandoned-0", at=old),
            touch("abandoned-1", at=old - HOUR, waiting=True),
            touch("abandoned-1", at=old),
            touch("completed-0", at=old, waiting=True),
            End(session_id="completed-0", user_id=A, status="completed", at=old),
            touch("failed-0", at=NOON),
            End(session_id="failed-0", user_id=A, status="failed", at=NOON),
        ]
    )
    names = [f"running-{number}" for number in range(3)] + [f"waiting-{number}" for number in range(4)]
    names += ["abandoned-0", "abandoned-1", "completed-0", "failed-0"]
    return {one: [name for name in names if name.startswith(one)] for one in EffectiveStatus}


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("rolled_up", [False, True])
async def test_X26_every_read_agrees_who_waits(db: SessionDatabase, rolled_up: bool) -> None:
    names = await every_kind(db)
    if rolled_up:
        await db.maintenance.roll_up()
    viewer = Viewer(A)
    for name in itertools.chain(*names.values()):
        assert await status(db, name) == name[:-2]
        assert (await db.activity.get_session_detail(name, A)).summary.effective_status == name[:-2]  # type: ignore[union-attr]
    for wanted, order_by in itertools.product(EffectiveStatus, [*SESSION_ORDERS, "error_count"]):
        of_order = {"viewer": viewer, "order_by": order_by, "status_filter": wanted}
        page = await db.lifecycle.list_session_rows(SessionListFilters(**of_order, limit=100))
        assert sorted(row.record.session_id for row in page.sessions) == names[wanted], (wanted, order_by)
        assert {row.effective_status for row in page.sessions} == {wanted}
        assert page.total == len(names[wanted])
        bounded = SessionListFilters(**of_order, total="bounded")
        assert (await db.lifecycle.list_session_rows(bounded)).total == len(names[wanted])
        summaries = await db.activity.list_session_summaries(SummaryFilters(**of_order))
        assert sorted(one.session_id for one in summaries.sessions) == names[wanted]
    for asker in (viewer, Viewer.auditor()):
        stats = await db.lifecycle.aggregate_stats(asker)
        counts = (stats.running, stats.waiting, stats.abandoned, stats.completed, stats.failed, stats.sessions)
        assert counts == (7, 4, 2, 1, 1, 11)
        assert stats.success_rate == 1 / 4
        windowed = await db.lifecycle.aggregate_stats(asker, since=NOON - 2 * HOUR, until=NOON)
        assert (windowed.running, windowed.waiting, windowed.abandoned) == (4, 2, 2)
    of_agent = SessionListFilters(viewer=viewer, agent_name="nobody", status_filter="waiting")
    assert (await db.lifecycle.list_session_rows(of_agent)).total == 0
    durations = await db.reports.session_durations(viewer)
    assert {one: durations.by_status[one].count for one in EffectiveStatus} == {
        one: len(found) for one, found in names.items()
    }


async def test_X26_a_session_that_waits_is_not_rolled_up_until_it_goes_on(
    db: SessionDatabase, session_clock: SessionClock
) -> None:
    await db.lifecycle.record([touch("waits", at=NOON - 5 * HOUR, waiting=True), touch("idle", at=NOON - 5 * HOUR)])
    assert (await db.maintenance.roll_up()).sessions == 1
    # A session that is rolled up and then waits leaves the roll-ups.
    await db.lifecycle.record([touch("idle", waiting=True)])
    await session_clock.freeze(NOON + 5 * HOUR)
    assert (await db.maintenance.roll_up()).sessions == 0
    stats = await db.lifecycle.aggregate_stats(A)
    assert (stats.running, stats.waiting, stats.abandoned) == (2, 2, 0)
    await db.lifecycle.ensure_and_touch_session("waits", A)
    await session_clock.freeze(NOON + 10 * HOUR)
    assert (await db.maintenance.roll_up()).sessions == 1
    stats = await db.lifecycle.aggregate_stats(A)
    assert (stats.running, stats.waiting, stats.abandoned) == (1, 1, 1)
    assert (await db.maintenance.reconcile()).mismatches == []


async def test_X26_plain_touches_and_uses_write_nothing_for_it(
    db: SessionDatabase, session_clock: SessionClock
) -> None:
    """The mark stays as it was stored; that it holds no longer is seen when it is read."""
    await db.lifecycle.record([touch(waiting=True)])
    await session_clock.freeze(AFTER)
    await db.lifecycle.ensure_and_touch_session("s", A)
    await db.lifecycle.accumulate_usage("s", A, "m", 1, 1, 1)
    assert await ask(db, "SELECT waiting_since FROM session_records") == [(NOON,)]
    assert await status(db) == "running"


async def test_X26_an_end_has_a_reason(db: SessionDatabase) -> None:
    ended = End(session_id="s", user_id=A, status="failed", reason="out of budget")
    assert await db.lifecycle.record([ended]) == ["unknown"]
    assert await db.lifecycle.record([touch(), ended]) == ["created", "ended"]
    assert await db.lifecycle.record([ended.model_copy(update={"reason": "another"})]) == ["already_ended"]
    found = await db.lifecycle.get_session_row("s", A)
    assert found is not None
    assert found.record.end_reason == found.to_dict()["end_reason"] == "out of budget"
    await db.lifecycle.reopen_session("s", A)
    found = await db.lifecycle.get_session_row("s", A)
    assert found is not None
    assert found.record.end_reason is None
    assert await db.lifecycle.end_session("s", A, "completed") == "ended"
    found = await db.lifecycle.get_session_row("s", A)
    assert found is not None
    assert found.record.end_reason is None


async def test_X26_a_redaction_sees_the_reason(session_database: SessionDatabase) -> None:
    def redact(item: Any) -> Any:
        return item.model_copy(update={"reason": None}) if isinstance(item, End) else item

    async with SessionDatabase.from_engine(session_database.engine, redact=redact) as db:
        await db.lifecycle.record([touch(), End(session_id="s", user_id=A, status="failed", reason="secret")])
        found = await db.lifecycle.get_session_row("s", A)
    assert found is not None
    assert found.record.end_reason is None
