"""Sessions with a parent, and figures with all descendants (finding X23)."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, Run, RunFilters, SessionDatabase, Touch, UsageEvent, Viewer
from session_lifecycle.models import FamilyFigures, SessionFigures
from support.stored_rows import ask
from support.world import World

A, B, D = UUID(int=1), UUID(int=2), UUID(int=11)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def child(session_id: str, parent: str | None = None, user: UUID = A, **more: Any) -> Touch:
    return Touch(session_id=session_id, user_id=user, parent_session_id=parent, **more)


async def family(db: SessionDatabase, session_id: str, viewer: Any = A, **more: Any) -> FamilyFigures:
    found = await db.lifecycle.get_family_figures(session_id, viewer, **more)
    assert found is not None
    return found


async def counted(db: SessionDatabase, session_id: str, viewer: Any = A) -> tuple[float | Decimal, ...]:
    """How many sessions a session's figures with descendants count, and their cost."""
    figures = (await family(db, session_id, viewer)).with_descendants
    return figures.sessions, figures.cost_usd


async def parents(db: SessionDatabase) -> dict[str, str | None]:
    return dict(await ask(db, "SELECT session_id, parent_session_id FROM session_records ORDER BY 1"))


async def test_X23_figures_of_a_session_alone_and_with_its_descendants(session_database: SessionDatabase) -> None:
    lifecycle = session_database.lifecycle
    # The children come before their parents, and another user has sessions of the same ids.
    await lifecycle.record([child("grandchild", "child"), child("child", "parent"), child("second", "parent")])
    await lifecycle.record([child("parent"), child("apart"), child("child", "parent", B), child("parent", user=B)])
    for number, name in enumerate(["parent", "child", "second", "grandchild", "apart"]):
        await lifecycle.accumulate_usage(name, A, "m", 10**number, 0, Decimal(10) ** -number, number == 1)
    plan = {"billing": "plan", "cost_usd": 5, "tokens_out": 3}
    await lifecycle.record([UsageEvent(session_id=name, user_id=A, **plan) for name in ("parent", "second")])
    await lifecycle.accumulate_usage("child", B, "m", 7, 0, 7)

    found = await family(session_database, "parent")
    assert found.own == SessionFigures(
        **dict.fromkeys(SessionFigures.model_fields, 0)
        | {"sessions": 1, "cost_usd": 1, "tokens_in": 1, "tokens_out": 3}
        | {"plan_events": 1, "plan_tokens_out": 3, "plan_cost_usd": 5}
    )
    assert found.with_descendants == SessionFigures(
        **dict.fromkeys(SessionFigures.model_fields, 0)
        | {"sessions": 4, "cost_usd": Decimal("1.111"), "tokens_in": 1111, "tokens_out": 6, "error_count": 1}
        | {"plan_events": 2, "plan_tokens_out": 6, "plan_cost_usd": 10}
    )
    assert await counted(session_database, "child") == (2, Decimal("0.101"))
    assert (await family(session_database, "apart")).own == (await family(session_database, "apart")).with_descendants
    assert await counted(session_database, "parent", B) == (2, 7)
    await session_database.maintenance.roll_up()
    assert await family(session_database, "parent") == found


async def test_X23_only_visible_sessions_are_counted(session_database: SessionDatabase) -> None:
    db, lifecycle = session_database, session_database.lifecycle
    await lifecycle.record(
        [child("top", dataset_id=D), child("hidden", "top"), child("seen", "hidden", dataset_id=D), child("h", "seen")]
    )
    for name in ("top", "hidden", "seen", "h"):
        await lifecycle.accumulate_usage(name, A, "m", 1, 0, 1)
    reader = Viewer(None, [D])
    assert await counted(db, "top", reader) == (2, 2)
    assert await counted(db, "top", Viewer.auditor()) == await counted(db, "top") == (4, 4)
    for viewer in (B, Viewer(None, [D])):
        assert await lifecycle.get_family_figures("hidden", viewer) is None
    assert await lifecycle.get_family_figures("no", A) is None
    assert await lifecycle.get_family_figures("top", reader, owner_id=B) is None


async def test_X23_a_parent_is_filled_replaced_and_emptied(session_database: SessionDatabase) -> None:
    db, lifecycle = session_database, session_database.lifecycle
    await lifecycle.record([child("c"), child("c", "p"), child("c", "q"), child("d", "p")])
    assert await parents(db) == {"c": "p", "d": "p"}
    updated = await lifecycle.update_session("c", A, parent_session_id="d")
    assert updated is not None
    assert updated.parent_session_id == "d"
    await lifecycle.update_session("d", A, parent_session_id=None)
    assert await parents(db) == {"c": "d", "d": None}
    await lifecycle.end_session("d", A, "completed")
    await lifecycle.record([child("d", "c")])  # the session has ended: the touch changes nothing
    assert await parents(db) == {"c": "d", "d": None}


