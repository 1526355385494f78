"""Rows of the money table that the database decides: what an event adds, what the sums are, and that they are exact.

`tests/unit/money/` has the rows that the price catalogue decides alone.
"""

import decimal
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from session_lifecycle import End, Run, SessionDatabase, SessionStatus, UsageEvent
from session_lifecycle.models import PriceOverride
from support.usage import A, outcomes
from support.world import World

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
PLAN = ("plan_events", "plan_tokens_in", "plan_tokens_out", "plan_cost_usd", "plan_unpriced_events")
SONNET = "claude-sonnet-4-5"


async def priced(world: World, model: str, tokens_in: int, tokens_out: int, **more: Any) -> Decimal | None:
    """The cost of an event at the time of the table, from the event's receipt."""
    use = {"model": model, "tokens_in": tokens_in, "tokens_out": tokens_out, "at": AT, **more}
    return (await world.event(**use)).cost_usd


async def sums(world: World) -> list[Any]:
    """What the session, its row by model, the stats and the spend say of the one session of A."""
    [by_model] = await world.lifecycle.cost_by_model(A)
    return [
        await world.row(),
        by_model,
        await world.lifecycle.aggregate_stats(A),
        await world.db.reports.spend(A),
    ]


async def costs(world: World) -> set[Decimal]:
    """The cost by each of the sums; one amount where they agree."""
    stats = await world.lifecycle.aggregate_stats(A)
    by_model = await world.lifecycle.cost_by_model(A)
    spend = await world.db.reports.spend(A)
    return {(await world.row()).cost_usd, *(row.cost_usd for row in by_model), stats.total_spend_usd, spend.cost_usd}


async def is_consistent(world: World) -> bool:
    return (await world.db.maintenance.reconcile()).mismatches == []


@contextmanager
def host_context(places: int, *traps: Any) -> Generator[None]:
    """A host's decimal context, in which the operations of `Decimal` round or raise."""
    with decimal.localcontext(decimal.Context(prec=places, traps=list(traps))):
        yield


TRAPS = (decimal.Inexact, decimal.FloatOperation)
CONTEXTS = pytest.mark.parametrize(("places", "traps"), [(6, ()), (3, TRAPS)])


# Parts


async def test_M05_details_give_the_parts_that_no_field_gives(world: World) -> None:
    cached = {"cache_write_tokens": 900, "details": {"ephemeral_1h_input_tokens": 900}}
    assert await priced(world, SONNET, 1000, 10, **cached) == Decimal("0.00585")
    assert await priced(world, SONNET, 1000, 10, **cached, cache_write_1h_tokens=400) == Decimal("0.004725")
    assert await priced(world, SONNET, 1000, 500, details={"web_search_requests": 3}) == Decimal("0.0405")
    row = await world.row()
    assert (row.cache_write_tokens, row.cache_write_1h_tokens, row.web_searches) == (1800, 1300, 3)
    assert row.cost_usd == Decimal("0.051075")
    assert [event["details"] for event in await world.ledger()] == [cached["details"]] * 2 + [
        {"web_search_requests": 3}
    ]
    assert await is_consistent(world)


async def test_M13_searches_without_tokens_are_usage(world: World) -> None:
    receipt = await world.event(model=SONNET, web_searches=2, at=AT)
    assert (receipt.outcome, receipt.cost_usd) == ("applied", Decimal("0.02"))
    for found in await sums(world):
        assert (found.tokens_in, found.tokens_out) == (0, 0)
    assert await costs(world) == {Decimal("0.02")}
    [by_model] = await world.lifecycle.cost_by_model(A)
    assert (by_model.events, by_model.web_searches, (await world.row()).web_searches) == (1, 2, 2)
    unpriced = await world.event(session_id="t", model="no-such-model", web_searches=1, at=AT)
    assert (unpriced.outcome, unpriced.cost_usd) == ("applied", None)
    assert (await world.row("t")).unpriced_events == 1
    assert await is_consistent(world)


