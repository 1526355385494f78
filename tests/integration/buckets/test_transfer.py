"""Exports and imports of buckets: a database goes into buckets and comes back, and every answer stays."""

import json
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import ConfigurationError, InvalidValueError, SessionDatabase, SessionListFilters, Viewer
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.maintenance.export_files import export_to_folder
from support.buckets import BucketServers, user_in
from support.commands import succeed
from support.transfer import D1, D2, PRICES, A, B, answers, imported, live, rows_of


@pytest.fixture(params=["on_two_servers", "on_citus"])
def buckets(request: pytest.FixtureRequest) -> BucketDatabase:
    found: BucketDatabase = request.getfixturevalue(request.param)
    return found


async def test_a_database_goes_into_buckets_and_comes_back(
    session_database_url: str, buckets: BucketDatabase, tmp_path: Path
) -> None:
    async with SessionDatabase.connect(session_database_url, prices=PRICES) as plain:
        await live(plain, (A, B, user_in(buckets, 1), user_in(buckets, 3)))
        await export_to_folder(plain.maintenance.export, tmp_path / "with a budget of an agent")
        report, refused = await imported(buckets, tmp_path / "with a budget of an agent")
        assert refused == [
            "budgets:1: user_id: got None, expected a user: no bucket sees what all users of an agent or a dataset use"
        ]
        assert (report.refused_users, report.mismatch_count) == (0, 0)
        await plain.budgets.delete_budget("coder")
        there = await export_to_folder(plain.maintenance.export, tmp_path / "there")
        report, refused = await imported(buckets, tmp_path / "there")
        assert (refused, report.added, report.mismatch_count) == ([], 0, 0)
        assert {one.table: one.unchanged for one in report.tables} == rows_of(there)
        for viewer in (Viewer.auditor(), Viewer(A), Viewer(B, permitted_dataset_ids=[D1, D2])):
            assert await figures(buckets, viewer) == await figures(plain, viewer)
        back = await export_to_folder(buckets.maintenance.export, tmp_path / "back")
        assert back["tables"] == there["tables"]  # the same rows in the same order, by their checksums


async def figures(db: SessionDatabase | BucketDatabase, viewer: Viewer) -> Any:
    page = await db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer))
    return page, await db.lifecycle.aggregate_stats(viewer), await db.lifecycle.cost_by_model(viewer)


@pytest.mark.soak
async def test_every_answer_is_that_of_the_database_that_went_into_buckets(
    session_database_url: str, buckets: BucketDatabase, tmp_path: Path
) -> None:
    async with SessionDatabase.connect(session_database_url, prices=PRICES) as plain:
        await live(plain, (A, B, user_in(buckets, 1), user_in(buckets, 3)))
        await plain.budgets.delete_budget("coder")
        await export_to_folder(plain.maintenance.export, tmp_path / "all")
        assert (await imported(buckets, tmp_path / "all"))[1] == []
        before, after = await answers(plain), await answers(buckets)
        assert {name for name in before if before[name] != after[name]} == set()


async def test_an_export_of_buckets_comes_in_batches_by_key(on_two_servers: BucketDatabase) -> None:
    users = sorted(user_in(on_two_servers, number, which) for number in range(4) for which in range(3))
    for user in users:
        await on_two_servers.lifecycle.ensure_and_touch_session("s", user)
    sizes, found = list[int](), list[UUID]()
    async with aclosing(on_two_servers.maintenance.export("sessions", batch=5)) as batches:
        async for batch in batches:
            sizes.append(len(batch.rows))
            found.extend(row["user_id"] for row in batch.rows)
    assert (sizes, found) == ([5, 5, 2], users)
    async with aclosing(on_two_servers.maintenance.export("all")) as batches:
        assert (await anext(batches)).table == "sessions"
    # Left early, it has given its connections back.
    assert (await on_two_servers.lifecycle.aggregate_stats(Viewer.auditor())).sessions == len(users)
    with pytest.raises(InvalidValueError, match="batch: got 0"):
        on_two_servers.maintenance.export("sessions", batch=0)


async def test_a_row_that_is_refused_keeps_out_its_user_and_nobody_else(
    on_two_servers: BucketDatabase, session_database: SessionDatabase, tmp_path: Path
) -> None:
    erased, other = user_in(on_two_servers, 3), user_in(on_two_servers, 2)
    for user in (erased, other):
        await session_database.lifecycle.accumulate_usage("s", user, "gpt-4o", 1, 2)
    await export_to_folder(session_database.maintenance.export, tmp_path / "all")
    await on_two_servers.maintenance.erase_user(erased, tombstone=True)
    report, refused = await imported(on_two_servers, tmp_path / "all")
    assert len(refused) == 1
    assert "a user who is not erased" in refused[0]
    assert (report.refused_users, report.mismatch_count) == (1, 0)
    assert (await on_two_servers.lifecycle.aggregate_stats(erased)).sessions == 0
    assert (await on_two_servers.lifecycle.aggregate_stats(other)).tokens_in == 1
    with pytest.raises(ConfigurationError, match="on_refused: got 1, expected a callable"):
        await on_two_servers.maintenance.import_export(tmp_path / "all", on_refused=1)  # type: ignore[arg-type]  # no type checker
    with pytest.raises(InvalidValueError, match="folder: got 1, expected a path"):
        await on_two_servers.maintenance.import_export(1)  # type: ignore[arg-type]  # no type checker


async def test_an_operator_exports_and_imports_buckets(
    four_buckets: BucketServers, session_database: SessionDatabase, tmp_path: Path
) -> None:
    await session_database.lifecycle.accumulate_usage("s", A, "gpt-4o", 1, 2)
    await session_database.lifecycle.accumulate_usage("s", B, "gpt-4o", 3, 4)
    await export_to_folder(session_database.maintenance.export, tmp_path / "all")
    async with four_buckets.cloned() as places:
        named = [word for place in places for word in ("--place", f"{place.url}#{place.schema}")]
        found = json.loads(succeed("db", "buckets", "import", str(tmp_path / "all"), *named, "--json"))
        assert {one["table"]: one["added"] for one in found["tables"]}["sessions"] == 2
        back = json.loads(succeed("db", "buckets", "export", "--output", str(tmp_path / "back"), *named, "--json"))
        assert back["rows"]["usage_events"] == 2
    for name in ("sessions.jsonl", "usage_events.jsonl"):
        assert (tmp_path / "back" / name).read_text() == (tmp_path / "all" / name).read_text()
