"""Rows of the tables about recording runs: lineage, repetition, reported cost, token extras."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from session_lifecycle import Run, Step, UsageEvent
from session_lifecycle.entities import SessionRunEntity
from session_lifecycle.models import Item
from support.usage import outcomes, receipt_of
from support.world import World

A = UUID(int=1)
T = datetime(2026, 1, 10, 12, tzinfo=UTC)


def run(run_id: str, minutes: float = 0, **more: Any) -> Run:
    return Run(run_id=run_id, user_id=A, started_at=T + timedelta(minutes=minutes), **more)


def call(step_id: str, run_id: str, tool_call_id: str, minutes: float = 0) -> Step:
    at = T + timedelta(minutes=minutes)
    return Step(step_id=step_id, run_id=run_id, user_id=A, kind="tool", started_at=at, tool_call_id=tool_call_id)


async def lineage(world: World, run_id: str) -> tuple[str | None, str | None, str | None]:
    """The run's parent, root and session."""
    r = SessionRunEntity
    async with world.db.engine.connect() as connection:
        found = await connection.execute(
            select(r.parent_run_id, r.root_run_id, r.session_id).where(r.user_id == A, r.run_id == run_id)
        )
        parent, root, session = found.one()
    return parent, root, session


async def test_C24_a_run_that_starts_with_a_tool_result_has_its_caller_as_parent(world: World) -> None:
    await world.lifecycle.record([run("top", session_id="S"), run("first", 1, parent_run_id="top"), run("second", 2)])
    await world.lifecycle.record([call("a", "first", "c1", 1), call("b", "second", "c1", 3), call("c", "top", "c2", 1)])
    await world.lifecycle.record([run("x", 4, parent_tool_call_id="c1"), run("y", 4, parent_tool_call_id="c2")])
    assert await lineage(world, "x") == ("second", "second", "second")
    assert await lineage(world, "y") == ("top", "top", "S")
    # A later tool call of the same id began another run.
    await world.lifecycle.record([call("d", "first", "c1", 5)])
    assert await lineage(world, "x") == ("second", "second", "second")
    await world.lifecycle.record([call("e", "first", "c1", 3.5)])
    assert await lineage(world, "x") == ("first", "top", "S")


async def test_C25_an_unknown_call_has_no_parent_and_a_late_parent_is_found(world: World) -> None:
    await world.lifecycle.record([run("x", parent_tool_call_id="nobody's")])
    assert await lineage(world, "x") == (None, "x", "x")

    await world.lifecycle.record([run("child", 1, parent_run_id="parent"), run("grandchild", 2, parent_run_id="child")])
    assert await lineage(world, "child") == ("parent", None, None)
    assert await lineage(world, "grandchild") == ("child", None, None)
    assert await world.listed() == ["x"]
    await world.lifecycle.record([run("parent", parent_run_id="top")])
    assert await lineage(world, "grandchild") == ("child", None, None)
    await world.lifecycle.record([run("top", session_id="S")])
    assert await lineage(world, "parent") == ("top", "top", "S")
    assert await lineage(world, "child") == ("parent", "top", "S")
    assert await lineage(world, "grandchild") == ("child", "top", "S")
    assert await world.listed() == ["S", "x"]


@pytest.mark.parametrize("named", [None, "S"])
async def test_C25_parent_and_child_may_be_recorded_at_the_same_time(world: World, named: str | None) -> None:
    for number in range(25):
        top, middle, low = (f"{name}{number}" for name in ("top", "middle", "low"))
        await asyncio.gather(
            world.lifecycle.record([run(low, parent_run_id=middle)]),
            world.lifecycle.record([run(middle, parent_run_id=top)]),
            world.lifecycle.record([run(top, session_id=named)]),
            world.lifecycle.record(
                [UsageEvent(session_id="S", user_id=A, model="m", tokens_in=1, run_id=low, idempotency_key=low, at=T)]
            ),
            world.lifecycle.record([call("step", low, f"call{number}"), run(top, session_id=named)]),
            world.lifecycle.record([run(f"tool{number}", 1, parent_tool_call_id=f"call{number}")]),
        )
        for run_id, parent in ((low, middle), (middle, top), (f"tool{number}", low)):
            assert await lineage(world, run_id) == (parent, top, named or top)