@pytest.mark.parametrize(
    "refused",
    [
        {"audio_tokens_in": 6},
        {"cache_write_tokens": 5, "cache_write_1h_tokens": 6},
        {"cache_read_tokens": 5, "audio_tokens_in": 4, "cache_read_audio_tokens": 5},
        {"reasoning_tokens": 6, "audio_tokens_out": 5},
        *({"web_searches": count} for count in (-1, True, 1.0)),
        *({"service_tier": "turbo"}, {"billing": "free"}, {"kind": "x"}),
    ],
)
async def test_M17_what_cannot_be_is_refused_by_name(world: World, refuses: Any, refused: dict[str, Any]) -> None:
    *_, field = refused
    with refuses(field):
        await world.use("m", 5, 10, **refused)
    assert await world.counts() == (0, 0, 0)


async def test_M18_a_cost_that_is_given_is_never_unpriced(world: World) -> None:
    given = {"audio_tokens_out": 482, "cost_usd": Decimal("0.03")}
    assert await priced(world, "gpt-4o-audio-preview", 17, 592, **given) == Decimal("0.03")
    assert await priced(world, "gpt-4o", 10, 5, service_tier="flex", cost_usd=1) == 1
    assert (await world.row()).unpriced_events == 0


async def test_M19_every_part_is_content_of_its_key(world: World) -> None:
    event = UsageEvent(
        session_id="s", user_id=A, model="gpt-realtime", tokens_in=1000, audio_tokens_in=900, at=AT, idempotency_key="k"
    )
    others: list[dict[str, Any]] = [
        {"audio_tokens_in": 901},
        {"billing": "plan"},
        {"service_tier": "batch"},
        {"kind": "embedding"},
    ]
    others += [{"web_searches": 1}]
    receipts = await world.record(event, event, *(event.model_copy(update=other) for other in others))
    assert outcomes(receipts) == ["applied", "duplicate", *["conflict"] * 5]
    assert await costs(world) == {Decimal("0.0292")}
    revised = event.model_copy(update={"revision": 1, "audio_tokens_in": 800})
    assert outcomes(await world.record(revised)) == ["replaced"]
    assert await costs(world) == {Decimal("0.0264")}
    [stored] = await world.ledger()
    assert (stored["cost_usd"], stored["parts"]) == (Decimal("0.0264"), {"audio_tokens_in": 800})
    assert await is_consistent(world)


async def test_M33_the_standard_tier_is_the_default(world: World) -> None:
    event = UsageEvent(session_id="s", user_id=A, model="gpt-4o", tokens_in=1000, at=AT, idempotency_key="k")
    said = UsageEvent(**{**event.model_dump(exclude_defaults=True), "service_tier": "standard"})
    assert outcomes(await world.record(event, said)) == ["applied", "duplicate"]
    assert await costs(world) == {Decimal("0.0025")}


# Who bills, by which name


async def test_M48_names_that_differ_in_case_and_outer_spaces_are_one_model(
    world: World, session_database_url: str
) -> None:
    names = [(" GPT-4o ", "OpenAI"), ("gpt-4o\t", None), ("gpt-4o", " openai ")]
    for model, provider in names:
        assert await priced(world, model, 1000, 1000, provider=provider) == Decimal("0.0125")
    [by_model] = await world.lifecycle.cost_by_model(A)
    assert (by_model.model.lower(), by_model.events, by_model.session_count) == ("gpt-4o", 3, 1)
    assert [event["model"] for event in await world.ledger()] == ["GPT-4o", "gpt-4o", "gpt-4o"]
    override = PriceOverride(model_pattern="gpt-4o*", input_usd_per_million=1, output_usd_per_million=2)
    async with SessionDatabase.connect(session_database_url, prices=[override]) as own:
        receipt = await own.lifecycle.accumulate_usage("t", A, " GPT-4o ", 1000, 1000)
    assert receipt.cost_usd == Decimal("0.003")
    assert await is_consistent(world)


