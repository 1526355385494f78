"""Kept statements: built and compiled once for each shape, run on the driver with the values of each call."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Text, bindparam, literal, select

from session_lifecycle import SessionDatabase, SessionListFilters, SummaryFilters, Touch, UsageEvent, Viewer
from session_lifecycle.postgres.driver_statements import DriverStatement
from support.statements import noted
from support.usage import A

B = UUID(int=78)
DATASET = UUID(int=77)
SINCE = datetime.now(UTC) - timedelta(days=1)
COST = Decimal("123456789.1234567891")

Ask = Callable[[Any, UUID], Awaitable[Any]]
# Each call, of a database or of a host's transaction, for a viewer.
ASKS: dict[str, Ask] = {
    "one": lambda db, me: db.lifecycle.get_session_row("s", Viewer(me, [DATASET])),
    "one of an owner": lambda db, me: db.lifecycle.get_session_row("s", Viewer(me, [DATASET]), owner_id=me),
    "one of another": lambda db, me: db.lifecycle.get_session_row("s", Viewer(me, [DATASET]), prefer_other_owner=True),
    "list": lambda db, me: db.lifecycle.list_session_rows(SessionListFilters(viewer=Viewer(me, [DATASET]))),
    "list of a window": lambda db, me: db.lifecycle.list_session_rows(
        SessionListFilters(viewer=Viewer(me), since=SINCE, order_by="cost_usd", status_filter="running")
    ),
    "stats": lambda db, me: db.lifecycle.aggregate_stats(Viewer(me, [DATASET])),
    "stats of a window": lambda db, me: db.lifecycle.aggregate_stats(Viewer(me), since=SINCE),
    "cost by model": lambda db, me: db.lifecycle.cost_by_model(Viewer(me, [DATASET])),
    "summaries": lambda db, me: db.activity.list_session_summaries(SummaryFilters(viewer=Viewer(me, [DATASET]))),
    "detail": lambda db, me: db.activity.get_session_detail("s", Viewer(me, [DATASET])),
    "usage": lambda db, me: db.reports.usage(Viewer(me, [DATASET]), group_by=("model", "status"), since=SINCE),
    "usage by day": lambda db, me: db.reports.usage(
        Viewer(me), group_by=("day",), since=SINCE, until=SINCE + timedelta(days=2)
    ),
    "durations": lambda db, me: db.reports.session_durations(Viewer(me)),
}


async def seed(db: SessionDatabase) -> None:
    for user, metadata in ((A, {"of": "a", "numbers": [1, 0.1, None]}), (B, {"of": "b"})):
        await db.lifecycle.record(
            [
                Touch(session_id="s", user_id=user, dataset_id=DATASET, metadata=metadata, tags={"é": "ü"}),
                UsageEvent(session_id="s", user_id=user, model="m", tokens_in=7, tokens_out=3, cost_usd=COST),
            ]
        )


@pytest.mark.parametrize("name", ASKS)
async def test_a_kept_statement_has_no_value_of_a_call(session_database: SessionDatabase, name: str) -> None:
    """Two viewers share one text. Each sees what SQLAlchemy returns for that viewer in a host's transaction."""
    ask = ASKS[name]
    await seed(session_database)
    await ask(session_database, A)
    async with noted(session_database) as sent:
        on_driver = [await ask(session_database, user) for user in (A, B)]
    assert [text for text, _ in sent] == [sent[0][0]] * 2
    assert not any(str(value) in sent[0][0] for value in (A, B, DATASET, SINCE.date()))
    for user, answer in zip((A, B), on_driver, strict=True):
        async with session_database.engine.connect() as connection:
            bound = await ask(session_database.bind(connection), user)
        # The text of a value tells a Decimal from a float, and one time zone from another.
        assert repr(answer) == repr(bound)


async def test_a_parameter_that_is_left_out_does_not_keep_an_earlier_value() -> None:
    statement = select(bindparam("one", type_=Text), literal("constant's", Text), bindparam("two", type_=Text))
    kept = DriverStatement(statement, {"one", "two"}, "session_lifecycle")
    assert kept.sql.count("$") == 2
    assert "'constant''s'" in kept.sql
    assert kept.values({"one": "a", "two": "b", "another": "c"}) == ["a", "b"]
    with pytest.raises(KeyError, match="two"):
        kept.values({"one": "a"})
