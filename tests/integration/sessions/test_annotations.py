"""What people say about a session (finding X26): written, read, and gone with the session."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, Run, SessionDatabase, SessionListFilters, SessionStatus, Viewer
from session_lifecycle.models import SessionAnnotation
from session_lifecycle.testing import SessionClock
from support.stored_rows import ask

A, B, D = UUID(int=1), UUID(int=2), UUID(int=11)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
async def db(session_database: SessionDatabase, session_clock: SessionClock) -> SessionDatabase:
    await session_clock.freeze(NOON)
    await session_database.lifecycle.ensure_and_touch_session("s", A, D)
    return session_database


def told(name: str, **more: Any) -> SessionAnnotation:
    nothing: dict[str, Any] = {"annotator": None, "score": None, "label": None, "comment": None, "at": NOON}
    return SessionAnnotation(name=name, **{**nothing, **more})


async def test_X26_a_session_has_several_annotations(db: SessionDatabase) -> None:
    annotate = db.lifecycle.annotate_session
    full: dict[str, Any] = {"score": 0.5, "label": "ok", "comment": "fine"}
    assert await annotate("s", A, "quality", **full) == told("quality", **full)
    earlier = NOON - HOUR
    assert await annotate("s", A, "quality", annotator="eve", score=-1, at=earlier) == told(
        "quality", annotator="eve", score=-1, at=earlier
    )
    assert await annotate("s", A, "Quality", label="x") == told("Quality", label="x")
    # The same name and annotator replaces the whole annotation.
    assert await annotate("s", A, "quality", score=1) == told("quality", score=1)
    everything = [told("Quality", label="x"), told("quality", score=1)]
    everything.append(told("quality", annotator="eve", score=-1, at=earlier))
    for viewer in (A, Viewer(None, [D]), Viewer.auditor(), Viewer.of_users([A])):
        assert await db.lifecycle.list_annotations("s", viewer) == everything
    assert await db.lifecycle.list_annotations("s", B) == []
    assert await db.lifecycle.list_annotations("t", A) == []
    assert await db.lifecycle.list_annotations("s", A, owner_id=B) == []


async def test_X26_an_annotation_needs_a_session_and_is_no_activity(db: SessionDatabase) -> None:
    assert await db.lifecycle.annotate_session("s", B, "quality") is None
    assert await db.lifecycle.annotate_session("t", A, "quality") is None
    assert await ask(db, "SELECT count(*) FROM session_annotations") == [(0,)]
    await db.lifecycle.end_session("s", A, SessionStatus.COMPLETED)
    await db.maintenance.roll_up()
    before = await db.lifecycle.get_session_row("s", A)
    assert await db.lifecycle.annotate_session("s", A, "quality") is not None
    assert await db.lifecycle.get_session_row("s", A) == before
    assert await ask(db, "SELECT rolled_up FROM session_records") == [(True,)]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"score": float("nan")}, "score"),
        ({"score": "high"}, "score"),
        ({"label": 5}, "label"),  # a long label is cut
        ({"comment": "x" * 10_001}, "comment"),
        ({"annotator": 5}, "annotator"),
        ({"at": datetime(2026, 1, 1)}, "at"),  # noqa: DTZ001 - what is refused
    ],
)
async def test_X26_a_wrong_annotation_is_refused(db: SessionDatabase, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        await db.lifecycle.annotate_session("s", A, **{"name": "quality", **fields})
    assert refused.value.field == field
    assert "xxx" not in str(refused.value) or field != "comment"
    assert await ask(db, "SELECT count(*) FROM session_annotations") == [(0,)]


async def test_R09_an_annotation_is_at_most_five_minutes_ahead(
    db: SessionDatabase, session_clock: SessionClock
) -> None:
    now = await session_clock.freeze(NOON)
    latest = now + timedelta(minutes=5)
    said = await db.lifecycle.annotate_session("s", A, "quality", at=latest)
    assert said is not None
    assert said.at == latest
    for at in (latest + timedelta(microseconds=1), datetime.max.replace(tzinfo=UTC)):
        with pytest.raises(InvalidValueError, match=r"^at: .* at most five minutes ahead") as refused:
            await db.lifecycle.annotate_session("s", A, "quality", at=at)
        assert refused.value.field == "at"
    assert await db.lifecycle.list_annotations("s", A) == [said]


async def test_R19_an_annotation_fits_into_the_index_of_its_key(db: SessionDatabase) -> None:
    """Other characters than these would be compressed."""
    chance = random.Random(0)

    def text(length: int) -> str:
        return "".join(chr(chance.randint(0x20000, 0x2A6DF)) for _ in range(length))

    session_id, name = text(512), text(138)
    await db.lifecycle.ensure_and_touch_session(session_id, A)
    assert await db.lifecycle.annotate_session(session_id, A, name) == (await annotations(db, session_id))[0]
    for wrong, annotator, field in ((name + "x", None, "name"), (name, "x", "annotator")):
        with pytest.raises(InvalidValueError) as refused:
            await db.lifecycle.annotate_session(session_id, A, wrong, annotator=annotator)
        assert refused.value.field == field
    longest, annotator = text(200), text(125)
    said = await db.lifecycle.annotate_session("s", A, longest, annotator=annotator)
    assert [said] == await annotations(db, "s")
    filters = SessionListFilters(user_id=A, annotation=longest, annotator=annotator)
    page = await db.lifecycle.list_session_rows(filters)
    assert [row.record.session_id for row in page.sessions] == ["s"]


async def annotations(db: SessionDatabase, session_id: str) -> list[SessionAnnotation]:
    return await db.lifecycle.list_annotations(session_id, A)


async def test_X26_a_derived_session_that_was_annotated_stays(db: SessionDatabase) -> None:
    run = Run(run_id="r", user_id=A, started_at=NOON)
    await db.lifecycle.record([run])
    await db.lifecycle.annotate_session("r", A, "quality")
    await db.lifecycle.record([run.model_copy(update={"session_id": "s"})])
    assert await db.lifecycle.list_annotations("r", A) == [told("quality")]


@pytest.mark.parametrize("way", ["delete", "prune", "erase", "anonymise"])
async def test_X26_an_annotation_goes_with_its_session(
    db: SessionDatabase, session_clock: SessionClock, way: str
) -> None:
    await db.lifecycle.update_session("s", A, tags={"name": "Ann"}, parent_session_id="of Ann")
    await db.lifecycle.ensure_and_touch_session("s", B)
    for user in (A, B):
        await db.lifecycle.annotate_session("s", user, "quality", annotator="Ann")
    await session_clock.freeze(NOON + HOUR)
    await db.lifecycle.ensure_and_touch_session("s", B)
    match way:
        case "delete":
            assert await db.maintenance.delete_session("s", A)
        case "prune":
            assert (await db.maintenance.prune_sessions(timedelta(minutes=30))).sessions == 1
        case "erase":
            await db.maintenance.erase_user(A)
        case _:
            await db.maintenance.erase_user(A, usage="anonymise")
    assert await ask(db, "SELECT user_id FROM session_annotations") == [(B,)]
    left = await ask(db, "SELECT tags, parent_session_id, end_reason FROM session_records WHERE user_id <> :b", b=B)
    assert left == ([(None, None, None)] if way == "anonymise" else [])


async def test_X26_an_annotation_is_in_the_hosts_transaction(db: SessionDatabase) -> None:
    async with db.engine.connect() as connection:
        assert await db.bind(connection).lifecycle.annotate_session("s", A, "quality") is not None
        await connection.rollback()
    assert await db.lifecycle.list_annotations("s", A) == []
