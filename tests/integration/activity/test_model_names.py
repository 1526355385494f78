"""Names of models that differ in case are one model, in every call that takes or shows one (finding X04)."""

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import Run, RunFilters, SessionDatabase, SummaryFilters, UsageEvent
from session_lifecycle.models import Mismatch, UsageEventFilters, UsageFilters, UsageRow
from session_lifecycle.models.fields import Value, model_key
from session_lifecycle.models.maintenance import Repricing
from session_lifecycle.models.run_filters import RunChoice
from session_lifecycle.models.run_telemetry import TelemetryFilters
from session_lifecycle.models.usage_filters import UsageChoice
from support.stored_rows import ask

A, B = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Three spellings of one model, and another model. The letters of ASCII have no case, all others have.
GIVEN = ["GPT-4o%", " gpt-4O% ", "gpt-4o%", "gpt-4o"]
MODEL = "gPt-4o%"


@pytest.fixture
async def db(session_database: SessionDatabase) -> SessionDatabase:
    for number, model in enumerate(GIVEN):
        named: dict[str, Any] = {"session_id": "s", "user_id": A, "run_id": f"r{number}", "model": model}
        used = UsageEvent(**named, tokens_in=1, cost_usd=1, at=NOON)
        run = Run(**named, started_at=NOON + number * timedelta(seconds=1), ended_at=NOON + timedelta(minutes=1))
        await session_database.lifecycle.record([run, used])
    return session_database


async def _runs(db: SessionDatabase, model: str) -> int | None:
    return (await db.activity.list_runs(RunFilters(user_id=A, model=model))).total


async def _summaries(db: SessionDatabase, model: str) -> int:
    page = await db.activity.list_session_summaries(SummaryFilters(user_id=A, model=model, matching_only=True))
    return sum(one.runs_count for one in page.sessions)


async def _telemetry(db: SessionDatabase, model: str) -> int:
    return (await db.reports.telemetry(A, model=model)).runs_count


async def _events(db: SessionDatabase, model: str) -> int | None:
    return (await db.activity.list_usage_events(UsageEventFilters(user_id=A, model=model))).total


async def _usage(db: SessionDatabase, model: str) -> int:
    return (await db.reports.usage(A, filters=UsageFilters(model=model))).total.events


async def _repriced(db: SessionDatabase, model: str) -> int:
    # Models that have a price.
    await ask(
        db,
        "UPDATE session_usage_events "
        "SET model = replace(model, '%', '-mini'), given_cost_usd = NULL, price_source = NULL",
    )
    return (await db.maintenance.reprice(model=model.replace("%", "-mini"), dry_run=True)).events


CALLS: dict[type[Value], Callable[[SessionDatabase, str], Awaitable[int | None]]] = {
    RunFilters: _runs,
    SummaryFilters: _summaries,
    TelemetryFilters: _telemetry,
    UsageEventFilters: _events,
    UsageFilters: _usage,
    Repricing: _repriced,
}


def choices() -> Iterator[type[Value]]:
    """The filters and arguments that have a model: what is neither an item nor an answer, whose models are required."""
    pending = [Value]
    while pending:
        for kind in pending.pop().__subclasses__():
            pending.append(kind)
            field = kind.model_fields.get("model")
            if (
                field is not None
                and not field.is_required()
                and not issubclass(kind, Run | UsageEvent | UsageRow | Mismatch)
            ):
                yield kind


def test_X04_every_filter_with_a_model_is_tried() -> None:
    assert {*choices()} - {RunChoice, UsageChoice} == CALLS.keys()


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)
async def test_X04_a_filter_chooses_a_model_in_any_case(db: SessionDatabase, kind: type[Value]) -> None:
    assert await CALLS[kind](db, MODEL) == 3
    assert await CALLS[kind](db, f" {MODEL.upper()} ") == 3
    assert await CALLS[kind](db, "GPT-4o") == 1
    assert await CALLS[kind](db, "gpt-4_%") == 0


async def test_X04_models_are_listed_once_in_a_spelling_that_was_given(db: SessionDatabase) -> None:
    assert await db.activity.list_models(A) == ["GPT-4o%", "gpt-4o"]
    assert await db.activity.list_models(A, prefix="gPT-4O") == ["GPT-4o%", "gpt-4o"]
    assert await db.activity.list_models(A, prefix="GpT-4o%") == ["GPT-4o%"]
    assert await db.activity.list_models(A, prefix="gpt_") == await db.activity.list_models(A, prefix="%") == []
    keys = await db.reports.list_telemetry_keys(A)
    assert [key.model for key in keys] == ["GPT-4o%", "gpt-4o"]
    [one] = (await db.activity.list_session_summaries(SummaryFilters(user_id=A))).sessions
    assert one.models == ("GPT-4o%", "gpt-4o")
    detail = await db.activity.get_session_detail("s", A)
    assert detail is not None
    assert detail.summary.models == one.models
    assert [run.model for run in detail.runs] == ["GPT-4o%", "gpt-4O%", "gpt-4o%", "gpt-4o"]


async def test_X04_letters_beyond_ascii_have_a_case(session_database: SessionDatabase) -> None:
    for number, model in enumerate(["Über", "über"]):
        run = Run(run_id=f"r{number}", user_id=A, session_id="s", model=model, started_at=NOON, ended_at=NOON)
        await session_database.lifecycle.record([run])
    assert await session_database.activity.list_models(A) == ["Über", "über"]
    assert await _runs(session_database, "ÜBER") == 1
    assert model_key("ÜBER") == "Über"


async def test_X04_a_run_recorded_again_with_another_case_is_unchanged(db: SessionDatabase) -> None:
    run = Run(
        run_id="r0", user_id=A, session_id="s", model=MODEL, started_at=NOON, ended_at=NOON + timedelta(minutes=1)
    )
    [unchanged] = await db.lifecycle.record([run])
    assert unchanged == "unchanged"
    [conflict] = await db.lifecycle.record([run.model_copy(update={"model": "another"})])
    assert conflict == "conflict"


@pytest.mark.parametrize("others", [[], [B]])
async def test_X50_an_erased_person_is_named_by_no_repricing_in_another_case(
    db: SessionDatabase, others: list[UUID]
) -> None:
    for user in others:
        await db.lifecycle.accumulate_usage("s", user, "gpt-4o%", 1)
    await db.maintenance.reprice(model=MODEL)
    await db.maintenance.erase_user(A)
    [(model,)] = await ask(db, "SELECT model FROM session_repricings")
    assert model == (MODEL if others else None)
