"""Every answer about a session has a bound, and says what it left out."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import InvalidValueError, Message, Run, SessionDatabase, Step, UsageEvent
from session_lifecycle.models import Item

A = UUID(int=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def life(count: int, **more: Any) -> list[Item]:
    items: list[Item] = []
    for number in range(count):
        at = NOON + timedelta(seconds=number)
        named: dict[str, Any] = {"user_id": A, "session_id": "s"}
        items.append(Run(run_id=f"{number:04}", **named, started_at=at, ended_at=at, input="in", output="out", **more))
        items.append(Message(message_id=f"{number:04}", **named, role="user", content="c", created_at=at))
    return items


async def test_X15_a_detail_is_paged_and_says_what_it_left_out(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(life(1003))
    detail = session_database.activity.get_session_detail
    first = await detail("s", A)
    assert first is not None
    assert (len(first.runs), len(first.messages)) == (1000, 1000)
    assert (first.has_more_runs, first.has_more_messages) == (True, True)
    assert (first.summary.runs_count, first.summary.messages_count) == (1003, 1003)
    last = await detail("s", A, offset=1000)
    assert last is not None
    assert [run.run_id for run in last.runs] == [message.message_id for message in last.messages]
    assert [run.run_id for run in last.runs] == ["1000", "1001", "1002"]
    assert (last.has_more_runs, last.has_more_messages) == (False, False)
    assert last.summary == first.summary
    walk: list[str] = []
    while (page := await detail("s", A, limit=400, offset=len(walk))) is not None and page.runs:
        walk += [run.run_id for run in page.runs]
    assert walk == [f"{number:04}" for number in range(1003)]


async def test_X15_a_page_beyond_the_runs_of_a_project_is_empty(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(life(3, project="p"))
    detail = session_database.activity.get_session_detail
    beyond = await detail("s", A, project="p", offset=3)
    assert beyond is not None
    assert (beyond.runs, beyond.messages, beyond.has_more_runs) == ([], [], False)
    assert await detail("s", A, project="q") is None


@pytest.mark.parametrize(
    "refused",
    [
        {"limit": 0},
        {"limit": 1001},
        {"offset": -1},
        {"limit": True},
        {"payloads": 1},
        {"steps_limit": 0},
        {"steps_limit": 50_001},
        {"steps_limit": True},
    ],
)
async def test_X15_a_bound_that_makes_no_sense_is_refused(
    session_database: SessionDatabase, refused: dict[str, Any]
) -> None:
    with pytest.raises(InvalidValueError, match=next(iter(refused))):
        await session_database.activity.get_session_detail("s", A, **refused)


async def test_X15_a_detail_can_leave_the_payloads_out(session_database: SessionDatabase) -> None:
    step = Step(
        step_id="x",
        run_id="0000",
        user_id=A,
        kind="tool",
        started_at=NOON,
        name="n",
        inputs=[1],
        output=1,
        prompt="p",
        errors=["boom"],
        metadata={"k": 1},
    )
    await session_database.lifecycle.record([*life(1), step])
    whole = await session_database.activity.get_session_detail("s", A)
    slim = await session_database.activity.get_session_detail("s", A, payloads=False)
    assert whole is not None
    assert slim is not None
    [run] = whole.runs
    none = dict.fromkeys(("inputs", "output", "prompt", "errors"))
    steps = [one.model_copy(update=none) for one in run.steps]
    assert slim.runs == [run.model_copy(update={"input": None, "output": None, "steps": steps})]
    assert slim.summary == whole.summary
    assert (whole.has_payloads, slim.has_payloads) == (True, False)


async def test_X15_payloads_of_more_than_a_gigabyte_are_left_out_and_can_be_had_in_parts(
    session_database: SessionDatabase,
) -> None:
    """280 steps of 4 MB are more than one value of Postgres can hold, and more than it can build within a timeout."""
    db = session_database
    await db.lifecycle.record([*life(2), Run(run_id="small", user_id=A, session_id="s", started_at=NOON)])
    insert = text(
        "INSERT INTO session_lifecycle.session_steps (user_id, run_id, step_id, kind, started_at, output) "
        "SELECT :user, :run, n::text, 'tool', :at, p.payload FROM generate_series(1, :count) n, "
        "(SELECT to_jsonb(repeat('x', 4000000)) AS payload OFFSET 0) p"
    )
    for run_id, count in (("0000", 279), ("0001", 1)):
        async with db.engine.begin() as connection:
            await connection.execute(insert, {"user": A, "run": run_id, "at": NOON, "count": count})
    detail = await db.activity.get_session_detail("s", A)
    page = await db.activity.list_threads("s", A)
    assert detail is not None
    assert page is not None
    assert (detail.has_payloads, page.has_payloads) == (False, False)
    assert sum(len(run.steps) for run in detail.runs) == 280
    assert {step.output for run in detail.runs for step in run.steps} == {None}
    assert {step.output for one in page.threads for action in one.actions for step in action.tools} == {None}

    last = await db.activity.get_session_detail("s", A, limit=1, offset=2)
    newest = await db.activity.list_threads("s", A, limit=1, after="small")
    assert last is not None
    assert newest is not None
    assert (last.has_payloads, newest.has_payloads) == (True, True)
    assert [len(str(step.output)) for step in last.runs[0].steps] == [4_000_000]
    assert [len(str(step.output)) for step in newest.threads[0].actions[0].tools] == [4_000_000]


async def test_X15_a_series_of_too_many_points_is_refused(session_database: SessionDatabase) -> None:
    db = session_database
    await db.lifecycle.record(
        [
            UsageEvent(session_id="s", user_id=A, model=f"m{number}", tokens_in=1, at=NOON, cost_usd=0)
            for number in range(6)
        ]
    )
    until = NOON + timedelta(hours=9999)
    with pytest.raises(InvalidValueError, match=r"at most 50,000 points"):
        await db.reports.usage_timeseries(A, since=NOON, until=until, bucket="hour", group_by="model")
    assert len(await db.reports.usage_timeseries(A, since=NOON, until=until, bucket="hour")) == 9999