async def test_M48_one_batch_of_many_spellings_is_one_row(world: World) -> None:
    spellings = ["gpt-4o", "GPT-4O", " Gpt-4o", "gPt-4o\n"]
    events = [UsageEvent(session_id="s", user_id=A, model=name, tokens_in=10, cost_usd=1) for name in spellings]
    await world.touch()
    await world.record(*events)  # the short way
    await world.record(*events, *(event.model_copy(update={"partial": True}) for event in events))  # the long way
    [by_model] = await world.lifecycle.cost_by_model(A)
    assert (by_model.events, by_model.cost_usd, by_model.session_count) == (12, Decimal(12), 1)
    await world.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    await world.db.maintenance.roll_up()
    assert await world.lifecycle.cost_by_model(A) == [by_model]
    assert await is_consistent(world)


@pytest.mark.parametrize("named", ["unknown", "Unknown"])
async def test_M48_usage_without_a_model_and_of_a_model_called_unknown(world: World, named: str) -> None:
    await world.use(None, 10, 5, 1)
    await world.use(named, 10, 5, 2)
    [by_model] = await world.lifecycle.cost_by_model(A)
    assert (by_model.model.lower(), by_model.cost_usd, by_model.session_count) == ("unknown", Decimal(3), 1)
    await world.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    await world.db.maintenance.roll_up()
    assert await world.lifecycle.cost_by_model(A) == [by_model]


# Prices anew

EVERY_PART: list[tuple[dict[str, Any], str]] = [
    ({"model": SONNET, "tokens_in": 1000, "tokens_out": 10, "cache_write_tokens": 900, "cache_write_1h_tokens": 400},
     "0.004725"),
    ({"model": "gpt-realtime", "provider": "openai", "tokens_in": 1000, "tokens_out": 200, "audio_tokens_in": 700,
      "image_tokens_in": 100, "cache_read_tokens": 400, "cache_read_audio_tokens": 300, "audio_tokens_out": 150},
     "0.02426"),
    ({"model": "gpt-image-1", "provider": "openai", "tokens_in": 1000, "image_tokens_in": 600, "cache_read_tokens": 300,
      "cache_read_image_tokens": 200}, "0.006125"),
    ({"model": "gemini-2.5-flash-image", "provider": "google", "tokens_in": 10, "tokens_out": 1290,
      "image_tokens_out": 1290}, "0.038703"),
    ({"model": "gemini-embedding-2", "provider": "google", "tokens_in": 1000, "video_tokens_in": 900,
      "image_tokens_in": 50, "kind": "embedding"}, "0.0108325"),
    ({"model": SONNET, "web_searches": 2}, "0.02"),
    ({"model": SONNET, "tokens_in": 1000, "tokens_out": 500, "web_searches": 3, "billing": "plan"}, "0.0405"),
    ({"model": "o3", "provider": "openai", "tokens_in": 100, "tokens_out": 1000, "reasoning_tokens": 900}, "0.0082"),
    ({"model": "gpt-5.4", "provider": "openai", "tokens_in": 272_001, "cache_read_tokens": 100_000,
      "service_tier": "flex"}, "0.4550025"),
    ({"model": SONNET, "provider": "anthropic", "tokens_in": 100_000, "tokens_out": 1000,
      "cache_write_tokens": 100_000, "cache_write_1h_tokens": 100_000, "web_searches": 1, "service_tier": "batch"},
     "0.3175"),
    ({"model": "gpt-4o", "provider": "openai", "tokens_in": 1000, "tokens_out": 500, "cache_read_tokens": 400,
      "partial": True}, "0.007"),
]  # fmt: skip
"""Events that use every part, and the price of each."""


def with_batch_price(url: str) -> SessionDatabase:
    override = PriceOverride(
        model_pattern="gpt-4o", service_tier="batch", input_usd_per_million="1.25", output_usd_per_million=5
    )
    return SessionDatabase.connect(url, prices=[override])


