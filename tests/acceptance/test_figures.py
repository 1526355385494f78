"""Rows of the lifecycle table about figures, prices, schema, host transactions and call shapes."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from session_lifecycle import SchemaError, SessionDatabase, SessionListFilters, SessionStatus, Viewer
from session_lifecycle.testing import SessionClock
from support.world import World

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


async def test_L37_stats_sum_five_sessions(world: World, session_clock: SessionClock) -> None:
    now = await session_clock.freeze()
    lives = [("1", "completed", "0.10", 100, 200), ("2", "completed", "0.20", 100, 200), ("3", "failed", "0.05", 50, 0)]
    for session, status, cost, tokens_in, tokens_out in lives:
        await world.touch(session, at=now - 60 * SECOND)
        await world.use("m", tokens_in, tokens_out, Decimal(cost), session_id=session, at=now - 30 * SECOND)
        await world.lifecycle.end_session(session, world.a, SessionStatus(status), at=now - 10 * SECOND)
    for session in ("4", "5"):
        await world.touch(session, at=now - 60 * SECOND)
        await world.touch(session)
    stats = await world.lifecycle.aggregate_stats(world.a)
    assert (stats.sessions, stats.total_spend_usd, stats.avg_spend_per_session_usd) == (
        5,
        Decimal("0.35"),
        Decimal("0.07"),
    )
    assert (stats.tokens_in, stats.tokens_out, stats.tokens_total) == (250, 400, 650)
    assert (stats.completed, stats.failed, stats.abandoned, stats.running) == (2, 1, 0, 2)
    assert (stats.success_rate, stats.agent_time_s, stats.avg_session_s) == (2 / 3, 270, 54)


async def test_L38_stats_of_no_sessions_are_zeros(world: World) -> None:
    figures = (await world.lifecycle.aggregate_stats(world.a)).model_dump()
    assert figures.pop("success_rate") == 1.0
    assert set(figures.values()) == {0}


async def test_L39_running_sessions_are_no_failure(world: World) -> None:
    await world.touch()
    assert (await world.lifecycle.aggregate_stats(world.a)).success_rate == 1.0


async def test_L40_an_end_before_the_start_lasts_nothing(world: World) -> None:
    await world.sql(
        "INSERT INTO session_lifecycle.session_records "
        "(user_id, session_id, status, started_at, last_activity_at, ended_at) "
        "VALUES (:a, 's', 'completed', now(), now(), now() - interval '1 hour')",
        a=world.a,
    )
    stats = await world.lifecycle.aggregate_stats(world.a)
    assert (stats.sessions, stats.agent_time_s) == (1, 0)


async def test_L41_cost_by_model_sums_two_sessions(world: World) -> None:
    await world.use("gpt-4o", 100, 50, Decimal("0.10"), session_id="s1")
    await world.use("mini", 20, 10, Decimal("0.005"), session_id="s1")
    await world.use("gpt-4o", 80, 40, Decimal("0.08"), session_id="s2")
    rows = await world.lifecycle.cost_by_model(world.a)
    assert [(row.model, row.session_count, row.cost_usd, row.tokens_in, row.tokens_out) for row in rows] == [
        ("gpt-4o", 2, Decimal("0.18"), 180, 90),
        ("mini", 1, Decimal("0.005"), 20, 10),
    ]


async def test_L42_equal_ids_of_two_users_are_two_sessions(world: World) -> None:
    await world.use("gpt-4o", 1, user=world.a)
    await world.touch("s", world.b, world.d1)
    await world.use("gpt-4o", 1, user=world.b)
    [row] = await world.lifecycle.cost_by_model(world.a, [world.d1])
    assert row.session_count == 2


async def test_L43_usage_without_a_model_is_unknown(world: World) -> None:
    await world.use(cost_usd=Decimal("0.5"))
    await world.use("gpt-4o", 10, 5, Decimal("0.25"))
    costs = {row.model: row.cost_usd for row in await world.lifecycle.cost_by_model(world.a)}
    assert costs == {"unknown": Decimal("0.5"), "gpt-4o": Decimal("0.25")}
    assert sum(costs.values()) == (await world.lifecycle.aggregate_stats(world.a)).total_spend_usd


async def test_L44_a_model_without_a_price_is_unpriced(world: World) -> None:
    assert (await world.use("no-such-model", 10, 5)).cost_usd is None
    [event] = await world.ledger()
    [by_model] = await world.lifecycle.cost_by_model(world.a)
    stats = await world.lifecycle.aggregate_stats(world.a)
    assert event["cost_usd"] is None
    assert ((await world.row()).unpriced_events, by_model.unpriced_events, stats.unpriced_events) == (1, 1, 1)
    assert stats.total_spend_usd == 0


async def test_L45_the_catalogue_prices_what_has_no_cost(world: World) -> None:
    assert (await world.use("gpt-4o-mini", 1000, 500)).cost_usd == Decimal("0.00045")
    [event] = await world.ledger()
    assert (event["cost_usd"], event["given_cost_usd"]) == (Decimal("0.00045"), None)
    assert event["price_source"].startswith("genai-prices")
    assert event["unit_prices"]["input_mtok"] == "0.15"


@pytest.mark.parametrize("as_session", [False, True])
@pytest.mark.parametrize("savepoints", [False, True])
async def test_L48_the_hosts_rollback_takes_ours_back(world: World, as_session: bool, savepoints: bool) -> None:
    async with AsyncSession(world.db.engine) if as_session else world.db.engine.connect() as host:
        bound = world.db.bind(host, savepoints=savepoints)
        receipt = await bound.lifecycle.accumulate_usage("s", world.a, "m", 10, 5, 1)
        assert (receipt.outcome, await world.counts()) == ("applied", (0, 0, 0))
        await host.rollback()
    assert await world.counts() == (0, 0, 0)


@pytest.mark.parametrize(
    ("statements", "command"),
    [
        (["DROP SCHEMA session_lifecycle CASCADE"], "session-lifecycle db upgrade"),
        (["DELETE FROM session_lifecycle.session_lifecycle_version"], "session-lifecycle db upgrade"),
        (["DROP FUNCTION session_lifecycle.reprice_v1"], "session-lifecycle db upgrade"),
        (
            [
                "UPDATE session_lifecycle.session_lifecycle_version SET version_num = '9999'",
                "DROP FUNCTION session_lifecycle.oldest_served_version_v1",
            ],
            "pip install --upgrade session-lifecycle",
        ),
    ],
    ids=["without tables", "without a revision", "behind", "ahead"],
)
async def test_L49_another_schema_names_the_command_to_run(
    world: World, session_database_url: str, statements: list[str], command: str
) -> None:
    for statement in statements:
        await world.sql(statement)
    async with SessionDatabase.connect(session_database_url) as db:
        for call in (db.check(), db.lifecycle.ensure_and_touch_session("s", world.a)):
            with pytest.raises(SchemaError, match=command):
                await call
    [schema] = await world.sql("SELECT to_regclass('session_lifecycle.session_records') IS NOT NULL AS is_there")
    if schema["is_there"]:
        assert await world.counts() == (0, 0, 0)


REFERENCE_KEYS = [
    "session_id",
    "user_id",
    "dataset_id",
    "status",
    "started_at",
    "last_activity_at",
    "ended_at",
    "tokens_in",
    "tokens_out",
    "cost_usd",
    "error_count",
    "last_model",
]


async def test_L50_a_row_has_the_references_keys_first(world: World) -> None:
    await world.use("gpt-4o", 10, 5, 0.25)
    values = (await world.found()).to_dict()
    assert list(values)[:12] == REFERENCE_KEYS
    assert list(values)[-1] == "effective_status"
    assert (values["user_id"], values["cost_usd"], values["effective_status"]) == (str(world.a), 0.25, "running")
    assert values["started_at"].endswith("+00:00")


async def test_L53_the_databases_clock_decides_what_is_too_far_ahead(
    world: World, session_clock: SessionClock, refuses: Any
) -> None:
    now = await session_clock.freeze(datetime(2030, 1, 1, tzinfo=UTC))
    assert await world.touch(at=now + 4 * MINUTE) == "created"
    assert (await world.use("m", 1, at=now + 4 * MINUTE)).outcome == "applied"
    before = await world.row()
    for call in (world.touch(at=now + 6 * MINUTE), world.use("m", 1, at=now + 6 * MINUTE)):
        with refuses("at"):
            await call
    assert await world.row() == before


async def test_L54_owner_id_chooses_one_owners_session(world: World) -> None:
    await world.touch("s", world.a)
    await world.touch("s", world.b, world.d1)
    viewer = Viewer(world.a, [world.d1])
    found = await world.found("s", viewer, owner_id=world.b)
    page = await world.lifecycle.list_session_rows(SessionListFilters(viewer=viewer, owner_id=world.b))
    assert [found.record.user_id, *(row.record.user_id for row in page.sessions)] == [world.b, world.b]


async def test_L55_the_references_call_shape_works(world: World) -> None:
    await world.lifecycle.accumulate_usage("s", world.a, "gpt-4o", 100, 50, 0.012, False)
    assert (await world.row()).cost_usd == Decimal("0.012")


async def test_L57_totals_are_exact_bounded_or_none(world: World) -> None:
    await world.sql(
        "INSERT INTO session_lifecycle.session_records (user_id, session_id) "
        "SELECT :a, n FROM generate_series(1, 12000) n",
        a=world.a,
    )

    async def total(kind: str) -> tuple[int | None, bool]:
        page = await world.lifecycle.list_session_rows(SessionListFilters(user_id=world.a, total=kind))
        return page.total, page.total_is_lower_bound

    assert await total("exact") == (12_000, False)
    assert await total("bounded") == (10_000, True)
    assert await total("none") == (None, False)


async def test_L58_each_status_filter_finds_its_session(world: World) -> None:
    await world.touch("running")
    await world.touch("abandoned", at=datetime.now(UTC) - timedelta(hours=1))
    for status in ("completed", "failed"):
        await world.touch(status)
        await world.lifecycle.end_session(status, world.a, SessionStatus(status))
    for status in ("running", "abandoned", "completed", "failed"):
        assert await world.listed(status_filter=status) == [status]
