"""A session is found among those of many users who share its id."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from session_lifecycle import SessionDatabase, Viewer
from session_lifecycle.testing import TemplateServer
from support.plans import BEGIN, ME, plan_of

SHARED_ID, SHARERS = "main", 20_000
# Everybody has a session of one id. They were active one after another, a minute apart, each in one of 200 datasets.
SEED_SHARED_ID = """
    INSERT INTO session_lifecycle.session_records (user_id, session_id, dataset_id, last_activity_at)
    SELECT ('00000000-0000-0003-0000-' || lpad(to_hex(n), 12, '0'))::uuid, :session_id,
           ('00000000-0000-0004-0000-' || lpad(to_hex(n % 200), 12, '0'))::uuid,
           CAST(:begin AS timestamptz) + n * interval '1 min'
    FROM generate_series(1, :sharers) n
"""
SHARER, LATEST_SHARER = UUID(int=(3 << 64) + 70), UUID(int=(3 << 64) + SHARERS)
FEW_DATASETS = [UUID(int=(4 << 64) + number) for number in (70, 71)]
ALL_DATASETS = [UUID(int=(4 << 64) + number) for number in range(200)]


@pytest.fixture(scope="module")
def url_of_shared_id(session_template_server: TemplateServer) -> Iterator[str]:
    """A database in which many users have a session of one id."""
    server, name = session_template_server, f"{session_template_server.template}_shared_id"

    async def seed() -> None:
        await server.clone(name)
        async with SessionDatabase.connect(server.url_of(name)) as db, db.engine.begin() as connection:
            values = {"session_id": SHARED_ID, "begin": BEGIN, "sharers": SHARERS}
            await connection.execute(text(SEED_SHARED_ID), values)
            await connection.execute(text("ANALYZE session_lifecycle.session_records"))

    asyncio.run(seed())
    yield server.url_of(name)
    asyncio.run(server.drop(name))


@pytest.mark.parametrize(
    ("viewer", "more", "owner"),
    [
        (Viewer(SHARER), {}, SHARER),
        (Viewer(SHARER, FEW_DATASETS), {}, SHARER),
        (Viewer(None, (), [SHARER, ME]), {}, SHARER),
        (Viewer(ME, FEW_DATASETS), {}, UUID(int=(3 << 64) + SHARERS - 129)),
        (Viewer(ME, ALL_DATASETS), {}, LATEST_SHARER),
        (Viewer(SHARER, ALL_DATASETS), {"prefer_other_owner": True}, LATEST_SHARER),
        (Viewer(LATEST_SHARER, ALL_DATASETS), {"prefer_other_owner": True}, UUID(int=(3 << 64) + SHARERS - 1)),
        (Viewer(ME, ALL_DATASETS), {"owner_id": SHARER}, SHARER),
        (Viewer.auditor(), {}, LATEST_SHARER),
        (Viewer.auditor(), {"owner_id": SHARER}, SHARER),
        (Viewer(SHARER, sees_all=True), {"prefer_other_owner": True}, LATEST_SHARER),
    ],
)
async def test_X39_a_session_of_an_id_that_many_users_share_is_found_among_a_bounded_number_of_rows(
    url_of_shared_id: str, viewer: Viewer, more: dict[str, Any], owner: UUID
) -> None:
    found: list[UUID] = []

    async def ask(db: SessionDatabase) -> None:
        row = await db.lifecycle.get_session_row(SHARED_ID, viewer, **more)
        assert row is not None
        found.append(row.record.user_id)

    plan = await plan_of(url_of_shared_id, ask)
    assert found == [owner]
    assert not plan.sequential
    # The latest two sessions of each dataset, and the record of the preferred session.
    assert plan.rows_read <= 2 * len(viewer.permitted_dataset_ids) + 5
