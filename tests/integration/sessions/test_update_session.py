"""Fields of a session that are replaced, and tags (finding X22)."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, Run, SessionDatabase, SessionListFilters, Touch, UsageEvent, Viewer
from session_lifecycle.models import SessionRecord
from session_lifecycle.models.sessions import SessionUpdate
from session_lifecycle.testing import SessionClock
from support.stored_rows import ask

A, B, D, E = UUID(int=1), UUID(int=2), UUID(int=11), UUID(int=12)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
FULL: dict[str, Any] = {
    "title": "t",
    "metadata": {"a": 1, "b": [1, None]},
    "tags": {"team": "red"},
    "dataset_id": D,
    "agent_name": "planner",
    "parent_session_id": "p",
}
OTHER: dict[str, Any] = {
    "title": "other",
    "metadata": {"c": "%"},
    "tags": {"v": ""},
    "dataset_id": E,
    "agent_name": "coder",
    "parent_session_id": "q",
}
EMPTY: dict[str, Any] = {"metadata": {}, "tags": {}}


async def row(db: SessionDatabase, session_id: str = "s") -> SessionRecord:
    found = await db.lifecycle.get_session_row(session_id, A)
    assert found is not None
    return found.record


@pytest.fixture
async def db(session_database: SessionDatabase, session_clock: SessionClock) -> SessionDatabase:
    await session_clock.freeze(NOON)
    await session_database.lifecycle.record([Touch(session_id="s", user_id=A, **FULL)])
    await session_database.lifecycle.accumulate_usage("s", A, "m", 5, 5, 1, True)
    await session_clock.freeze(NOON + HOUR)
    return session_database


def test_X22_every_field_is_tried() -> None:
    assert FULL.keys() == OTHER.keys() == SessionUpdate.model_fields.keys() - {"session_id", "user_id"}


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("status", ["running", "failed", "rolled up"])
async def test_X22_a_field_is_replaced_alone_and_emptied(db: SessionDatabase, name: str, status: str) -> None:
    if status == "failed":
        await db.lifecycle.end_session("s", A, "failed")
    if status == "rolled up":
        assert (await db.maintenance.roll_up()).sessions == 1
    before = await row(db)
    replaced = await db.lifecycle.update_session("s", A, **{name: OTHER[name]})
    assert replaced == await row(db) == before.model_copy(update={name: OTHER[name]})
    emptied = await db.lifecycle.update_session("s", A, **{name: None})
    assert emptied == await row(db) == before.model_copy(update={name: EMPTY.get(name)})
    assert await db.lifecycle.update_session("s", A, **{name: FULL[name]}) == before


async def test_X22_all_fields_are_replaced_in_one_statement(db: SessionDatabase) -> None:
    before = await row(db)
    assert await db.lifecycle.update_session("s", A) == before
    assert await db.lifecycle.update_session("s", A, **OTHER) == before.model_copy(update=OTHER)
    nothing = {name: EMPTY.get(name) for name in FULL}
    assert await db.lifecycle.update_session("s", A, **dict.fromkeys(FULL)) == before.model_copy(update=nothing)
    assert await ask(db, "SELECT tags, metadata FROM session_records") == [(None, {})]
    assert await db.lifecycle.update_session("s", B, title="x") is None
    assert await db.lifecycle.update_session("t", A, title="x") is None
    assert await ask(db, "SELECT count(*) FROM session_records") == [(1,)]


async def test_X22_sharing_is_taken_back_from_every_figure(db: SessionDatabase) -> None:
    reader, of_other = Viewer(None, [D]), Viewer(None, [E])

    async def seen(viewer: Viewer) -> list[Any]:
        stats = await db.lifecycle.aggregate_stats(viewer)
        costs = await db.lifecycle.cost_by_model(viewer)
        page = await db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer))
        found = await db.lifecycle.get_session_row("s", viewer)
        return [stats.sessions, stats.total_spend_usd, len(costs), page.total, len(page.sessions), found is not None]

    assert (await db.maintenance.roll_up()).sessions == 1
    everything, nothing = [1, 1, 1, 1, 1, True], [0, 0, 0, 0, 0, False]
    assert (await seen(reader), await seen(of_other)) == (everything, nothing)
    await db.lifecycle.update_session("s", A, dataset_id=E)
    assert (await seen(reader), await seen(of_other)) == (nothing, everything)
    assert (await db.maintenance.roll_up()).sessions == 1
    assert (await seen(reader), await seen(of_other)) == (nothing, everything)
    await db.lifecycle.update_session("s", A, dataset_id=None)
    assert (await seen(reader), await seen(of_other)) == (nothing, nothing)
    await db.maintenance.roll_up()
    assert (await seen(reader), await seen(of_other), await seen(Viewer(A))) == (nothing, nothing, everything)
    assert (await db.maintenance.reconcile()).mismatches == []


async def test_X22_an_update_without_fields_leaves_the_roll_ups_alone(db: SessionDatabase) -> None:
    await db.maintenance.roll_up()
    await db.lifecycle.update_session("s", A)
    assert await ask(db, "SELECT rolled_up FROM session_records") == [(True,)]


async def test_X22_an_update_is_in_the_hosts_transaction(db: SessionDatabase) -> None:
    async with db.engine.connect() as connection:
        bound = db.bind(connection)
        updated = await bound.lifecycle.update_session("s", A, title="within")
        assert updated is not None
        assert updated.title == "within"
        assert (await row(db)).title == "t"
        await connection.rollback()
    assert (await row(db)).title == "t"


async def test_X22_a_session_that_was_updated_is_not_derived_any_more(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    child = Run(run_id="c", user_id=A, started_at=NOON)
    await lifecycle.record([child])
    assert await lifecycle.update_session("c", A, title="t") is not None
    await lifecycle.record([child.model_copy(update={"session_id": "s"})])
    assert (await row(session_database, "c")).title == "t"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"title": 1}, "title"),  # a long title is cut, as labels are
        ({"metadata": []}, "metadata"),
        ({"tags": {"a": 1}}, "tags.a"),
        ({"tags": {"": "a"}}, "tags"),
        ({"tags": {"a": "x" * 201}}, "tags.a"),
        ({"tags": {str(number): "" for number in range(65)}}, "tags"),
        ({"dataset_id": "none"}, "dataset_id"),
        ({"parent_session_id": "s"}, "parent_session_id"),
        ({"status": "failed"}, "status"),
    ],
)
async def test_X22_a_wrong_field_is_refused_and_nothing_is_written(
    db: SessionDatabase, changes: dict[str, Any], field: str
) -> None:
    before = await row(db)
    with pytest.raises(InvalidValueError) as refused:
        await db.lifecycle.update_session("s", A, **{"agent_name": "coder", **changes})
    assert refused.value.field.startswith(field)
    assert await row(db) == before


async def test_X22_a_redaction_sees_what_replaces(session_database: SessionDatabase) -> None:
    def redact(item: Any) -> Any:
        return item.model_copy(update={"title": "redacted"}) if item.title is not None else item

    async with SessionDatabase.from_engine(session_database.engine, redact=redact) as db:
        await db.lifecycle.ensure_and_touch_session("s", A)
        updated = await db.lifecycle.update_session("s", A, title="secret", tags={"a": "b"})
    assert updated is not None
    assert (updated.title, updated.tags) == ("redacted", {"a": "b"})


async def test_X22_a_touch_adds_the_tags_that_are_missing(db: SessionDatabase) -> None:
    lifecycle = db.lifecycle
    assert (await row(db)).tags == {"team": "red"}
    await lifecycle.record(
        [
            Touch(session_id="s", user_id=A, tags={"team": "blue", "v": "1"}),
            UsageEvent(session_id="s", user_id=A, tokens_in=1),
            Touch(session_id="s", user_id=A, tags={"v": "2", "w": "3"}),
            Touch(session_id="new", user_id=A, tags={"v": "2"}),
        ]
    )
    assert (await row(db)).tags == {"team": "red", "v": "1", "w": "3"}
    assert (await row(db, "new")).tags == {"v": "2"}
    await lifecycle.end_session("s", A, "completed")
    await lifecycle.record([Touch(session_id="s", user_id=A, tags={"late": "1"})])
    assert "late" not in (await row(db)).tags
    found = await lifecycle.get_session_row("s", A)
    assert found is not None
    assert found.to_dict()["tags"] == {"team": "red", "v": "1", "w": "3"}
    assert (await lifecycle.get_session_row("s", A)).record.title == "t"  # type: ignore[union-attr]
