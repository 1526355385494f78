"""The rules R01 to R20, at least one test each; the acceptance rows show the same rules at work."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from session_lifecycle import (
    End,
    InvalidValueError,
    SchemaError,
    SessionDatabase,
    SessionListFilters,
    SessionStatus,
    Touch,
    TransactionConflictError,
    UsageEvent,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.testing import SessionClock
from support.stored_rows import deadlocks
from support.usage import receipt_of

A, B, C, D1 = (UUID(int=number) for number in range(1, 5))
MINUTE = timedelta(minutes=1)
SCHEMA = "session_lifecycle"

TOTALS = (
    "tokens_in, tokens_out, cost_usd, cache_read_tokens, cache_write_tokens, reasoning_tokens, "
    "unpriced_events, unmeasured_events"
)


async def rows(db: SessionDatabase, sql: str) -> list[dict[str, Any]]:
    async with db.engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(text(sql))).mappings()]


async def assert_totals_agree(db: SessionDatabase) -> None:
    """Each session's totals equal the sums of its per-model rows and of its events that are not late."""
    sums = ", ".join(f"coalesce(sum({column}), 0) AS {column}" for column in TOTALS.split(", ")[:6])
    flags = (
        "count(*) FILTER (WHERE cost_usd IS NULL AND measured) AS unpriced_events, "
        "count(*) FILTER (WHERE NOT measured) AS unmeasured_events"
    )
    models = "sum(unpriced_events) AS unpriced_events, sum(unmeasured_events) AS unmeasured_events"
    key = "user_id, session_id"
    differing = await rows(
        db,
        f"""
        WITH by_model AS (SELECT {key}, {sums}, {models} FROM {SCHEMA}.session_model_usage GROUP BY {key}),
             by_event AS (
                 SELECT {key}, {sums}, {flags} FROM {SCHEMA}.session_usage_events WHERE NOT late GROUP BY {key}
             ),
             stored AS (SELECT {key}, {TOTALS} FROM {SCHEMA}.session_records WHERE tokens_in > 0 OR cost_usd > 0)
        (SELECT * FROM stored EXCEPT SELECT * FROM by_model) UNION ALL
        (SELECT * FROM stored EXCEPT SELECT * FROM by_event)
        """,
    )
    assert differing == []


async def test_R01_touching_widens_fills_and_never_replaces(session_database: SessionDatabase) -> None:
    lifecycle, now = session_database.lifecycle, datetime.now(UTC)
    await lifecycle.ensure_and_touch_session("s", A, at=now)
    await lifecycle.ensure_and_touch_session("s", A, D1, agent_name="first", at=now - MINUTE)
    await lifecycle.ensure_and_touch_session("s", A, uuid4(), agent_name="second", at=now - 2 * MINUTE)
    await lifecycle.record(
        [
            Touch(session_id="s", user_id=A, title="one", metadata={"a": 1}, at=now),
            Touch(session_id="s", user_id=A, title="two", metadata={"a": 2, "b": 3}, at=now),
        ]
    )
    found = await lifecycle.get_session_row("s", A)
    assert found is not None
    record = found.record
    assert (record.started_at, record.last_activity_at) == (now - 2 * MINUTE, now)
    assert (record.dataset_id, record.agent_name, record.title) == (D1, "first", "one")
    assert record.metadata == {"a": 1, "b": 3}


async def test_R02_usage_is_all_or_nothing(session_database: SessionDatabase) -> None:
    async with session_database.engine.begin() as connection:
        await connection.execute(text(f"ALTER TABLE {SCHEMA}.session_model_usage ADD CHECK (model <> 'broken')"))
    with pytest.raises(Exception, match="23514"):
        await session_database.lifecycle.accumulate_usage("s", A, "broken", 1)
    assert await rows(session_database, f"SELECT 1 FROM {SCHEMA}.session_records") == []
    assert await rows(session_database, f"SELECT 1 FROM {SCHEMA}.session_usage_events") == []


