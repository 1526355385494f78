"""A value that is made of a row without a check is the value that Pydantic makes of the same fields."""

from random import Random

import pytest_asyncio

from session_lifecycle import End, SessionDatabase, SessionListFilters, SummaryFilters, Touch, Viewer
from session_lifecycle.models import LedgerEvent, SessionRecord, SessionRowWithStatus, UsageEventFilters
from session_lifecycle.models.fields import Value
from support.ledger import D1, NOON, A, fill_ledger

AUDITOR = Viewer.auditor()


@pytest_asyncio.fixture
async def db(session_database: SessionDatabase) -> SessionDatabase:
    """Sessions and events with everything that they can have, and without it."""
    await fill_ledger(session_database, Random(3))
    key = {"user_id": A, "session_id": "all"}
    touch = Touch(
        **key,
        dataset_id=D1,
        agent_name="agent",
        title="title",
        metadata={"depth": [1.5, {"é": None}]},
        tags={"customer": "acme"},
        parent_session_id="s0",
        at=NOON,
    )
    end = End(**key, status="failed", reason="reason", at=NOON)
    waiting = Touch(session_id="waiting", user_id=A, waiting=True)
    await session_database.lifecycle.record([touch, end, waiting])
    return session_database


def check(value: Value) -> None:
    # Strict: a check would not even convert a value.
    checked = type(value).model_validate(value.model_dump(), strict=True)
    assert checked == value
    assert checked.model_dump_json() == value.model_dump_json()
    assert type(value).model_validate_json(value.model_dump_json()) == value


def differing(values: list[Value]) -> set[str]:
    """The fields that are not the same in all values."""
    return {name for name in type(values[0]).model_fields if len({repr(getattr(value, name)) for value in values}) > 1}


async def test_sessions(db: SessionDatabase) -> None:
    page = await db.lifecycle.list_session_rows(SessionListFilters(viewer=AUDITOR))
    summaries = await db.activity.list_session_summaries(SummaryFilters(viewer=AUDITOR))
    # They share nothing that a copy changes.
    first, *others = (row.record for row in page.sessions)
    changed = first.model_copy(update={"metadata": {"other": 1}, "no field": 1})
    assert changed.model_fields_set == {*SessionRecord.model_fields, "no field"}
    assert all(record.model_fields_set == set(SessionRecord.model_fields) for record in (first, *others))
    assert len({id(record.metadata) for record in (first, changed, *others)}) == len(others) + 2
    for row in page.sessions:
        check(row)
        check(row.record)
        found = await db.lifecycle.get_session_row(row.record.session_id, AUDITOR, owner_id=row.record.user_id)
        assert found == row
    for summary in summaries.sessions:
        check(summary)
    assert [summary.record for summary in summaries.sessions] == [row.record for row in page.sessions]
    updated = await db.lifecycle.update_session("all", A, title="other")
    assert updated is not None
    check(updated)
    # The sessions have what the fields can tell apart.
    records = [*(row.record for row in page.sessions), updated]
    assert differing([*records]) == set(SessionRecord.model_fields)
    assert differing([*page.sessions]) == set(SessionRowWithStatus.model_fields)


async def test_events(db: SessionDatabase) -> None:
    page = await db.activity.list_usage_events(UsageEventFilters(viewer=AUDITOR, limit=500))
    for event in page.events:
        check(event)
    assert differing([*page.events]) == set(LedgerEvent.model_fields)
