"""Pages of the ledger: every event that a viewer sees, with every column, compared with the stored rows."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from session_lifecycle import InvalidValueError, Run, RunFilters, SessionDatabase, UsageEvent, Viewer
from session_lifecycle.models import LedgerEvent, UsageEventFilters, UsageEventPage
from session_lifecycle.models.usage import RARE_CLASSES
from support.ledger import D1, HOUR, NOON, VIEWERS, A, B, C, Row, fill_ledger, model_key, seen_by, stored_events

AUDITOR = Viewer.auditor()


@pytest_asyncio.fixture
async def ledger(session_database: SessionDatabase) -> SessionDatabase:
    await fill_ledger(session_database, Random(1))
    return session_database


def shown(row: Row) -> dict[str, Any]:
    """The event that a stored row is."""
    columns = {name: row[name] for name in LedgerEvent.model_fields if name in row}
    return {**columns, **{name: (row["parts"] or {}).get(name, 0) for name in RARE_CLASSES}}


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(
        rows, key=lambda row: [row[name] for name in ("at", "recorded_at", "user_id", "session_id", "event_id")]
    )


async def walked(db: SessionDatabase, limit: int, **filters: Any) -> list[LedgerEvent]:
    """The events of all pages."""
    events: list[LedgerEvent] = []
    cursor = None
    while True:
        page = await db.activity.list_usage_events(UsageEventFilters(limit=limit, cursor=cursor, **filters))
        assert len(page.events) <= limit
        events += page.events
        cursor = page.next_cursor
        if cursor is None:
            assert page.total == len(events)
            return events


async def walked_without_totals(db: SessionDatabase, **filters: Any) -> list[LedgerEvent]:
    events: list[LedgerEvent] = []
    cursor = None
    while True:
        asked = UsageEventFilters(viewer=AUDITOR, limit=3, total="none", cursor=cursor, **filters)
        page = await db.activity.list_usage_events(asked)
        events += page.events
        cursor = page.next_cursor
        if cursor is None:
            return events


@pytest.mark.parametrize("near", [(1, 5), (30, 180)], ids=["in short times", "in longer times"])
async def test_X11_a_walk_that_looks_near_its_place_first_misses_no_event(
    ledger: SessionDatabase, monkeypatch: pytest.MonkeyPatch, near: tuple[int, int]
) -> None:
    """Pages without a total are looked for in a short time first. Some of these times have too few events."""
    monkeypatch.setattr("session_lifecycle.activity.NEAREST", tuple(timedelta(minutes=minutes) for minutes in near))
    asks: list[dict[str, Any]] = [{}, {"since": NOON - HOUR}, {"until": NOON + HOUR}, {"kind": "llm"}]
    asks += [{"since": NOON - HOUR, "until": NOON + HOUR}, {"dataset_id": D1}]
    for asked in asks:
        for descending in (False, True):
            found = await walked_without_totals(ledger, descending=descending, **asked)
            assert found == await walked(ledger, 500, viewer=AUDITOR, descending=descending, **asked), asked
            assert len(found) > 3


async def test_X11_every_event_is_shown_with_every_column(ledger: SessionDatabase) -> None:
    rows = await stored_events(ledger)
    columns = set(rows[0]) - {"parts", "dataset_id", "agent_name", "session_status", "client", "tags"}
    assert {name for name in columns if not name.endswith("_text")} <= LedgerEvent.model_fields.keys()
    found = await walked(ledger, 500, viewer=AUDITOR, descending=False)
    assert [event.model_dump() for event in found] == [shown(row) for row in in_order(list(rows))]
    # The ledger has what the columns can tell apart.
    for name in LedgerEvent.model_fields:
        assert len({repr(getattr(event, name)) for event in found}) > 1, name
    assert {event.key_scope for event in found} == {"session", "run"}
    assert {event.run_id is None for event in found} == {True, False}
    assert {event.late for event in found} == {True, False}


@pytest.mark.parametrize("name", VIEWERS)
@pytest.mark.parametrize("descending", [True, False])
async def test_X11_R11_a_walk_has_each_visible_event_once(ledger: SessionDatabase, name: str, descending: bool) -> None:
    viewer = VIEWERS[name]
    expected = in_order(seen_by(viewer, await stored_events(ledger)))
    found = await walked(ledger, 17, viewer=viewer, descending=descending)
    ids = [row["event_id"] for row in expected]
    assert [event.event_id for event in found] == (ids[::-1] if descending else ids)
    assert bool(ids) == (name != "nobody")


FILTERS: list[tuple[dict[str, Any], Callable[[Row], bool]]] = [
    ({"session_id": "s0"}, lambda row: row["session_id"] == "s0"),
    ({"run_id": "r0"}, lambda row: row["run_id"] == "r0"),
    ({"model": " GPT-4O "}, lambda row: model_key(row) == "gpt-4o"),
    ({"model": "Unknown"}, lambda row: model_key(row) == "unknown"),
    ({"model": "Ü"}, lambda row: row["model"] == "Ü"),
    ({"provider": "azure"}, lambda row: row["provider"] == "azure"),
    ({"provider": "unknown"}, lambda row: row["provider"] in {None, "unknown"}),
    ({"client": "Cursor"}, lambda row: row["client"] == "Cursor"),
    ({"client": "Unknown"}, lambda row: row["client"] is None),
    ({"client": "Elsewhere"}, lambda row: False),
    ({"kind": "embedding"}, lambda row: row["kind"] == "embedding"),
    ({"billing": "plan"}, lambda row: row["billing"] == "plan"),
    ({"service_tier": "batch"}, lambda row: row["service_tier"] == "batch"),
    ({"agent_name": "coder"}, lambda row: row["agent_name"] == "coder"),
    ({"dataset_id": D1}, lambda row: row["dataset_id"] == D1),
    ({"tags": {"team": "red"}}, lambda row: row["tags"].get("team") == "red"),
    ({"owner_id": B}, lambda row: row["user_id"] == B),
    ({"since": NOON}, lambda row: row["at"] >= NOON),
    ({"until": NOON}, lambda row: row["at"] < NOON),
    (
        {"model": "gpt-4o", "provider": "openai", "kind": "llm", "since": NOON - 60 * HOUR, "until": NOON},
        lambda row: (
            (model_key(row), row["provider"], row["kind"]) == ("gpt-4o", "openai", "llm")
            and NOON - 60 * HOUR <= row["at"] < NOON
        ),
    ),
]


async def test_X11_each_filter_chooses_its_events(ledger: SessionDatabase) -> None:
    rows = await stored_events(ledger)
    for filters, chooses in FILTERS:
        for viewer in (VIEWERS["shared"], AUDITOR):
            expected = [shown(row) for row in in_order([row for row in seen_by(viewer, rows) if chooses(row)])]
            found = await walked(ledger, 500, viewer=viewer, descending=False, **filters)
            assert [event.model_dump() for event in found] == expected, filters
            assert expected or viewer is not AUDITOR or "Elsewhere" in filters.values(), filters


@pytest.mark.parametrize("more", [{}, {"run_id": "r"}, {"billing": "plan"}], ids=["plain", "of a run", "wave"])
async def test_R21_usage_of_one_moment_is_in_the_order_of_recording(
    session_database: SessionDatabase, more: dict[str, Any]
) -> None:
    """The ids order nothing, neither random ones nor those of keys: in one call or in several."""
    db = session_database
    await db.lifecycle.record([Run(run_id="r", user_id=A, session_id="s", started_at=NOON)])

    def used(number: int) -> UsageEvent:
        named: dict[str, Any] = {"session_id": "s", "user_id": A, "model": f"m{number}", **more}
        key = f"k{number}" if number % 3 else None
        return UsageEvent(**named, idempotency_key=key, at=NOON, cost_usd=1)

    for first in (0, 20):
        await db.lifecycle.record([used(number) for number in range(first, first + 20)])
    for number in range(40, 44):
        await db.lifecycle.record([used(number)])
    expected = [f"m{number}" for number in range(44)]
    found = await walked(db, 7, viewer=Viewer(A), descending=False)
    assert [event.model for event in found] == expected
    assert [event.model for event in await walked(db, 7, viewer=Viewer(A))] == expected[::-1]
    [run] = (await db.activity.list_runs(RunFilters(user_id=A, include_open=True))).runs
    assert [event.model for event in run.events] == (expected if "run_id" in more else [])


async def test_X11_figures_are_exact_and_an_answer_survives_json(session_database: SessionDatabase) -> None:
    exact = Decimal("9.123456789012345678901234567891")
    await session_database.lifecycle.record(
        [
            UsageEvent(
                session_id="s",
                user_id=A,
                model="m",
                tokens_in=10**12,
                audio_tokens_in=999_999_999_999,
                cost_usd=exact,
                details={"count": 999_999_999_999},
                at=NOON,
            ),
            UsageEvent(session_id="s", user_id=A, model="gpt-4o", tokens_in=3, at=NOON),
        ]
    )
    page = await session_database.activity.list_usage_events(UsageEventFilters(viewer=Viewer(A), descending=False))
    by_model = {event.model: event for event in page.events}
    given, priced = by_model["m"], by_model["gpt-4o"]
    assert (given.cost_usd, given.given_cost_usd, given.price_source) == (exact, exact, "given")
    assert (given.audio_tokens_in, given.details) == (999_999_999_999, {"count": 999_999_999_999})
    assert priced.unit_prices is not None
    assert priced.given_cost_usd is None
    assert priced.cost_usd == Decimal(3) * Decimal(priced.unit_prices["input_mtok"]) / 10**6
    assert UsageEventPage.model_validate_json(page.model_dump_json()) == page


async def test_X11_a_cursor_belongs_to_its_question(ledger: SessionDatabase) -> None:
    activity = ledger.activity
    first = await activity.list_usage_events(UsageEventFilters(viewer=Viewer(A), limit=2))
    assert first.has_more
    for other in ({"viewer": Viewer(C)}, {"viewer": Viewer(A), "kind": "llm"}, {"viewer": Viewer(A), "since": NOON}):
        with pytest.raises(InvalidValueError) as refused:
            await activity.list_usage_events(UsageEventFilters(cursor=first.next_cursor, **other))
        assert refused.value.field == "cursor"
    of_runs: Any = RunFilters(user_id=A)
    with pytest.raises(InvalidValueError) as refused:
        await activity.list_usage_events(of_runs)
    assert refused.value.field == "filters"
    with pytest.raises(InvalidValueError) as refused:
        UsageEventFilters.of_call(since=NOON, until=NOON - timedelta(1))
    assert refused.value.field == "until"
    assert (await activity.list_usage_events(UsageEventFilters())).events == []
