"""A run's steps come in pages, and the run counts all of them."""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, Message, Run, RunFilters, SessionDatabase, Step, Viewer
from session_lifecycle.models import Item, RunDetail

A = UUID(int=1)
VIEWER = Viewer(A)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STEPS = {"many": 40, "few": 3, "none": 0}


async def record(db: SessionDatabase) -> None:
    """Three runs of one session. Many steps begin in the same moment, some of them without a `seq`."""
    items: list[Item] = []
    for number, (run_id, count) in enumerate(STEPS.items()):
        at = NOON + timedelta(minutes=number)
        items.append(Run(run_id=run_id, user_id=A, session_id="s", started_at=at, ended_at=at))
        steps = [
            Step(
                step_id=f"step {place}",
                run_id=run_id,
                user_id=A,
                kind="tool",
                seq=None if place % 5 == 0 else place,
                started_at=at + timedelta(seconds=place // 10),
                output="x" * 100,
                errors=["failed"] if place % 4 == 0 else None,
            )
            for place in range(count)
        ]
        items += Random(number).sample(steps, count)
    items.append(Message(message_id="m", user_id=A, session_id="s", role="user", content="hello", created_at=NOON))
    await db.lifecycle.record(items)


async def runs_of(db: SessionDatabase, **more: Any) -> dict[str, RunDetail]:
    filters = RunFilters(viewer=VIEWER, session_id="s", **more)
    return {run.run_id: run for run in (await db.activity.list_runs(filters)).runs}


async def detail_of(db: SessionDatabase, steps_limit: int | None) -> list[RunDetail]:
    detail = await db.activity.get_session_detail("s", A, steps_limit=steps_limit)
    assert detail is not None
    assert detail.summary.steps_count == sum(STEPS.values())
    assert [message.message_id for message in detail.messages] == ["m"]
    return detail.runs


async def test_the_pages_of_steps_are_parts_of_all_steps(session_database: SessionDatabase) -> None:
    await record(session_database)
    whole = await runs_of(session_database)
    assert {run_id: len(run.steps) for run_id, run in whole.items()} == STEPS
    for run in whole.values():
        key = [(step.started_at, step.seq is None, step.seq or 0) for step in run.steps]
        assert key == sorted(key)
    for limit in (1, 2, 7, 40, 50_000, None):
        for offset in (0, 1, 3, 39, 40, 41, 2**62):
            expected = {
                run_id: run.model_copy(update={"steps": run.steps[offset:][:limit]}) for run_id, run in whole.items()
            }
            assert await runs_of(session_database, steps_limit=limit, steps_offset=offset) == expected


async def test_a_run_counts_all_of_its_steps_and_errors_on_every_page(session_database: SessionDatabase) -> None:
    await record(session_database)
    for more in ({}, {"steps_limit": 1}, {"steps_limit": 1, "steps_offset": 39}, {"steps_offset": 100}):
        found = await runs_of(session_database, **more)
        assert {run_id: run.steps_count for run_id, run in found.items()} == STEPS
        assert {run_id: run.errors_count for run_id, run in found.items()} == {"many": 10, "few": 1, "none": 0}


async def test_the_runs_of_a_detail_have_their_first_steps(session_database: SessionDatabase) -> None:
    await record(session_database)
    whole = await detail_of(session_database, None)
    assert [run.steps_count for run in whole] == list(STEPS.values())
    for limit in (1, 3, 39, 40, 50_000):
        expected = [run.model_copy(update={"steps": run.steps[:limit]}) for run in whole]
        assert await detail_of(session_database, limit) == expected


async def test_a_page_of_steps_has_no_payloads_where_it_is_asked_for_none(session_database: SessionDatabase) -> None:
    await record(session_database)
    detail = await session_database.activity.get_session_detail("s", A, steps_limit=2, payloads=False)
    assert detail is not None
    assert not detail.has_payloads
    assert [[(step.output, step.errors) for step in run.steps] for run in detail.runs] == [
        [(None, None)] * min(count, 2) for count in STEPS.values()
    ]


async def test_R25_an_answer_is_measured_by_the_steps_that_it_has(
    session_database: SessionDatabase, set_bound: Any
) -> None:
    db = session_database
    await record(db)
    set_bound("session_lifecycle.models.pages.MOST_PARTS", 7)
    for ask in (runs_of(db), runs_of(db, steps_limit=5), detail_of(db, None), detail_of(db, 5)):
        with pytest.raises(InvalidValueError, match="a lower limit or steps_limit: at most") as refused:
            await ask
        assert refused.value.field == "limit"
    # Two runs have steps: three of each, and four and three.
    assert sum(len(run.steps) for run in (await runs_of(db, steps_limit=3)).values()) == 6
    assert sum(len(run.steps) for run in await detail_of(db, 4)) == 7
    assert sum(len(run.steps) for run in (await runs_of(db, steps_offset=33)).values()) == 7


async def test_R25_payloads_are_measured_by_the_steps_that_an_answer_has(
    session_database: SessionDatabase, set_bound: Any
) -> None:
    db = session_database
    await record(db)
    set_bound("session_lifecycle.models.pages.MOST_STORED_BYTES", 1_000)
    page = await db.activity.list_runs(RunFilters(viewer=VIEWER))
    assert not page.has_payloads
    assert {step.output for run in page.runs for step in run.steps} == {None}
    page = await db.activity.list_runs(RunFilters(viewer=VIEWER, steps_limit=2, steps_offset=1))
    assert page.has_payloads
    assert {step.output for run in page.runs for step in run.steps} == {"x" * 100}
    whole = await db.activity.get_session_detail("s", A)
    part = await db.activity.get_session_detail("s", A, steps_limit=2)
    assert whole is not None
    assert part is not None
    assert (whole.has_payloads, part.has_payloads) == (False, True)


async def test_a_walk_over_runs_may_change_the_page_of_steps(session_database: SessionDatabase) -> None:
    await record(session_database)
    found: list[tuple[str, int]] = []
    cursor = None
    for steps_limit in (2, 1, None):
        filters = RunFilters(viewer=VIEWER, descending=False, limit=1, cursor=cursor, steps_limit=steps_limit)
        page = await session_database.activity.list_runs(filters)
        found += [(run.run_id, len(run.steps)) for run in page.runs]
        cursor = page.next_cursor
    assert (found, cursor) == ([("many", 2), ("few", 1), ("none", 0)], None)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps_limit", 0, "a whole number from 1 to 50,000"),
        ("steps_limit", 50_001, "a whole number from 1 to 50,000"),
        ("steps_limit", True, "a whole number from 1 to 50,000"),
        ("steps_offset", -1, "a whole number from 0 to 4,611,686,018,427,387,904"),
        ("steps_offset", None, "a whole number from 0 to 4,611,686,018,427,387,904"),
    ],
)
async def test_R25_a_page_of_steps_that_makes_no_sense_is_refused(field: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        RunFilters.of_call(viewer=VIEWER, **{field: value})
    error = refused.value
    assert (error.field, error.value, error.expected) == (field, value, expected)
