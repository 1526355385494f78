"""Rows of the lifecycle table about writes."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any

import pytest

from session_lifecycle import SessionStatus
from session_lifecycle.testing import SessionClock
from support.world import World

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


async def test_L01_touching_again_moves_only_the_activity(world: World) -> None:
    assert await world.touch() == "created"
    first = await world.row()
    assert await world.touch() == "touched"
    second = await world.row()
    assert await world.counts() == (1, 0, 0)
    assert second.started_at == first.started_at
    assert second.last_activity_at > first.last_activity_at
    assert second.status == "running"
    assert (second.tokens_in, second.tokens_out, second.cost_usd, second.error_count) == (0, 0, Decimal(0), 0)


async def test_L02_a_dataset_is_filled_and_never_replaced(world: World) -> None:
    seen = []
    for dataset in (None, world.d1, world.d2):
        await world.touch(dataset=dataset)
        seen.append((await world.row()).dataset_id)
    assert seen == [None, world.d1, world.d1]


async def test_L03_one_id_under_two_users_is_two_sessions(world: World) -> None:
    await world.touch()
    await world.touch(user=world.b)
    assert await world.counts() == (2, 0, 0)


async def use_as_in_l04(world: World) -> None:
    await world.touch()
    await world.use("gpt-4o", 100, 50, Decimal("0.012"))
    await world.use("gpt-4o", 25, 5, Decimal("0.003"))
    await world.use("gpt-4o-mini", 10, 1, Decimal("0.0001"), True)


async def assert_totals_of_l04(world: World) -> None:
    row = await world.row()
    assert (row.tokens_in, row.tokens_out, row.cost_usd) == (135, 56, Decimal("0.0151"))
    assert (row.error_count, row.last_model) == (1, "gpt-4o-mini")
    assert await world.models() == {
        "gpt-4o": (125, 55, Decimal("0.015")),
        "gpt-4o-mini": (10, 1, Decimal("0.0001")),
    }


async def test_L04_usage_adds_up_by_session_and_model(world: World) -> None:
    await use_as_in_l04(world)
    await assert_totals_of_l04(world)


async def test_L05_usage_after_the_end_is_kept_but_not_counted(world: World) -> None:
    await use_as_in_l04(world)
    await world.lifecycle.end_session("s", world.a, SessionStatus.COMPLETED)
    late: dict[str, Any] = {"cost_usd": Decimal("9.99"), "errored": True, "idempotency_key": "k"}
    assert (await world.use("gpt-4o", 9999, 9999, **late)).outcome == "frozen"
    assert (await world.use("gpt-4o", 9999, 9999, **late)).outcome == "duplicate"
    await assert_totals_of_l04(world)
    row = await world.row()
    assert (row.late_events, row.late_cost_usd) == (1, Decimal("9.99"))
    assert [event["idempotency_key"] for event in await world.ledger() if event["late"]] == ["k"]


async def test_L06_usage_creates_the_session(world: World) -> None:
    assert (await world.use("gpt-4o", 10, 5, 1)).outcome == "applied"
    row = await world.row()
    assert (row.status, row.tokens_in, row.tokens_out, row.cost_usd) == ("running", 10, 5, Decimal(1))


async def test_L07_nothing_writes_nothing(world: World) -> None:
    assert (await world.use()).outcome == "nothing"
    assert await world.counts() == (0, 0, 0)


async def test_L08_a_model_or_an_error_alone_has_no_row_by_model(world: World) -> None:
    await world.use("gpt-4o")
    await world.use(errored=True)
    row = await world.row()
    assert (row.last_model, row.error_count) == ("gpt-4o", 1)
    assert await world.counts() == (1, 0, 0)


async def test_L09_a_key_counts_once_in_its_session(world: World) -> None:
    outcomes = [
        (await world.use("m", 10, output, session_id=session, idempotency_key="k")).outcome
        for session, output in (("s", 5), ("s", 5), ("s", 6), ("t", 5))
    ]
    assert outcomes == ["applied", "duplicate", "conflict", "applied"]
    for session in ("s", "t"):
        row = await world.row(session)
        assert (row.tokens_in, row.tokens_out) == (10, 5)


REVISIONS = {0: (5, "0.1"), 1: (7, "0.2"), 2: (9, "0.3")}


async def test_L10_the_highest_revision_holds(world: World) -> None:
    async def revise(session: str, revision: int, output: int, cost: str) -> str:
        receipt = await world.event(
            session_id=session,
            model="m",
            tokens_in=10,
            tokens_out=output,
            cost_usd=Decimal(cost),
            idempotency_key="k",
            revision=revision,
        )
        return str(receipt.outcome)

    asked = [(0, 5, "0.1"), (2, 9, "0.3"), (1, 7, "0.2"), (2, 9, "0.3"), (2, 8, "0.3")]
    outcomes = [await revise("s", *one) for one in asked]
    assert outcomes == ["applied", "replaced", "superseded", "duplicate", "conflict"]
    for number, order in enumerate(permutations(REVISIONS)):
        for revision in order:
            await revise(f"order {number}", revision, *REVISIONS[revision])
    for session in ("s", *(f"order {number}" for number in range(6))):
        row = await world.row(session)
        assert (row.tokens_in, row.tokens_out, row.cost_usd) == (10, 9, Decimal("0.3"))
    assert await world.models() == {"m": (70, 63, Decimal("2.1"))}
    held = {(event["tokens_in"], event["tokens_out"], event["cost_usd"]) for event in await world.ledger()}
    assert held == {(10, 9, Decimal("0.3"))}


async def test_L11_a_revision_may_name_another_model(world: World) -> None:
    await world.event(model="one", tokens_in=10, cost_usd=1, idempotency_key="k")
    await world.event(model="two", tokens_in=20, cost_usd=2, idempotency_key="k", revision=1)
    assert await world.models() == {"two": (20, 0, Decimal(2))}
    by_model = await world.sql("SELECT model, tokens_in, cost_usd, events FROM session_lifecycle.session_model_usage")
    assert {row["model"]: (row["tokens_in"], row["cost_usd"], row["events"]) for row in by_model} == {
        "one": (0, 0, 0),
        "two": (20, 2, 1),
    }


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("tokens_in", {"tokens_in": -1}),
        ("cost_usd", {"cost_usd": Decimal("-0.01")}),
        ("tokens_in", {"tokens_in": True}),
        ("cost_usd", {"cost_usd": Decimal("NaN")}),
        ("cache_read_tokens", {"cache_read_tokens": 5, "tokens_in": 4}),
        ("session_id", {"session_id": ""}),
        ("session_id", {"session_id": "   "}),
        ("session_id", {"session_id": "x" * 513}),
        ("session_id", {"session_id": "a\x00b"}),
        ("at", {"at": datetime.fromisoformat("2026-01-01")}),
    ],
)
async def test_L12_bad_values_are_refused_by_name(
    world: World, refuses: Any, field: str, given: dict[str, Any]
) -> None:
    with refuses(field):
        await world.use(**{"model": "m", **given})
    assert await world.counts() == (0, 0, 0)


async def test_L13_token_counts_may_exceed_32_bits(world: World) -> None:
    for _ in range(2):
        await world.use("m", 3_000_000_000)
    assert (await world.row()).tokens_in == 6_000_000_000


async def test_L14_ten_dimes_are_a_dollar(world: World) -> None:
    for _ in range(10):
        await world.use("m", 1, 0, 0.1)
    assert (await world.row()).cost_usd == Decimal("1.0")


async def test_L15_the_first_end_wins(world: World) -> None:
    await world.touch()
    assert await world.lifecycle.end_session("s", world.a, SessionStatus.COMPLETED) == "ended"
    first = await world.row()
    assert await world.lifecycle.end_session("s", world.a, SessionStatus.FAILED) == "already_ended"
    assert await world.row() == first
    assert (first.status, first.ended_at is not None) == ("completed", True)


@pytest.mark.parametrize("status", ["running", "abandoned"])
async def test_L16_an_end_is_completed_or_failed(world: World, refuses: Any, status: str) -> None:
    await world.touch()
    not_an_end: Any = status
    with refuses("status"):
        await world.lifecycle.end_session("s", world.a, not_an_end)
    assert (await world.row()).status == "running"


async def test_L17_ending_an_unknown_session_creates_none(world: World) -> None:
    assert await world.lifecycle.end_session("s", world.a, SessionStatus.COMPLETED) == "unknown"
    assert await world.counts() == (0, 0, 0)


async def test_L18_touching_an_ended_session_changes_nothing(world: World) -> None:
    await world.touch()
    await world.lifecycle.end_session("s", world.a, SessionStatus.COMPLETED)
    before = await world.row()
    assert await world.touch(dataset=world.d1, agent_name="x") == "terminal"
    assert await world.row() == before


async def test_L19_reopening_keeps_the_totals(world: World) -> None:
    await world.use("m", 10, 5, 1)
    await world.lifecycle.end_session("s", world.a, SessionStatus.COMPLETED)
    assert await world.lifecycle.reopen_session("s", world.a) == "reopened"
    await world.touch()
    await world.use("m", 1, 1, 0)
    row = await world.row()
    assert (row.status, row.ended_at) == ("running", None)
    assert (row.tokens_in, row.tokens_out, row.cost_usd) == (11, 6, Decimal(1))


async def test_L47_usage_out_of_order_widens_the_session(world: World) -> None:
    now = datetime.now(UTC)
    await world.use("m", 1, at=now - 2 * HOUR)
    await world.use("m", 1, at=now - 3 * HOUR)
    row = await world.row()
    assert (row.started_at, row.last_activity_at) == (now - 3 * HOUR, now - 2 * HOUR)


async def test_L51_usage_from_before_the_end_counts_after_it(world: World, session_clock: SessionClock) -> None:
    now = await session_clock.freeze()
    await world.touch(at=now - HOUR)
    await world.lifecycle.end_session("s", world.a, SessionStatus.COMPLETED)
    assert (await world.use("m", 10, 5, 1, at=now - 10 * MINUTE)).outcome == "applied"
    row = await world.row()
    assert (row.status, row.ended_at, row.tokens_in, row.late_events) == ("completed", now, 10, 0)


async def test_L52_a_key_of_the_user_counts_in_one_session(world: World) -> None:
    copied: dict[str, Any] = {"model": "m", "tokens_in": 10, "cost_usd": 1, "idempotency_key": "k", "key_scope": "user"}
    assert (await world.event(session_id="s1", **copied)).outcome == "applied"
    assert (await world.event(session_id="s2", **copied)).outcome == "duplicate"
    assert (await world.row("s1")).tokens_in == 10
    assert await world.counts() == (1, 1, 1)


async def test_L56_a_receipt_has_the_totals_after_its_call(world: World) -> None:
    receipts = [await world.use("m", 10, 5, 1) for _ in range(3)]
    totals = [(one.session_tokens_in, one.session_tokens_out, one.session_cost_usd) for one in receipts]
    assert totals == [(10, 5, Decimal(1)), (20, 10, Decimal(2)), (30, 15, Decimal(3))]


async def test_L59_an_unmeasured_response_is_measured_later(world: World) -> None:
    await world.event(model="gpt-4o", measured=False, idempotency_key="k")
    row = await world.row()
    assert (row.unmeasured_events, row.unpriced_events, row.tokens_in, row.cost_usd) == (1, 0, 0, Decimal(0))
    await world.event(model="gpt-4o", tokens_in=10, tokens_out=5, idempotency_key="k", revision=1)
    row = await world.row()
    assert (row.unmeasured_events, row.unpriced_events, row.tokens_in, row.tokens_out) == (0, 0, 10, 5)
    # 10 at $2.50 and 5 at $10 per million: https://openai.com/api/pricing, November 2026
    assert row.cost_usd == Decimal("0.000075")