async def test_M54_reprice_keeps_the_tier(world: World, session_database_url: str) -> None:
    use = {"service_tier": "batch", "at": datetime(2026, 10, 1, tzinfo=UTC)}
    assert await priced(world, "gpt-4o", 1_000_000, 1_000_000, **use) is None
    assert [found.unpriced_events for found in await sums(world)] == [1] * 4
    async with with_batch_price(session_database_url) as own:
        report = await own.maintenance.reprice("gpt-4o")
    assert (report.events, report.cost_before_usd, report.cost_after_usd) == (1, Decimal(0), Decimal("6.25"))
    assert [found.unpriced_events for found in await sums(world)] == [0] * 4
    assert await costs(world) == {Decimal("6.25")}
    assert await is_consistent(world)


async def test_M54_reprice_changes_no_event_whose_price_is_the_same(world: World) -> None:
    for number, (use, expected) in enumerate(EVERY_PART):
        assert (await world.event(session_id=f"s{number}", at=AT, **use)).cost_usd == Decimal(expected)
    before = await world.ledger()
    report = await world.db.maintenance.reprice()
    assert (report.looked_at, report.events) == (len(EVERY_PART), 0)
    assert await world.ledger() == before
    assert await is_consistent(world)


async def test_M54_a_new_price_of_plan_usage_is_no_cost(world: World, session_database_url: str) -> None:
    use = {"service_tier": "batch", "at": datetime(2026, 10, 1, tzinfo=UTC), "billing": "plan"}
    assert await priced(world, "gpt-4o", 1_000_000, 1_000_000, **use, run_id="r") is None
    assert {found.plan_unpriced_events for found in await sums(world)} == {1}
    async with with_batch_price(session_database_url) as own:
        dry = await own.maintenance.reprice("gpt-4o", dry_run=True)
        report = await own.maintenance.reprice("gpt-4o")
        again = await own.maintenance.reprice("gpt-4o")
    assert (report.events, again.events) == (1, 0)
    assert (dry.cost_before_usd, dry.cost_after_usd) == (report.cost_before_usd, report.cost_after_usd)
    for found in await sums(world):
        plan = {name: getattr(found, name) for name in PLAN}
        assert list(plan.values()) == [1, 1_000_000, 1_000_000, Decimal("6.25"), 0]
    assert await costs(world) == {Decimal(0)}
    assert await is_consistent(world)


# Plan


async def test_M55_plan_usage_counts_in_tokens_and_in_no_cost(world: World) -> None:
    await world.event(model="gpt-4o-mini", tokens_in=1000, tokens_out=500)
    receipt = await world.event(model="gpt-4o-mini", tokens_in=1000, tokens_out=500, billing="plan")
    assert (receipt.cost_usd, receipt.session_cost_usd) == (Decimal("0.00045"), Decimal("0.00045"))
    assert receipt.session_tokens_in == 2000
    for found in await sums(world):
        assert (found.tokens_in, found.tokens_out) == (2000, 1000)
        assert [getattr(found, name) for name in PLAN] == [1, 1000, 500, Decimal("0.00045"), 0]
    assert await costs(world) == {Decimal("0.00045")}
    await world.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    before = await sums(world)
    await world.db.maintenance.roll_up()
    assert await sums(world) == before
    assert await is_consistent(world)


