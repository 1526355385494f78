"""Tokens by class: disjoint, by the time of use, of visible usage only."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, SessionDatabase, SessionStatus, Touch, UsageEvent, Viewer
from session_lifecycle.models import TokenClasses, TokensByClass

A, B, C, D = (UUID(int=number) for number in range(1, 5))
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR, MICROSECOND = timedelta(hours=1), timedelta(microseconds=1)
INPUT = ("uncached_input_tokens", "cache_read_tokens", "cache_write_tokens")
OUTPUT = ("visible_output_tokens", "reasoning_tokens")


def used(at: datetime, session_id: str = "s", user: UUID = A, *classes: int, **more: Any) -> UsageEvent:
    """An event with these tokens of each class, in the order of INPUT and OUTPUT."""
    uncached, cache_read, cache_write, visible, reasoning = classes or (1, 2, 4, 8, 16)
    tokens: dict[str, Any] = {
        "tokens_in": uncached + cache_read + cache_write,
        "cache_read_tokens": cache_read,
        "cache_write_tokens": cache_write,
        "tokens_out": visible + reasoning,
        "reasoning_tokens": reasoning,
    }
    return UsageEvent(session_id=session_id, user_id=user, at=at, **{"model": "m", "cost_usd": 0, **tokens, **more})


def added(*events: Sequence[int]) -> dict[str, int]:
    """The report's sums for events with these tokens."""
    sums = [sum(column) for column in zip(*events, strict=True)] or [0] * 5
    classes = dict(zip((*INPUT, *OUTPUT), sums, strict=True))
    return {**classes, "tokens_in": sum(sums[:3]), "tokens_out": sum(sums[3:])}


async def test_the_classes_add_up(session_database: SessionDatabase) -> None:
    random = Random(1)
    models = [None, "m", "n", "unknown"]
    drawn = [
        (random.choice(models), [random.choice([0, random.randrange(10**11)]) for _ in range(5)]) for _ in range(60)
    ]
    await session_database.lifecycle.record(
        [
            used(NOW - number * HOUR, f"s{number % 7}", A, *classes, model=model)
            for number, (model, classes) in enumerate(drawn)
        ]
    )
    window = {"since": NOW - 49 * HOUR, "until": NOW - 5 * HOUR}
    found = await session_database.reports.tokens_by_class(A, **window)
    within = [(model or "unknown", classes) for model, classes in drawn[6:50]]
    expected = {name: added(*(classes for model, classes in within if model == name)) for name in ("m", "n", "unknown")}
    assert found.model_dump(exclude={"by_model"}) == added(*(classes for _, classes in within))
    assert {name: classes.model_dump() for name, classes in found.by_model.items()} == expected
    totals = {name: -classes["tokens_in"] - classes["tokens_out"] for name, classes in expected.items()}
    assert list(found.by_model) == sorted(totals, key=lambda name: totals[name])
    spend = (await session_database.reports.spend(A, **window)).model_dump()
    shared = found.model_dump().keys() & spend.keys()
    assert len(shared) == 5
    assert {name: spend[name] for name in shared} == found.model_dump(include=shared)


async def test_the_window_is_about_the_use_and_late_usage_is_left_out(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    await lifecycle.record(
        [used(NOW, "t"), used(NOW + 2 * HOUR, "t"), used(NOW, user=A), used(NOW + HOUR), used(NOW - MICROSECOND)]
    )
    await lifecycle.end_session("s", A, SessionStatus.COMPLETED, at=NOW + HOUR)
    await lifecycle.record([used(NOW + HOUR + MICROSECOND)])

    async def tokens_in(since: datetime | None, until: datetime | None) -> int:
        return (await session_database.reports.tokens_by_class(A, since=since, until=until)).tokens_in // 7

    assert await tokens_in(NOW, NOW + HOUR) == 2
    assert await tokens_in(NOW - MICROSECOND, NOW + 2 * HOUR) == 4
    assert await tokens_in(None, NOW) == 1
    assert await tokens_in(None, None) == 5
    assert await tokens_in(NOW, NOW) == 0
    with pytest.raises(InvalidValueError, match="until"):
        await tokens_in(NOW + HOUR, NOW)


async def test_tokens_are_summed_of_visible_usage_only(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.record(
        [
            used(NOW, "a", A, 1, 0, 0, 0, 0, model="a"),
            Touch(session_id="b", user_id=B, dataset_id=D, at=NOW),
            used(NOW, "b", B, 2, 0, 0, 0, 0, model="b"),
            used(NOW, "own", B, 4, 0, 0, 0, 0, model="own"),
            used(NOW, "c", C, 8, 0, 0, 0, 0, model="c"),
        ]
    )
    for viewer, tokens, models in (
        (A, 1, ["a"]),
        (Viewer(A, [D]), 3, ["b", "a"]),
        (Viewer(B, [D]), 6, ["own", "b"]),
        (Viewer(A, agent_user_ids=[C]), 9, ["c", "a"]),
        (Viewer.auditor(), 15, ["c", "own", "b", "a"]),
        (Viewer.of_users([]), 0, []),
        (D, 0, []),
    ):
        found = await session_database.reports.tokens_by_class(viewer)
        assert (found.uncached_input_tokens, list(found.by_model)) == (tokens, models)


async def test_without_tokens_there_are_zeros_and_no_models(session_database: SessionDatabase) -> None:
    """A cost alone and an error alone have no tokens; ties go by name, and names that differ in case are one model."""
    nothing = TokensByClass(**added(), by_model={})
    assert await session_database.reports.tokens_by_class(A) == nothing
    unused = [0] * 5
    await session_database.lifecycle.record(
        [used(NOW, "s", A, *unused, errored=True), used(NOW, "s", A, *unused, model="dear", cost_usd=1)]
    )
    assert await session_database.reports.tokens_by_class(A) == nothing
    await session_database.lifecycle.record([used(NOW, model=model) for model in ("b", "c", "a", None)])
    found = await session_database.reports.tokens_by_class(A)
    assert list(found.by_model) == ["a", "b", "c", "unknown"]
    assert set(map(repr, found.by_model.values())) == {repr(TokenClasses(**added((1, 2, 4, 8, 16))))}
    await session_database.lifecycle.record([used(NOW, model="B")])
    found = await session_database.reports.tokens_by_class(A)
    assert list(found.by_model) == ["B", "a", "c", "unknown"]