async def test_C26_the_first_end_of_a_run_is_kept(world: World) -> None:
    first, second = T + timedelta(minutes=1), T + timedelta(minutes=2)
    assert await world.lifecycle.record([run("r", session_id="S")]) == ["created"]
    assert await world.lifecycle.record([run("r", session_id="S", ended_at=first, status="failed")]) == ["updated"]
    assert await world.lifecycle.record([run("r", session_id="S", ended_at=second)]) == ["already_ended"]
    assert await world.lifecycle.record([run("r", session_id="S")]) == ["unchanged"]
    r = SessionRunEntity
    async with world.db.engine.connect() as connection:
        found = (await connection.execute(select(r.ended_at, r.status))).one()
    assert tuple(found) == (first, "failed")


@pytest.mark.parametrize(
    ("extras", "read", "written"),
    [
        ({"cache_read_input": 30}, 30, 0),
        ({"input_cached": 30}, 30, 0),
        ({"prompt_cached": 30, "cache_creation_input": 20}, 30, 20),
        ({"prompt_cached": 30, "input_cached": 30}, 30, 0),
    ],
)
async def test_C36_token_extras_are_mapped_and_counted_once(
    world: World, extras: dict[str, int], read: int, written: int
) -> None:
    await world.event(model="m", tokens_in=100, details=extras)
    row = await world.row()
    assert (row.tokens_in, row.cache_read_tokens, row.cache_write_tokens) == (100, read, written)
    await world.event(model="m", tokens_in=100, cache_read_tokens=30, details=extras)
    row = await world.row()
    assert (row.tokens_in, row.cache_read_tokens) == (200, read + 30)


async def test_T25_a_runs_report_and_the_sum_of_its_events_agree(world: World) -> None:
    """The session's cost, the stats and the cost by model agree after each step."""

    async def spend() -> list[Decimal]:
        stats = await world.lifecycle.aggregate_stats(A)
        by_model = sum((row.cost_usd for row in await world.lifecycle.cost_by_model(A)), Decimal(0))
        return [(await world.row("S")).cost_usd, stats.total_spend_usd, by_model]

    await world.lifecycle.record([run("r", session_id="S", model="m", reported_cost_usd=1)])
    assert await spend() == [1, 1, 1]
    for cost, expected in ((Decimal("0.4"), Decimal(1)), (Decimal("0.9"), Decimal("1.3"))):
        event = UsageEvent(
            session_id="S",
            user_id=A,
            model="other",
            tokens_in=1,
            tokens_out=0,
            cost_usd=cost,
            run_id="r",
            idempotency_key=str(cost),
            at=T,
        )
        [receipt] = await world.lifecycle.record([event])
        assert getattr(receipt, "session_cost_usd", None) == expected
        assert await spend() == [expected] * 3
    assert {row.model for row in await world.lifecycle.cost_by_model(A)} == {"other"}


def used(session_id: str, key: str = "k") -> UsageEvent:
    return UsageEvent(
        session_id=session_id,
        user_id=A,
        model="m",
        tokens_in=10,
        tokens_out=0,
        cost_usd=Decimal("0.5"),
        run_id="r",
        idempotency_key=key,
        at=T,
    )


async def spends(world: World) -> dict[str, Decimal]:
    return {session_id: (await world.row(session_id)).cost_usd for session_id in await world.listed()}


async def test_T17_an_event_counts_in_the_session_of_its_run(world: World) -> None:
    await world.lifecycle.record([run("r", session_id="S1")])
    for session_id, outcome in (("S2", "applied"), ("S3", "duplicate"), ("S1", "duplicate")):
        receipt = await receipt_of(world.lifecycle, used(session_id))
        assert (receipt.outcome, receipt.session_cost_usd) == (outcome, Decimal("0.5"))
    assert await spends(world) == {"S1": Decimal("0.5")}
    # Items that name another session for the run create no session.
    await world.lifecycle.record([run("r", session_id="S4"), used("S5", "k2")])
    assert await spends(world) == {"S1": Decimal(1)}


async def test_T17_an_event_that_came_before_its_run_is_not_counted_again(world: World) -> None:
    await world.lifecycle.record([used("S2")])
    await world.lifecycle.record([run("r", session_id="S1")])
    again: list[list[Item]] = [[used("S2")], [run("r", session_id="S1"), used("S2")], [used("S2"), used("S2")]]
    for items in again:
        assert outcomes(await world.lifecycle.record(items))[-1] == "duplicate"
    assert await spends(world) == {"S1": 0, "S2": Decimal("0.5")}


async def test_T17_a_batch_that_names_three_sessions_counts_in_one(world: World) -> None:
    receipts = await world.record(
        used("S2"), run("r", session_id="S1"), used("S3"), run("r", session_id="S4"), used("S1")
    )
    assert outcomes(receipts) == ["applied", "created", "duplicate", "unchanged", "duplicate"]
    assert await spends(world) == {"S1": Decimal("0.5")}