async def test_M56_plan_usage_without_a_price_with_a_given_one_and_late(world: World) -> None:
    await world.event(model="no-such-model", tokens_in=10, tokens_out=5, billing="plan")
    await world.event(model="gpt-4o", tokens_in=10, tokens_out=5, billing="plan", cost_usd=0.5)

    async def figures() -> list[Any]:
        return [await world.row(), await world.db.reports.spend(A)]

    row, spend = await figures()
    for found in (row, spend, await world.lifecycle.aggregate_stats(A)):
        assert (found.plan_unpriced_events, found.unpriced_events) == (1, 0)
        assert found.plan_cost_usd == Decimal("0.5")
    assert row.cost_usd == spend.cost_usd == 0
    await world.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    late = await world.event(model="gpt-4o-mini", tokens_in=1000, tokens_out=500, billing="plan")
    assert (late.outcome, late.cost_usd) == ("frozen", Decimal("0.00045"))
    for before, after in zip((row, spend), await figures(), strict=True):
        expected = {**{name: getattr(before, name) for name in PLAN}, "late_events": 1, "late_cost_usd": 0}
        expected |= {"tokens_in": 20, "cost_usd": 0}
        assert {name: getattr(after, name) for name in expected} == expected
    assert await is_consistent(world)


async def test_M57_a_revision_moves_usage_between_api_and_plan(world: World) -> None:
    keyed = {"model": "m", "tokens_in": 10, "idempotency_key": "k"}
    await world.event(**keyed, cost_usd=0.1)
    await world.event(**keyed, cost_usd=0.1, billing="plan", revision=1)
    assert (await world.row()).plan_cost_usd == Decimal("0.1")
    assert await costs(world) == {Decimal(0)}
    keyed["idempotency_key"] = "j"
    await world.event(**keyed, cost_usd=0.2, billing="plan")
    receipt = await world.event(**keyed, cost_usd=0.2, revision=1)
    assert receipt.session_cost_usd == Decimal("0.2")
    for found in await sums(world):
        assert [getattr(found, name) for name in PLAN] == [1, 10, 0, Decimal("0.1"), 0]
    assert await costs(world) == {Decimal("0.2")}
    assert await is_consistent(world)


# Exactness


@CONTEXTS
async def test_M58_X01_money_is_exact_in_any_decimal_context(
    session_database_url: str, places: int, traps: tuple[Any, ...]
) -> None:
    cost, total = Decimal("0.123456789"), Decimal("0.370370367")
    keyed = UsageEvent(session_id="s", user_id=A, model="m", tokens_in=1, cost_usd=cost, idempotency_key="k")
    with host_context(places, *traps):
        async with SessionDatabase.connect(session_database_url) as db:
            world = World(db)
            for expected in ("0.123456789", "0.246913578"):
                receipt = await world.use("m", 1, 0, cost)
                assert (receipt.cost_usd, receipt.session_cost_usd) == (cost, Decimal(expected))
            assert outcomes(await world.record(keyed)) == ["applied"]
            assert [event["cost_usd"] for event in await world.ledger()] == [cost] * 3
            assert await costs(world) == {total}
            stats = await world.lifecycle.aggregate_stats(A)
            assert stats.avg_spend_per_session_usd == total
            [by_agent], [by_user] = await db.reports.cost_by_agent(A), await db.reports.cost_by_user(A)
            assert (by_agent.cost_usd, by_user.cost_usd) == (total, total)
            report = await db.reports.usage(A, group_by=("model",))
            assert [row.cost_usd for row in (*report.rows, report.total)] == [total, total]
            assert await is_consistent(world)
            again = UsageEvent(**{**keyed.model_dump(exclude_defaults=True), "cost_usd": Decimal("0.123456789")})
    async with SessionDatabase.connect(session_database_url) as db:
        assert outcomes(await db.lifecycle.record([again])) == ["duplicate"]


@CONTEXTS
async def test_M58_X01_reprice_adds_up_exactly(session_database_url: str, places: int, traps: tuple[Any, ...]) -> None:
    def own(price: str) -> SessionDatabase:
        override = PriceOverride(model_pattern="m", input_usd_per_million=price, output_usd_per_million=price)
        return SessionDatabase.connect(session_database_url, prices=[override])

    with host_context(places, *traps):
        async with own("0.123456789") as db:
            for _ in range(3):
                await db.lifecycle.accumulate_usage("s", A, "m", 1_000_001)
        async with own("0.987654321") as db:
            dry = await db.maintenance.reprice(dry_run=True, batch=2)
            done = await db.maintenance.reprice(batch=2)
            assert await costs(World(db)) == {Decimal("2.962965925962963")}
    for report in (dry, done):
        assert (report.events, report.cost_before_usd) == (3, Decimal("0.370370737370367"))
        assert report.cost_after_usd == Decimal("2.962965925962963")


