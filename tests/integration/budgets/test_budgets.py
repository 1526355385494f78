"""Budgets: what counts, in which window, and who is refused (rule R28)."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import BudgetExceededError, InvalidValueError, SessionDatabase, Touch, UsageEvent, Viewer
from session_lifecycle.models import Budget, Item, PriceOverride, budgets
from session_lifecycle.models.reports import Series
from session_lifecycle.testing import SessionClock
from support.budgets import AUDITOR, limit, reserved, spent, used
from support.usage import A, receipt_of, usage

B, D1, D2 = (UUID(int=number) for number in (2, 3, 4))


async def test_R28_a_call_is_admitted_up_to_the_limit_and_refused_beyond_it(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db)
    await db.lifecycle.record([usage(cost_usd=4)])
    first: Any = await db.budgets.reserve("s", A, cost_usd=5, idempotency_key="1")
    assert (first.outcome, first.admitted, first.cost_usd, first.tokens) == ("reserved", True, 5, None)
    assert first.expires_at is not None
    second = await db.budgets.reserve("s", A, cost_usd="1.5", idempotency_key="2")
    assert (second.outcome, second.admitted, second.expires_at) == ("refused", False, None)
    by: Any
    [by] = second.refused_by
    assert (by.spent_usd, by.reserved_usd, by.over_usd, by.over_tokens) == (4, 5, Decimal("0.5"), None)
    exact = await db.budgets.reserve("s", A, cost_usd=1, idempotency_key="3")
    assert exact.outcome == "reserved"
    assert (await used(db)).over_usd == 0


async def test_R28_a_refusal_is_raised_where_the_host_asks_for_it(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db, "usd", limit_usd=1)
    await limit(db, "both", limit_usd=0, limit_tokens=5, on_unpriced="refuse")
    (await db.budgets.reserve("other", B, cost_usd=1, idempotency_key="1")).raise_if_refused()
    refused = await db.budgets.reserve("s", A, "no such model", 10, 10, idempotency_key="1")
    with pytest.raises(BudgetExceededError) as raised:
        refused.raise_if_refused()
    assert raised.value.budget_ids == ("both", "usd")
    assert str(raised.value) == (
        "budget 'both' would be exceeded by 0 USD and would be exceeded by 15 tokens and "
        "refuses a call whose price is not known; budget 'usd' refuses a call whose price is not known"
    )


async def test_R28_no_budget_reserves_nothing(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db, user_id=B)
    answer = await db.budgets.reserve("s", A, cost_usd=100, idempotency_key="1")
    assert (answer.outcome, answer.admitted, answer.expires_at) == ("unlimited", True, None)
    assert await db.budgets.would_exceed("s", A, cost_usd=100) == []
    assert not await db.budgets.release("s", A, "1")


async def test_R28_would_exceed_asks_and_reserves_nothing(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db, "b", limit_usd=10)
    await limit(db, "a", limit_tokens=5, limit_usd=None)
    assert await db.budgets.would_exceed("s", A, tokens_in=5, cost_usd=10) == []
    both = await db.budgets.would_exceed("s", A, tokens_in=5, tokens_out=3, cost_usd="10.25")
    assert [(one.budget.budget_id, one.over_usd, one.over_tokens) for one in both] == [
        ("a", None, 3),
        ("b", Decimal("0.25"), None),
    ]
    assert await reserved(db) == 0


async def test_R28_a_session_block_asks_for_its_session(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db, user_id=None, agent_name="coder", dataset_id=D1)
    async with db.session("s", A, D1, agent_name="coder") as session:
        assert await session.would_exceed(cost_usd=10) == []
        assert len(await session.would_exceed(cost_usd=11)) == 1
        assert (await session.reserve(cost_usd=10, idempotency_key="1")).admitted
        assert not (await session.child("t").reserve(cost_usd=1, idempotency_key="2")).refused_by
        child = session.child("u", D1, agent_name="coder")
        assert (await child.reserve(cost_usd=1, idempotency_key="2")).refused_by
        assert await session.release("1")
    async with db.recorder() as recorder, recorder.session("s", A, D1, agent_name="coder") as session:
        assert len(await session.would_exceed(cost_usd=11)) == 1


async def test_R28_a_synchronous_session_block_asks_for_its_session(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db)

    def ask() -> list[Any]:
        with db.synchronous_recorder() as recorder, recorder.session("s", A) as session:
            before = [len(session.would_exceed(cost_usd=cost)) for cost in (10, 11)]
            admitted = [session.reserve(cost_usd=9, idempotency_key=key).admitted for key in "12"]
            session.usage("m", 1, cost_usd=2, idempotency_key="1")
            return [*before, *admitted, session.release("2"), session.reserve(cost_usd=8, idempotency_key="3").outcome]

    assert await asyncio.to_thread(ask) == [0, 1, True, False, False, "reserved"]


@pytest.mark.parametrize(
    ("named", "counted"),
    [
        ({"user_id": A}, 1 + 2 + 4),
        ({"user_id": A, "session_id": "s"}, 1),
        ({"agent_name": "x"}, 2 + 8),
        ({"dataset_id": D1}, 4 + 8),
        ({"agent_name": "x", "dataset_id": D1}, 8),
        ({"user_id": B, "agent_name": "x"}, 8),
        ({"user_id": A, "dataset_id": D1}, 4),
        ({"user_id": A, "session_id": "t", "agent_name": "y"}, 0),
    ],
)
@pytest.mark.parametrize("window", ["total", "day", timedelta(hours=1)])
async def test_R28_a_budget_counts_what_has_all_that_it_names(
    session_database: SessionDatabase, named: dict[str, Any], counted: int, window: Any
) -> None:
    db = session_database
    sessions = [("s", A, None, None), ("t", A, "x", None), ("u", A, None, D1), ("s", B, "x", D1)]
    await db.lifecycle.record(
        [Touch(session_id=one, user_id=user, agent_name=name, dataset_id=data) for one, user, name, data in sessions]
    )
    await limit(db, **{"user_id": None, "limit_usd": 1000, **named}, window=window)
    for number, (session, user, _, _) in enumerate(sessions):
        # What the caller names instead does not count: the event goes to the agent and the dataset of its session.
        given: dict[str, Any] = {"agent_name": "y", "dataset_id": D2}
        given = {name: one for name, one, own in zip(given, given.values(), sessions[number][2:], strict=True) if own}
        answer = await db.budgets.reserve(session, user, cost_usd=2**number, idempotency_key="k", **given)
        assert answer.admitted
    assert (await reserved(db), await spent(db)) == (counted, 0)
    for number, (session, user, _, _) in enumerate(sessions):
        await receipt_of(db.lifecycle, usage(session_id=session, user_id=user, cost_usd=2**number, idempotency_key="k"))
    assert (await reserved(db), await spent(db)) == (0, counted)


async def test_R28_a_session_to_come_has_the_agent_and_dataset_that_are_given(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    await limit(db, user_id=None, agent_name="x", dataset_id=D1)
    assert (await db.budgets.reserve("new", A, cost_usd=1, idempotency_key="k", agent_name="x")).outcome == "unlimited"
    given: dict[str, Any] = {"agent_name": "x", "dataset_id": D1}
    assert (await db.budgets.reserve("new", A, cost_usd=1, idempotency_key="k", **given)).outcome == "reserved"
    assert await reserved(db) == 1
    # The session is made with another agent: its usage is that agent's, and so is what is reserved for it.
    await db.lifecycle.ensure_and_touch_session("new", A, D1, agent_name="y")
    assert await reserved(db) == 0


async def test_R28_late_usage_was_spent_and_plan_usage_counts_in_tokens(session_database: SessionDatabase) -> None:
    db = session_database
    for name, window in (("total", "total"), ("day", "day")):
        await limit(db, name, limit_tokens=100, limit_usd=100, window=window)
    await db.lifecycle.record([usage(tokens_in=1, cost_usd=1)])
    await db.lifecycle.record([usage(tokens_in=2, cost_usd=None, model="no such model")])
    await db.lifecycle.record([UsageEvent(session_id="s", user_id=A, measured=False)])
    await db.lifecycle.record([usage(tokens_in=4, cost_usd=50, billing="plan")])
    await db.lifecycle.end_session("s", A, "completed")
    await db.lifecycle.record([usage(tokens_in=8, cost_usd=2), usage(tokens_in=16, cost_usd=50, billing="plan")])
    await db.lifecycle.record([usage(tokens_in=32, cost_usd=None, model="no such model")])
    for name in ("total", "day"):
        found = await used(db, name)
        assert (found.spent_usd, found.spent_tokens) == (3, 63)
        assert (found.unpriced_events, found.unmeasured_events) == (2, 1)
    assert await db.budgets.would_exceed("s", A, tokens_in=37, cost_usd=1000, billing="plan") == []
    assert len(await db.budgets.would_exceed("s", A, tokens_in=38, billing="plan")) == 2


async def test_R28_the_price_is_that_of_recording(session_database_url: str) -> None:
    prices = [PriceOverride(model_pattern="own", input_usd_per_million=1_000_000, output_usd_per_million=2_000_000)]
    async with SessionDatabase.connect(session_database_url, prices=prices) as db:
        await limit(db, limit_usd=7)
        answer: Any = await db.budgets.reserve("s", A, "own", 3, 2, idempotency_key="k")
        assert (answer.outcome, answer.cost_usd, answer.tokens) == ("reserved", 7, 5)
        receipt = await db.lifecycle.accumulate_usage("s", A, "own", 3, 2, idempotency_key="k")
        assert receipt.cost_usd == answer.cost_usd
        refused = await db.budgets.reserve("s", A, "own", 1, 0, idempotency_key="l")
        assert [one.over_usd for one in refused.refused_by] == [1]


async def test_R28_the_redaction_of_the_host_sees_what_is_reserved(session_database_url: str) -> None:
    def redact(item: Item) -> Item:
        return item.model_copy(update={"agent_name": "hidden"}) if isinstance(item, Touch) and item.agent_name else item

    async with SessionDatabase.connect(session_database_url, redact=redact) as db:
        await limit(db, user_id=None, agent_name="hidden")
        assert (
            await db.budgets.reserve("s", A, cost_usd=9, idempotency_key="k", agent_name="Eve")
        ).outcome == "reserved"
        await db.lifecycle.ensure_and_touch_session("s", A, agent_name="Eve")
        assert await reserved(db) == 9
        async with db.engine.connect() as connection:
            found = await connection.execute(text("SELECT agent_name FROM session_lifecycle.session_reservations"))
            assert found.scalar_one() == "hidden"


async def test_R28_a_schema_of_any_name_has_budgets_of_its_own(
    session_database: SessionDatabase, session_database_url: str
) -> None:
    await limit(session_database, limit_usd=0)
    async with SessionDatabase.connect(session_database_url, schema='we"ird: %s $body$ Schema') as db:
        await db.migrate()
        await limit(db, limit_usd=5)
        assert [(await db.budgets.reserve("s", A, cost_usd=3, idempotency_key=key)).admitted for key in "12"] == [
            True,
            False,
        ]
        await db.lifecycle.record([usage(cost_usd=3, idempotency_key="1")])
        assert len(await db.budgets.would_exceed("s", A, cost_usd=3)) == 1
        await db.maintenance.erase_user(A)
        assert await db.budgets.list_budgets(AUDITOR) == []
    assert len(await session_database.budgets.would_exceed("s", A, cost_usd=1)) == 1


async def test_R28_a_model_without_a_price_is_refused_or_admitted_as_the_budget_says(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    await limit(db, "refuses", limit_usd=5)
    await limit(db, "admits", limit_usd=5, on_unpriced="admit")
    await limit(db, "tokens", limit_usd=None, limit_tokens=50)
    call: dict[str, Any] = {"model": "no such model", "tokens_in": 10}
    refused = await db.budgets.reserve("s", A, **call, idempotency_key="k")
    assert [one.budget.budget_id for one in refused.refused_by] == ["refuses"]
    assert (refused.refused_by[0].over_unpriced, refused.refused_by[0].over_usd, refused.cost_usd) == (True, None, None)
    assert (await db.budgets.reserve("s", A, **call, cost_usd=1, idempotency_key="k")).admitted, "a cost is given"
    await db.budgets.delete_budget("refuses")
    assert (await db.budgets.reserve("s", A, **call, idempotency_key="k")).admitted
    found = await used(db, "tokens")
    assert (found.reserved_usd, found.reserved_tokens) == (0, 10)
    # Where nothing is left, nobody knows that the call fits.
    await db.lifecycle.record([usage(cost_usd=5)])
    refused = await db.budgets.reserve("s", A, **call, idempotency_key="l")
    [by] = refused.refused_by
    assert by.budget.budget_id == "admits"
    assert by.over_usd == 0


async def test_R28_a_call_without_figures_needs_something_left(session_database: SessionDatabase) -> None:
    db = session_database
    await limit(db, "usd", limit_usd=2)
    await limit(db, "tokens", limit_usd=None, limit_tokens=2)
    assert (await db.budgets.reserve("s", A, idempotency_key="k")).admitted
    await db.lifecycle.record([usage(tokens_in=2, cost_usd=1)])
    refused = await db.budgets.would_exceed("s", A)
    assert [(one.budget.budget_id, one.over_tokens) for one in refused] == [("tokens", 0)]
    await db.lifecycle.record([usage(tokens_in=0, cost_usd=1)])
    assert len(await db.budgets.would_exceed("s", A)) == 2
    # A call that is known to be free of charge passes a limit in USD.
    assert [one.budget.budget_id for one in await db.budgets.would_exceed("s", A, cost_usd=0)] == ["tokens"]


async def test_R28_a_budget_is_replaced_and_deleted(session_database: SessionDatabase) -> None:
    db = session_database
    assert await db.budgets.set_budget(Budget(budget_id="b", user_id=A, limit_usd=1))
    assert not await db.budgets.set_budget(Budget(budget_id="b", user_id=A, limit_usd=2, window="month"))
    found = await used(db)
    assert (found.budget.limit_usd, found.budget.window) == (2, "month")
    assert not (await db.budgets.reserve("s", A, cost_usd=3, idempotency_key="k")).admitted
    assert await db.budgets.delete_budget("b")
    assert not await db.budgets.delete_budget("b")
    assert (await db.budgets.reserve("s", A, cost_usd=3, idempotency_key="k")).outcome == "unlimited"


async def test_every_field_of_a_budget_comes_back(session_database: SessionDatabase) -> None:
    budgets = [
        Budget(
            budget_id="a",
            user_id=A,
            session_id="s",
            agent_name="x",
            dataset_id=D1,
            limit_usd=Decimal("0.000000000000000001"),
            limit_tokens=10**15,
            window=timedelta(days=3, microseconds=1),
            timezone="Asia/Kathmandu",
            on_unpriced="admit",
        ),
        Budget(budget_id="b", agent_name="x", limit_tokens=1, window="week"),
    ]
    for budget in budgets:
        await session_database.budgets.set_budget(budget)
    assert await session_database.budgets.list_budgets(AUDITOR) == budgets
    assert [Budget.model_validate_json(one.model_dump_json()) for one in budgets] == budgets


async def test_R11_a_viewer_sees_a_budget_if_they_see_every_session_that_it_counts(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    await limit(db, "of A")
    await limit(db, "of A in D1", dataset_id=D1)
    await limit(db, "of B", user_id=B)
    await limit(db, "of D1", user_id=None, dataset_id=D1)
    await limit(db, "of D1 and x", user_id=None, dataset_id=D1, agent_name="x")
    await limit(db, "of x", user_id=None, agent_name="x")
    every = sorted(["of A", "of A in D1", "of B", "of D1", "of D1 and x", "of x"])
    seen: list[tuple[Viewer | UUID, list[str]]] = [
        (AUDITOR, every),
        (A, ["of A", "of A in D1"]),
        (Viewer(B, agent_user_ids=[A]), ["of A", "of A in D1", "of B"]),
        (Viewer(B, [D1]), ["of A in D1", "of B", "of D1", "of D1 and x"]),
        (Viewer(D2, [D2]), []),
        (Viewer.of_users([]), []),
    ]
    for viewer, ids in seen:
        assert [one.budget_id for one in await db.budgets.list_budgets(viewer)] == ids
        assert [one for one in every if await db.budgets.get_budget(one, viewer) is not None] == ids
    assert [one.budget_id for one in await db.budgets.list_budgets(AUDITOR, limit=2, after="of A")] == every[1:3]


async def test_R28_a_user_session_agent_and_dataset_have_twenty_budgets_at_most(
    session_database: SessionDatabase,
) -> None:
    db = session_database
    for number in range(20):
        await limit(db, f"b{number}", agent_name="x", limit_usd=number)
    with pytest.raises(InvalidValueError, match=r"^budget_id: got 'more', expected at most 20 budgets of the same"):
        await limit(db, "more", agent_name="x")
    await limit(db, "b0", agent_name="x", limit_usd=7)
    await limit(db, "more", agent_name="y")


async def test_R28_a_time_zone_that_only_python_knows_is_refused(
    session_database: SessionDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "time_zone", lambda name: name)
    with pytest.raises(
        InvalidValueError, match=r"^timezone: got 'Nowhere/Else', expected the name of a time zone that"
    ):
        await limit(session_database, timezone="Nowhere/Else")
    assert await session_database.budgets.list_budgets(AUDITOR) == []


async def test_R28_a_rolling_window_and_a_calendar_window_forget(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    db = session_database
    await session_clock.freeze(datetime(2026, 3, 31, 22, 30, tzinfo=UTC))
    await limit(db, "rolling", window=timedelta(hours=2))
    for window in ("hour", "day", "week", "month", "total"):
        await limit(db, window, window=window)
    await limit(db, "berlin", window="day", timezone="Europe/Berlin")
    await db.lifecycle.record([usage(cost_usd=1)])

    async def counting() -> list[str]:
        return sorted(
            [one.budget_id for one in await db.budgets.list_budgets(AUDITOR) if await spent(db, one.budget_id)]
        )

    every = sorted(["rolling", "hour", "day", "week", "month", "total", "berlin"])
    assert await counting() == every
    await session_clock.advance(timedelta(minutes=30))
    assert await counting() == sorted(set(every) - {"hour"})
    await session_clock.freeze(datetime(2026, 4, 1, tzinfo=UTC))
    # Half past midnight in Berlin is still the day in which it was used.
    assert await counting() == ["berlin", "rolling", "total", "week"]
    await session_clock.freeze(datetime(2026, 4, 1, 0, 30, tzinfo=UTC))
    assert await counting() == ["berlin", "rolling", "total", "week"]
    await session_clock.advance(timedelta(microseconds=1))
    assert await counting() == ["berlin", "total", "week"]
    await session_clock.freeze(datetime(2026, 4, 5, 22, 0, tzinfo=UTC))
    assert await counting() == ["total", "week"]
    await session_clock.freeze(datetime(2026, 4, 6, tzinfo=UTC))
    assert await counting() == ["total"]


async def test_R28_a_reservation_from_before_midnight_counts_after_it(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    db = session_database
    await session_clock.freeze(datetime(2026, 1, 1, 23, 59, tzinfo=UTC))
    await limit(db, window="day")
    assert (await db.budgets.reserve("s", A, cost_usd=6, idempotency_key="1")).admitted
    await session_clock.advance(timedelta(minutes=2))
    assert not (await db.budgets.reserve("s", A, cost_usd=6, idempotency_key="2")).admitted
    await db.lifecycle.record([usage(cost_usd=6, idempotency_key="1", at=datetime(2026, 1, 1, 23, 59, 30, tzinfo=UTC))])
    assert (await db.budgets.reserve("s", A, cost_usd=6, idempotency_key="2")).admitted


async def test_R28_a_calendar_window_begins_where_the_reports_begin_it(session_database: SessionDatabase) -> None:
    zones = {
        "UTC": [], "Europe/Berlin": ["2026-03-29", "2026-10-25"], "America/Havana": ["2026-03-08", "2026-11-01"],
        "America/Sao_Paulo": ["2018-02-18", "2018-11-04"], "Australia/Lord_Howe": ["2026-04-05", "2026-10-04"],
        "Asia/Kathmandu": [], "Pacific/Apia": ["2011-12-30"], "Africa/Cairo": ["2026-04-24", "2026-10-30"],
        "America/St_Johns": ["2006-04-02", "2006-10-29"], "Asia/Beirut": ["2026-03-29", "2026-10-25"],
    }  # fmt: skip
    asked: list[tuple[str, str, datetime]] = []
    for zone, days in zones.items():
        for day in [*days, "2026-07-16"]:
            begin = datetime.fromisoformat(day).replace(tzinfo=UTC) - timedelta(hours=30)
            moments = [begin + timedelta(minutes=15 * step, seconds=7) for step in range(4 * 60)]
            asked += [(unit, zone, moment) for unit in ("hour", "day", "week", "month") for moment in moments]
    sql = text("""
        SELECT session_lifecycle.window_begin(q.unit, NULL, q.zone, q.moment)
        FROM unnest(CAST(:units AS text[]), CAST(:zones AS text[]), CAST(:moments AS timestamptz[]))
            WITH ORDINALITY q (unit, zone, moment, place)
        ORDER BY q.place
    """)
    units, names, moments = (list(one) for one in zip(*asked, strict=True))
    async with session_database.engine.connect() as connection:
        found = (await connection.execute(sql, {"units": units, "zones": names, "moments": moments})).scalars().all()
    expected = [
        Series(since=moment, until=moment + timedelta(microseconds=1), bucket=unit, timezone=zone).boundaries()[0]
        for unit, zone, moment in asked
    ]
    wrong = [(one, str(a), str(b)) for one, a, b in zip(asked, found, expected, strict=True) if a != b]
    assert wrong == []