async def test_R02_usage_without_touch_is_no_activity(session_database: SessionDatabase) -> None:
    lifecycle, past = session_database.lifecycle, datetime.now(UTC) - 10 * MINUTE
    await lifecycle.ensure_and_touch_session("s", A, at=past)
    await lifecycle.record([UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1, touch=False)])
    found = await lifecycle.get_session_row("s", A)
    assert found is not None
    assert (found.record.last_activity_at, found.record.tokens_in) == (past, 1)


async def test_R02_a_session_begins_with_what_created_it(session_database: SessionDatabase) -> None:
    long_ago = datetime.now(UTC) - 90 * MINUTE
    imported = UsageEvent(session_id="s", user_id=A, model="m", tokens_in=10, cost_usd=1, at=long_ago, touch=False)
    await session_database.lifecycle.record([imported, Touch(session_id="s", user_id=A)])
    found = await session_database.lifecycle.get_session_row("s", A)
    assert found is not None
    assert found.record.started_at == long_ago
    assert found.record.last_activity_at > long_ago + 89 * MINUTE


async def test_R03_a_key_writes_a_ledger_row_for_a_model_or_an_error(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    assert (await lifecycle.accumulate_usage("s", A, idempotency_key="n")).outcome == "nothing"
    assert (await lifecycle.accumulate_usage("s", A, "m", idempotency_key="m")).outcome == "applied"
    assert (await lifecycle.accumulate_usage("s", A, errored=True, idempotency_key="e")).outcome == "applied"
    assert (await lifecycle.accumulate_usage("s", A, errored=True, idempotency_key="e")).outcome == "duplicate"
    kept = await rows(session_database, f"SELECT idempotency_key FROM {SCHEMA}.session_usage_events ORDER BY 1")
    assert [row["idempotency_key"] for row in kept] == ["e", "m"]
    assert await lifecycle.cost_by_model(A) == []


async def test_R04_only_what_was_given_is_content(session_database: SessionDatabase) -> None:
    lifecycle, now = session_database.lifecycle, datetime.now(UTC)

    async def use(cost_usd: Decimal | None, at: datetime) -> str:
        receipt = await lifecycle.accumulate_usage("s", A, "gpt-4o", 10, cost_usd=cost_usd, idempotency_key="k", at=at)
        return receipt.outcome.value

    assert await use(None, now) == "applied"
    assert await use(None, now - MINUTE) == "duplicate"
    # The same price, but given by the caller: other content.
    assert await use(Decimal("0.000025"), now) == "conflict"


async def test_R04_a_key_of_the_user_named_in_two_sessions_at_once_counts_in_one(
    session_database: SessionDatabase,
) -> None:
    at = datetime.now(UTC)  # of two uses of one moment the first that is recorded owns the key

    def event(number: int, revision: int) -> UsageEvent:
        used: dict[str, Any] = {"model": "m", "tokens_in": 1 + revision, "cost_usd": 1, "key_scope": "user", "at": at}
        return UsageEvent(
            session_id=f"{number}-{revision}", user_id=A, idempotency_key=f"k{number}", revision=revision, **used
        )

    for number in range(20):
        await asyncio.gather(*(session_database.lifecycle.record([event(number, revision)]) for revision in range(3)))
    stats = await session_database.lifecycle.aggregate_stats(A)
    assert (stats.sessions, stats.tokens_in, stats.total_spend_usd) == (20, 60, Decimal(20))
    await assert_totals_agree(session_database)


async def test_R04_a_key_of_the_user_keeps_its_place_in_a_batch(session_database: SessionDatabase) -> None:
    def event(session_id: str, **more: Any) -> UsageEvent:
        return UsageEvent(session_id=session_id, user_id=A, model="m", cost_usd=1, **{"tokens_in": 1, **more})

    copied: dict[str, Any] = {"idempotency_key": "k", "key_scope": "user"}
    receipts = await session_database.lifecycle.record(
        [
            event("s", **copied),
            event("t", **copied, revision=1, tokens_in=10),  # counted in s
            event("s", tokens_in=100),
            End(session_id="s", user_id=A, status="completed"),
            event("t", **copied, revision=2, tokens_in=1000),  # counted in s, which has ended
            Touch(session_id="t", user_id=A),
        ]
    )
    answers = [
        (receipt.outcome, receipt.session_tokens_in) if isinstance(receipt, UsageReceipt) else receipt
        for receipt in receipts
    ]
    assert answers == [("applied", 1), ("replaced", 10), ("applied", 110), "ended", ("frozen", 110), "created"]


async def test_R05_usage_at_the_moment_of_the_end_is_not_late(session_database: SessionDatabase) -> None:
    lifecycle, ended_at = session_database.lifecycle, datetime.now(UTC) - MINUTE
    await lifecycle.record(
        [
            Touch(session_id="s", user_id=A, at=ended_at - MINUTE),
            End(session_id="s", user_id=A, status="completed", at=ended_at),
        ]
    )
    assert (await lifecycle.accumulate_usage("s", A, "m", 1, at=ended_at)).outcome == "applied"
    just_after = ended_at + timedelta(microseconds=1)
    assert (await lifecycle.accumulate_usage("s", A, "m", 1, at=just_after)).outcome == "frozen"


async def test_R05_late_stays_late_after_a_reopen(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    await lifecycle.accumulate_usage("s", A, "m", 1, cost_usd=1)
    await lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    receipt = await lifecycle.accumulate_usage("s", A, "m", 5, cost_usd=5)
    assert (receipt.outcome, receipt.session_cost_usd) == ("frozen", Decimal(1))
    await lifecycle.reopen_session("s", A)
    found = await lifecycle.get_session_row("s", A)
    assert found is not None
    assert (found.record.cost_usd, found.record.late_events, found.record.late_cost_usd) == (Decimal(1), 1, Decimal(5))


async def test_R05_a_late_higher_revision_changes_nothing(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    event = UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1, cost_usd=1, idempotency_key="k")
    await lifecycle.record([event, End(session_id="s", user_id=A, status=SessionStatus.FAILED)])
    before = await lifecycle.get_session_row("s", A)
    await asyncio.sleep(0.01)
    revised = event.model_copy(update={"revision": 1, "tokens_in": 2})
    assert (await receipt_of(lifecycle, revised)).outcome == "frozen"
    assert await lifecycle.get_session_row("s", A) == before


async def test_R06_any_order_and_repetition_gives_the_same_totals(session_database: SessionDatabase) -> None:
    lifecycle, at = session_database.lifecycle, datetime.now(UTC)
    chance = random.Random(6)
    answers = set()
    for order in range(12):
        user = uuid4()
        events = [
            UsageEvent(
                session_id=f"s{key % 2}",
                user_id=user,
                model=("one", "two", None)[(key + revision) % 3],
                tokens_in=10**key + revision,
                cost_usd=None if key % 3 == 0 else Decimal(10) ** -key * (revision + 1),
                idempotency_key=f"k{key}",
                revision=revision,
                at=at - key * MINUTE,
            )
            for key, revision in itertools.product(range(6), range(3))
        ]
        chance.shuffle(events)
        events += chance.sample(events, 5)
        size = order % 4 + 1
        for start in range(0, len(events), size):
            await lifecycle.record(events[start : start + size])
        stats = await lifecycle.aggregate_stats(user)
        costs = await lifecycle.cost_by_model(user)
        answers.add(
            (
                stats.tokens_in,
                stats.total_spend_usd,
                stats.unpriced_events,
                tuple(tuple(row.model_dump().values()) for row in costs),
            )
        )
    assert len(answers) == 1
    await assert_totals_agree(session_database)


async def test_R06_usage_from_before_the_end_counts_in_any_order_of_arrival(session_database: SessionDatabase) -> None:
    lifecycle, ended_at = session_database.lifecycle, datetime.now(UTC) - 5 * MINUTE
    revisions = [
        UsageEvent(
            session_id="s",
            user_id=A,
            model="m",
            tokens_in=10 + number,
            cost_usd=1,
            idempotency_key="k",
            revision=number,
            at=ended_at + by,
        )
        for number, by in enumerate((-2 * MINUTE, -MINUTE, MINUTE, 2 * MINUTE))
    ]
    answers = set()
    for number, order in enumerate(itertools.permutations(revisions)):
        session_id = f"s{number}"
        await lifecycle.record(
            [
                Touch(session_id=session_id, user_id=A, at=ended_at - 3 * MINUTE),
                End(session_id=session_id, user_id=A, status="failed", at=ended_at),
            ]
        )
        await lifecycle.record([event.model_copy(update={"session_id": session_id}) for event in order])
        found = await lifecycle.get_session_row(session_id, A)
        assert found is not None
        answers.add((found.record.tokens_in, found.record.cost_usd, found.record.late_events))
    assert answers == {(11, Decimal(1), 0)}
    await assert_totals_agree(session_database)


async def test_R07_unpriced_is_null_and_counted(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    receipt = await lifecycle.accumulate_usage("s", A, "no-such-model", 10)
    assert (receipt.outcome, receipt.cost_usd, receipt.session_cost_usd) == ("applied", None, Decimal(0))
    assert (await lifecycle.accumulate_usage("s", A, "m", 1, cost_usd=0.1)).cost_usd == Decimal("0.1")
    assert (await lifecycle.aggregate_stats(A)).unpriced_events == 1


async def test_R08_the_first_end_wins_and_a_reopened_session_runs(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    await lifecycle.ensure_and_touch_session("s", A, at=datetime.now(UTC) - timedelta(days=1))
    assert await lifecycle.reopen_session("s", A) == "already_running"
    assert await lifecycle.reopen_session("t", A) == "unknown"
    ended = await asyncio.gather(*(lifecycle.end_session("s", A, SessionStatus.FAILED) for _ in range(8)))
    assert sorted(ended) == ["already_ended"] * 7 + ["ended"]
    assert await lifecycle.reopen_session("s", A) == "reopened"
    found = await lifecycle.get_session_row("s", A)
    assert found is not None
    assert (found.effective_status, found.record.ended_at) == ("running", None)


async def test_R09_the_clock_moves_inside_a_hosts_transaction(session_database: SessionDatabase) -> None:
    async with session_database.engine.connect() as host:
        bound = session_database.bind(host)
        for session in ("first", "second"):
            await bound.lifecycle.ensure_and_touch_session(session, A)
            await asyncio.sleep(0.01)
        await host.commit()
    page = await session_database.lifecycle.list_session_rows(SessionListFilters(user_id=A, order_by="started_at"))
    second, first = (row.record for row in page.sessions)
    assert (first.session_id, second.session_id) == ("first", "second")
    assert second.started_at - first.started_at >= timedelta(milliseconds=10)


async def test_R10_batches_in_opposite_order_do_not_deadlock(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle

    def batch(names: Sequence[int], caller: int, number: int) -> list[UsageEvent]:
        return [
            UsageEvent(
                session_id=f"s{name}",
                user_id=(A, B)[name % 2],
                model="m",
                tokens_in=1,
                cost_usd=Decimal("0.01"),
                idempotency_key=f"{caller}-{number}-{name}" if name % 3 else f"shared-{number}-{name}",
                key_scope="session" if name % 3 else "user",
            )
            for name in names
        ]

    async def call(caller: int) -> None:
        names = list(range(8))
        for number in range(15):
            random.Random(caller * 100 + number).shuffle(names)
            await lifecycle.record(batch(names, caller, number))
            await lifecycle.accumulate_usage(f"s{names[0]}", A, "m", 0, cost_usd=0, errored=True)

    await asyncio.gather(*(call(caller) for caller in range(10)))
    assert await deadlocks(session_database) == 0
    counted = await lifecycle.aggregate_stats(Viewer(A, agent_user_ids=[B]))
    # Per number: 10 callers times the 5 names with a key of their own, and 3 names that all callers share.
    assert counted.tokens_in == 15 * (10 * 5 + 3)
    await assert_totals_agree(session_database)


async def test_R10_a_hosts_transaction_is_read_committed(session_database: SessionDatabase) -> None:
    async with session_database.engine.connect() as host:
        await host.execution_options(isolation_level="REPEATABLE READ")
        with pytest.raises(TransactionConflictError, match="expected READ COMMITTED"):
            await session_database.bind(host).lifecycle.ensure_and_touch_session("s", A)


async def test_R11_only_the_auditor_sees_all(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    await lifecycle.accumulate_usage("s", A, "m", 1, cost_usd=1)
    stranger = Viewer(C, [D1], [B])
    assert await lifecycle.get_session_row("s", stranger) is None
    assert await lifecycle.get_session_row("s", stranger, owner_id=A) is None
    for search in ({"owner_id": A}, {"cursor": None}, {"total": "bounded"}):
        page = await lifecycle.list_session_rows(SessionListFilters(viewer=stranger, **search))
        assert (page.sessions, page.total) == ([], 0)
    assert (await lifecycle.aggregate_stats(stranger)).sessions == 0
    assert await lifecycle.cost_by_model(stranger) == []
    assert (await lifecycle.aggregate_stats(Viewer.auditor())).sessions == 1


async def test_R11_a_cursor_of_another_viewer_is_refused(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    for session in ("one", "two"):
        await lifecycle.ensure_and_touch_session(session, A)
    page = await lifecycle.list_session_rows(SessionListFilters(user_id=A, limit=1))
    for other in ({"user_id": B}, {"user_id": A, "order_by": "cost_usd"}, {"user_id": A, "status_filter": "failed"}):
        with pytest.raises(InvalidValueError, match="cursor"):
            await lifecycle.list_session_rows(SessionListFilters(cursor=page.next_cursor, **other))


async def test_R12_every_read_gives_the_same_effective_status(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    lifecycle, now = session_database.lifecycle, await session_clock.freeze()
    for seconds in (1799, 1800, 1801):
        await lifecycle.ensure_and_touch_session(str(seconds), A, at=now - timedelta(seconds=seconds))
    stats = await lifecycle.aggregate_stats(A)
    assert (stats.running, stats.abandoned) == (2, 1)
    for status, expected in (("running", ["1799", "1800"]), ("abandoned", ["1801"])):
        page = await lifecycle.list_session_rows(SessionListFilters(user_id=A, status_filter=status))
        assert [row.record.session_id for row in page.sessions] == expected
        for row in page.sessions:
            assert row.effective_status == status
            assert await lifecycle.get_session_row(row.record.session_id, A) == row


async def test_R13_ties_follow_the_key_in_the_same_direction(session_database: SessionDatabase) -> None:
    lifecycle, at = session_database.lifecycle, datetime.now(UTC)
    for session, user in itertools.product("aÄz", (A, B)):
        await lifecycle.ensure_and_touch_session(session, user, at=at)
    viewer = Viewer.of_users([A, B])
    for descending in (True, False):
        page = await lifecycle.list_session_rows(SessionListFilters(viewer=viewer, descending=descending))
        keys = [(row.record.user_id, row.record.session_id) for row in page.sessions]
        assert keys == sorted(keys, reverse=descending)


async def test_R14_all_pages_of_a_walk_use_the_first_pages_clock(
    session_database: SessionDatabase, session_clock: SessionClock
) -> None:
    lifecycle = session_database.lifecycle
    await session_clock.freeze()
    for number in range(6):
        await lifecycle.ensure_and_touch_session(str(number), A)
    seen, cursor = [], None
    for _ in range(3):
        filters = SessionListFilters(user_id=A, limit=2, status_filter="running", cursor=cursor)
        page = await lifecycle.list_session_rows(filters)
        seen += [row.record.session_id for row in page.sessions]
        cursor = page.next_cursor
        await session_clock.advance(timedelta(hours=1))
    assert (seen, cursor) == (list("543210"), None)


async def test_R15_agents_come_before_strangers(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    await lifecycle.ensure_and_touch_session("s", C)
    await lifecycle.ensure_and_touch_session("s", B, D1)
    viewer = Viewer(A, [D1], [C])
    found = await lifecycle.get_session_row("s", viewer)
    assert found is not None
    assert found.record.user_id == C


async def test_R16_averages_are_rounded_half_even(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    await lifecycle.ensure_and_touch_session("empty", A)
    await lifecycle.accumulate_usage("s", A, "m", cost_usd=Decimal("0.0000000001"))
    stats = await lifecycle.aggregate_stats(A)
    assert (stats.total_spend_usd, stats.avg_spend_per_session_usd) == (Decimal("1e-10"), Decimal(0))
    await lifecycle.accumulate_usage("s", A, "m", cost_usd=Decimal("0.0000000002"))
    assert (await lifecycle.aggregate_stats(A)).avg_spend_per_session_usd == Decimal("2e-10")


async def test_R17_costs_sum_to_the_spend_of_the_same_window(session_database: SessionDatabase) -> None:
    lifecycle, now = session_database.lifecycle, datetime.now(UTC)
    for number in range(10):
        model = ("one", "two", "unknown", None)[number % 4]
        cost = Decimal(f"0.{number}7")
        await lifecycle.accumulate_usage(f"s{number % 6}", A, model, number, cost_usd=cost, at=now - number * MINUTE)
    for since, until in ((None, None), (now - 4 * MINUTE, None), (now - 4 * MINUTE, now - MINUTE)):
        costs = await lifecycle.cost_by_model(A, since=since, until=until)
        stats = await lifecycle.aggregate_stats(A, since=since, until=until)
        assert sum(row.cost_usd for row in costs) == stats.total_spend_usd
        assert [row.cost_usd for row in costs] == sorted((row.cost_usd for row in costs), reverse=True)
        assert len({row.model for row in costs}) == len(costs)


async def test_R18_a_page_and_its_total_are_of_one_snapshot(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    filters = SessionListFilters(user_id=A, limit=500)
    done = asyncio.Event()

    async def grow() -> None:
        for number in range(150):
            await lifecycle.ensure_and_touch_session(str(number), A)
        done.set()

    growing = asyncio.create_task(grow())
    sizes = set()
    while not done.is_set():
        page = await lifecycle.list_session_rows(filters)
        assert page.total == len(page.sessions)
        sizes.add(page.total)
    await growing
    assert len(sizes) > 1


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("tokens_in", 10**12 + 1),
        ("tokens_out", 1.0),
        ("cost_usd", 10**9 + 1),
        ("cost_usd", float("inf")),
        ("cost_usd", "a tenth"),
        ("model", "a\x00"),
        ("model", "\ud800"),
        ("user_id", "nobody"),
        ("at", datetime.fromisoformat("9999-12-31T23:59:59.999999")),
        ("idempotency_key", ""),
    ],
)
async def test_R19_a_refusal_names_field_value_and_what_is_expected(
    session_database: SessionDatabase, field: str, bad: object
) -> None:
    call: dict[str, Any] = {"session_id": "s", "user_id": A, "model": "m", "tokens_in": 1, field: bad}
    with pytest.raises(InvalidValueError) as refused:
        await session_database.lifecycle.accumulate_usage(**call)
    assert refused.value.field == field
    shown = bad.isoformat() if isinstance(bad, datetime) else ascii(bad)
    assert str(refused.value).startswith(f"{field}: got {shown}, expected ")
    assert await rows(session_database, f"SELECT 1 FROM {SCHEMA}.session_records") == []


async def test_R20_a_schema_that_vanishes_later_is_recognised(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.ensure_and_touch_session("s", A)
    async with session_database.engine.begin() as connection:
        await connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))
    for call in (
        session_database.lifecycle.ensure_and_touch_session("s", A),
        session_database.lifecycle.get_session_row("s", A),
    ):
        with pytest.raises(SchemaError, match="session-lifecycle db upgrade"):
            await call