NINES = Decimal("9.123456789012345678901234567891")
TOO_FINE = Decimal("1." + "0" * 30 + "1")


@pytest.mark.parametrize(("places", "traps"), [(28, ()), (6, ()), (3, TRAPS)])
async def test_M59_X01_thirty_decimals_are_kept_and_more_are_refused(
    session_database_url: str, refuses: Any, places: int, traps: tuple[Any, ...]
) -> None:
    with host_context(places, *traps):
        async with SessionDatabase.connect(session_database_url) as db:
            world = World(db)
            assert (await world.use("m", 1, 0, NINES)).cost_usd == NINES
            receipt = await world.use("m", 1, 0, Decimal("1E-30"))
            assert receipt.session_cost_usd == Decimal("9.123456789012345678901234567892")
            assert await costs(world) == {Decimal("9.123456789012345678901234567892")}
            before = await world.counts()
            for refused in (Decimal("1E-31"), 5e-324, TOO_FINE):
                with refuses("cost_usd"):
                    await world.use("m", 1, 0, refused)
            assert await world.counts() == before
            receipt = await world.use("m", 1, 0, Decimal("0.1" + "0" * 40), session_id="t")
            assert (receipt.cost_usd, receipt.session_cost_usd) == (Decimal("0.1"), Decimal("0.1"))


async def test_M60_a_float_counts_by_its_shortest_decimal_form(world: World) -> None:
    given = [(0.1 + 0.2, "0.30000000000000004"), (1e-7, "0.0000001"), (1 / 3, "0.3333333333333333")]
    for cost, expected in given:
        receipt = await world.use("m", 1, 0, cost, session_id=f"of {cost}")
        assert (receipt.cost_usd, receipt.session_cost_usd) == (Decimal(expected), Decimal(expected))
    for _ in range(10):
        await world.use("m", 1, 0, 0.1)
    assert (await world.row()).cost_usd == Decimal("1.0")


async def test_M61_computed_costs_are_exact(session_database_url: str) -> None:
    cached = {"cache_read_tokens": 1}
    use: list[tuple[Any, ...]] = [
        ("gpt-4o-mini", 999_999_999_999, {}, "149999.99999985"),
        ("gpt-4o-mini", 1, {}, "0.00000015"),
        ("amazon.nova-micro-v1:0", 1, cached, "0.00000000875"),
        ("deepseek-v4-pro", 1, {**cached, "at": datetime(2026, 8, 16, 12, tzinfo=UTC)}, "0.000000003625"),
    ]
    with host_context(3):
        async with SessionDatabase.connect(session_database_url) as db:
            world = World(db)
            for number, (model, tokens_in, more, expected) in enumerate(use):
                assert await priced(world, model, tokens_in, 0, **more) == Decimal(expected), number
            assert (await world.row()).cost_usd == Decimal("150000.000000012375")
            assert [event["cost_usd"] for event in await world.ledger()] == [Decimal(one[-1]) for one in use]


# Embeddings


async def test_M62_embeddings_have_the_prices_of_their_parts(world: World) -> None:
    use: list[tuple[Any, ...]] = [
        ("text-embedding-3-small", 8191, 0, {"provider": "openai"}, "0.00016382"),
        ("gemini-embedding-001", 8191, 0, {}, "0.00122865"),
        ("text-embedding-3-small", 8191, 5, {}, None),
        ("gemini-embedding-2", 1000, 0, {"service_tier": "batch", "audio_tokens_in": 1000}, "0.00325"),
        ("mistral-embed", 1000, 0, {"service_tier": "batch"}, "0.00005"),
    ]
    for model, tokens_in, tokens_out, more, expected in use:
        found = await priced(world, model, tokens_in, tokens_out, kind="embedding", **more)
        assert found == (None if expected is None else Decimal(expected)), model
    assert (await world.row()).unpriced_events == 1
    assert {event["kind"] for event in await world.ledger()} == {"embedding"}