async def test_X23_a_run_tells_the_parent_of_its_session(session_database: SessionDatabase) -> None:
    """The parent that the session has, whether the run named it or not; and none outside a session."""
    db, lifecycle = session_database, session_database.lifecycle
    run: dict[str, Any] = {"user_id": A, "started_at": NOON, "ended_at": NOON}
    named = Run(run_id="named", session_id="c", parent_session_id="p", **run)
    other = Run(run_id="other", session_id="c", **run)
    waits = Run(run_id="waits", parent_run_id="unseen", **run)
    await lifecycle.record([named, other, waits, child("c", "q"), child("c", user=B)])

    async def found() -> dict[str, str | None]:
        page = await db.activity.list_runs(RunFilters(user_id=A))
        return {one.run_id: one.parent_session_id for one in page.runs}

    assert await found() == {"named": "p", "other": "p", "waits": None}
    detail = await db.activity.get_session_detail("c", A)
    assert detail is not None
    assert [one.parent_session_id for one in detail.runs] == ["p", "p"]
    await lifecycle.update_session("c", A, parent_session_id="q")
    assert await found() == {"named": "q", "other": "q", "waits": None}
    # An ended session keeps the parent that it has.
    await lifecycle.update_session("c", A, parent_session_id=None)
    await lifecycle.end_session("c", A, "completed")
    await lifecycle.record([named])
    assert await parents(db) == {"c": None}


async def test_X23_circles_are_refused_and_nothing_of_the_call_is_written(session_database: SessionDatabase) -> None:
    db, lifecycle = session_database, session_database.lifecycle
    await lifecycle.record([child("a", "b"), child("b", "c"), child("c")])
    before = await parents(db)
    with pytest.raises(InvalidValueError, match="another session"):
        Touch.of_call(session_id="x", user_id=A, parent_session_id="x")
    expected = "parent_session_id: expected the id of a session that does not descend from this one"
    calls: list[Any] = [
        lambda: lifecycle.record([child("new"), child("c", "a")]),
        lambda: lifecycle.record([child("x", "y"), child("y", "z"), child("z", "x")]),
        lambda: lifecycle.record([child("x", "y"), UsageEvent(session_id="x", user_id=A, run_id="r"), child("y", "x")]),
        lambda: lifecycle.update_session("c", A, parent_session_id="b", title="t"),
    ]
    for call in calls:
        with pytest.raises(InvalidValueError) as refused:
            await call()
        assert refused.value.field == "parent_session_id"
        assert refused.value.expected in expected
        assert await parents(db) == before
    # Two users have circles of their own only.
    await lifecycle.record([child("c", "a", B)])
    # The last of these parents is refused while it would close the circle, and not after.
    await lifecycle.update_session("a", A, parent_session_id=None)
    await lifecycle.record([child("c", "a")])
    assert await counted(db, "a") == (3, 0)


async def test_X23_a_circle_that_is_there_ends_every_read(session_database: SessionDatabase) -> None:
    db, lifecycle = session_database, session_database.lifecycle
    await lifecycle.record([child("a"), child("b", "a"), child("c", "b")])
    await ask(db, "UPDATE session_records SET parent_session_id = 'c' WHERE session_id = 'a'")
    for name in "abc":
        assert await counted(db, name) == (3, 0)
    # A session above the circle is judged by itself.
    await lifecycle.record([child("d", "c")])
    assert await counted(db, "d") == (1, 0)


async def test_X23_concurrent_parents_never_close_a_circle(session_database: SessionDatabase) -> None:
    db, lifecycle, chance = session_database, session_database.lifecycle, random.Random(3)
    names = [f"{number}" for number in range(6)]
    await lifecycle.record([child(name) for name in names])

    async def link(name: str, parent: str) -> None:
        if chance.random() < 0.5:
            await lifecycle.update_session(name, A, parent_session_id=parent)
        else:
            await lifecycle.record([child(f"{name}+", name), child(name, parent), child(parent)])

    for _ in range(10):
        pairs = [tuple(chance.sample(names, 2)) for _ in range(8)]
        done = await asyncio.gather(*(link(one, other) for one, other in pairs), return_exceptions=True)
        assert None in done
        failures = [one for one in done if one is not None]
        assert all(isinstance(one, InvalidValueError) and one.field == "parent_session_id" for one in failures), done
        above = await parents(db)
        for name in names:
            seen, at = set(), name
            while (parent := above.get(at)) is not None:
                assert parent != name, above
                assert parent not in seen
                seen.add(parent)
                at = parent
        await ask(db, "UPDATE session_records SET parent_session_id = NULL")


async def test_X23_the_children_are_found_by_an_index(session_database: SessionDatabase) -> None:
    async with session_database.engine.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO session_lifecycle.session_records (user_id, session_id, parent_session_id) "
            "SELECT gen_random_uuid(), n::text, CASE WHEN n % 10 = 0 THEN '0' END FROM generate_series(1, 5000) n"
        )
    await session_database.lifecycle.record([child("p"), child("c", "p")])
    await ask(session_database, "ANALYZE session_records")
    plan = await World(session_database).plan(session_database.lifecycle.get_family_figures("p", A))
    assert "ix_session_records_user_id_parent_session_id" in plan
    assert "Seq Scan" not in plan