async def test_M63_X09_embeddings_are_apart_in_the_report(world: World) -> None:
    await world.event(model="text-embedding-3-small", tokens_in=1_000_000, kind="embedding")
    await world.event(model="gpt-4o-mini", tokens_in=1000, tokens_out=500)
    assert (await world.row()).cost_usd == Decimal("0.02045")
    report = await world.db.reports.usage(A, group_by=("kind",))
    found = {row.kind: (row.cost_usd, row.tokens_in, row.tokens_out) for row in report.rows}
    assert found == {"embedding": (Decimal("0.02"), 1_000_000, 0), "llm": (Decimal("0.00045"), 1000, 500)}


# Lower bounds and runs


@pytest.mark.parametrize("scope", ["session", "user"])
async def test_X51_a_final_count_of_a_run_takes_the_place_of_its_lower_bound(world: World, scope: str) -> None:
    """The final count names no run, so nothing but the event that its key holds says which run is concerned."""
    keyed = {"model": "m", "tokens_in": 10, "idempotency_key": "k", "key_scope": scope}

    await world.record(Run(run_id="r", user_id=A, session_id="s", started_at=AT, reported_cost_usd=Decimal(10)))
    await world.event(**keyed, run_id="r", tokens_out=1, cost_usd=1, partial=True)
    row = await world.row()
    assert (row.cost_usd, row.partial_events) == (Decimal(10), 1)
    receipt = await world.event(**keyed, tokens_out=9, cost_usd=3)
    assert (receipt.outcome, receipt.session_cost_usd) == ("replaced", Decimal(10))
    row = await world.row()
    assert (row.cost_usd, row.tokens_out, row.partial_events) == (Decimal(10), 9, 0)
    assert await is_consistent(world)


async def test_X51_an_event_in_time_takes_the_place_of_a_late_one_of_a_run(world: World) -> None:

    keyed = {"model": "m", "tokens_in": 10, "idempotency_key": "k"}
    end = End(session_id="s", user_id=A, status=SessionStatus.COMPLETED, at=AT)
    await world.record(Run(run_id="r", user_id=A, session_id="s", started_at=AT, reported_cost_usd=Decimal(10)), end)
    late = await world.event(**keyed, run_id="r", revision=1, cost_usd=1, at=AT + timedelta(hours=1))
    in_time = await world.event(**keyed, cost_usd=3, at=AT)
    assert (late.outcome, in_time.outcome) == ("frozen", "replaced")
    row = await world.row()
    assert (row.cost_usd, row.late_events) == (Decimal(10), 0)
    assert await is_consistent(world)


async def test_X51_lower_bounds_are_counted_and_leave_no_trace(world: World) -> None:
    keyed = {"model": "gpt-4o-mini", "tokens_in": 1000, "idempotency_key": "k"}
    for tokens_out in (3, 40):
        receipt = await world.event(**keyed, tokens_out=tokens_out, partial=True)
        assert receipt.session_tokens_out == tokens_out
        assert [found.partial_events for found in await sums(world)] == [1] * 4
    smaller = await world.event(**keyed, tokens_out=3, partial=True)
    final = await world.event(**keyed, tokens_out=500)
    assert (smaller.outcome, final.outcome) == ("superseded", "replaced")
    assert [found.partial_events for found in await sums(world)] == [0] * 4
    assert await costs(world) == {Decimal("0.00045")}
    [session] = await world.sql("SELECT further_totals FROM session_lifecycle.session_records")
    assert session["further_totals"] is None
    assert await is_consistent(world)
