"""Buckets on Citus: distributing, moving between nodes with writers at work, locks that hold on every node."""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from uuid import UUID

import pytest

from session_lifecycle import (
    ConfigurationError,
    End,
    InvalidValueError,
    Run,
    RunFilters,
    SchemaError,
    SessionDatabase,
    SessionListFilters,
    TransactionConflictError,
    UsageEvent,
    UsageReceipt,
    Viewer,
)
from session_lifecycle.buckets import citus
from session_lifecycle.buckets.database import BucketDatabase
from session_lifecycle.buckets.places import Place
from session_lifecycle.entities import metadata
from session_lifecycle.postgres.function_files import BODY_TAG, STANDS_FOR, function_files
from session_lifecycle.postgres.permissions import DatabaseRole, role_sql
from session_lifecycle.statements.buckets import citus as statements
from support.buckets import user_in
from support.citus import CitusBuckets
from support.commands import run as run_command
from support.commands import succeed
from support.roles import url_as

from .test_moving import BEGAN, event


async def keys_in(cluster: CitusBuckets, number: int) -> Counter[str]:
    async with cluster.connected() as connection:
        rows = await connection.fetch(
            f"SELECT idempotency_key FROM {cluster.schemas[number]}.session_usage_events "
            "WHERE idempotency_key IS NOT NULL"
        )
    return Counter(row[0] for row in rows)


class Storm:
    """Writers of one bucket in every way, who know what was acknowledged."""

    def __init__(self, user: UUID, erased: UUID, host: SessionDatabase) -> None:
        self.user, self.erased, self.host = user, erased, host
        self.numbers = count()
        self.acknowledged: list[int] = []
        self.ways: Counter[str] = Counter()
        self.is_over = False

    async def one_use(self, db: BucketDatabase) -> None:
        await self._until_over("one use", lambda number: db.lifecycle.record([self._event(number)]))

    async def batches(self, db: BucketDatabase) -> None:
        while not self.is_over:
            numbers = [next(self.numbers) for _ in range(40)]
            receipts = await db.lifecycle.record([self._event(number) for number in numbers])
            self._acknowledge("batch", numbers, receipts)

    async def with_runs(self, db: BucketDatabase) -> None:
        def items(number: int) -> list[UsageEvent | Run]:
            run = Run(run_id=f"r{number}", user_id=self.user, session_id=self._s(number), started_at=BEGAN)
            return [self._event(number), run]

        await self._until_over("run", lambda number: db.lifecycle.record(items(number)))

    async def bound(self, db: BucketDatabase) -> None:
        async def write(number: int) -> list[object]:
            while True:
                # A host's transaction locks on the coordinator and on the node, so a move may have to end it.
                with suppress(TransactionConflictError):
                    async with self.host.engine.begin() as connection:
                        return list(await db.bind(connection).lifecycle.record([self._event(number)]))

        await self._until_over("bound", write)

    async def recorded(self, db: BucketDatabase) -> None:
        async with db.recorder() as recorder:
            await self._until_over("recorded", lambda number: recorder.record([event(self.user, number)]))

    async def come_back(self, db: BucketDatabase) -> None:
        """An erased user tries to come back, directly and in a host's transaction."""
        while not self.is_over:
            with pytest.raises(InvalidValueError, match="erased"):
                await db.lifecycle.ensure_and_touch_session("s", self.erased)
            async with self.host.engine.begin() as connection:
                with pytest.raises(InvalidValueError, match="erased"):
                    await db.bind(connection).lifecycle.ensure_and_touch_session("s", self.erased)
            await asyncio.sleep(0.02)

    def _event(self, number: int) -> UsageEvent:
        return event(self.user, number, self._s(number))

    @staticmethod
    def _s(number: int) -> str:
        return f"s{number % 7}"

    async def _until_over(self, way: str, write: Callable[[int], Awaitable[Sequence[object]]]) -> None:
        while not self.is_over:
            number = next(self.numbers)
            self._acknowledge(way, [number], await write(number))

    def _acknowledge(self, way: str, numbers: list[int], receipts: Sequence[object]) -> None:
        for number, receipt in zip(numbers, receipts, strict=False):
            assert isinstance(receipt, UsageReceipt)
            assert receipt.outcome == "applied"
            self.acknowledged.append(number)
        self.ways[way] += len(numbers)


async def storm(cluster: CitusBuckets, seconds: float, moves: int) -> None:
    nodes = await cluster.nodes()
    async with (
        SessionDatabase.buckets(cluster.places) as operator,
        SessionDatabase.buckets(cluster.places) as one,
        SessionDatabase.connect(cluster.url) as host,
    ):
        user, erased, stranger = user_in(operator, 0), user_in(operator, 0, 1), user_in(operator, 0, 2)
        await operator.lifecycle.ensure_and_touch_session("s", erased)
        await operator.maintenance.erase_user(erased, tombstone=True)
        it = Storm(user, erased, host)
        works = (it.one_use(one), it.one_use(operator), it.batches(one), it.with_runs(one), it.bound(one))
        tasks = [asyncio.create_task(work) for work in (*works, it.recorded(one), it.come_back(one))]
        for number in range(moves):
            await asyncio.sleep(seconds)
            at = await operator.placement.node_of(0)
            await operator.placement.move_to_node(0, next(node for node in nodes[number % 2 :] + nodes if node != at))
            assert await operator.placement.node_of(0) != at
            for task in tasks:
                assert not task.done(), task.exception()
        await asyncio.sleep(seconds)
        it.is_over = True
        await asyncio.gather(*tasks)
        assert set(it.ways) == {"one use", "batch", "run", "bound", "recorded"}
        keys = await keys_in(cluster, 0)
        assert set(keys.values()) == {1}
        assert {int(key) for key in keys} == set(it.acknowledged)
        for db in (operator, one):
            stats = await db.lifecycle.aggregate_stats(user)
            assert stats.tokens_in == len(it.acknowledged)
            assert (await db.lifecycle.aggregate_stats(stranger)).sessions == 0
            assert (await db.lifecycle.list_session_rows(SessionListFilters(user_id=erased))).total == 0
        report = await operator.maintenance.reconcile()
        assert report.mismatch_count == 0, report.mismatches
        assert await operator.check() == []


@pytest.mark.usefixtures("on_citus")
async def test_nothing_is_lost_while_a_bucket_moves_between_nodes(citus_cluster: CitusBuckets) -> None:
    await storm(citus_cluster, 0.5, 2)


@pytest.mark.soak
@pytest.mark.usefixtures("on_citus")
async def test_nothing_is_lost_in_many_moves_between_nodes(citus_cluster: CitusBuckets) -> None:
    await storm(citus_cluster, 2, 15)


async def test_a_move_ends_beside_many_writers_that_never_pause(
    on_citus: BucketDatabase, citus_cluster: CitusBuckets
) -> None:
    async with SessionDatabase.connect(citus_cluster.url) as host:
        it = Storm(user_in(on_citus, 0), user_in(on_citus, 0, 1), host)
        tasks = [asyncio.create_task(it.one_use(on_citus)) for _ in range(16)]
        for node in await citus_cluster.nodes():
            async with asyncio.timeout(60):
                await on_citus.placement.move_to_node(0, node)
            assert await on_citus.placement.node_of(0) == node
        it.is_over = True
        await asyncio.gather(*tasks)
        keys = await keys_in(citus_cluster, 0)
        assert {int(key) for key in keys} == set(it.acknowledged)
        assert (await on_citus.lifecycle.aggregate_stats(it.user)).tokens_in == len(it.acknowledged)


async def test_a_bucket_moves_back_to_a_node_where_it_is_still_read(
    on_citus: BucketDatabase, citus_cluster: CitusBuckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Citus drops what a move leaves behind when no transaction reads it any more, and refuses the move back before."""
    db, user = on_citus, user_in(on_citus, 0)
    first, second = await citus_cluster.nodes()
    [url, _] = await citus_cluster.node_urls()
    await db.placement.move_to_node(0, first)
    await db.lifecycle.record([event(user, 1)])
    async with citus_cluster.connected() as connection:
        rows = await connection.fetch(statements.SHARDS, citus_cluster.schemas[0])
    [shard] = [row["shard"] for row in rows if row["table_name"] == "session_records"]
    async with SessionDatabase.connect(url) as node:
        async with node.engine.begin() as reader:
            await reader.exec_driver_sql(f"SELECT FROM {shard}")
            await db.placement.move_to_node(0, second)
            monkeypatch.setattr(citus, "MOVE_ATTEMPTS", 1)
            with pytest.raises(TransactionConflictError, match="still in use"):
                await db.placement.move_to_node(0, first)
            monkeypatch.undo()
            assert await db.placement.node_of(0) == second
            moving = asyncio.create_task(db.placement.move_to_node(0, first))
            await asyncio.sleep(1.5)
            assert not moving.done()
        await moving
    assert await db.placement.node_of(0) == first
    assert (await db.lifecycle.aggregate_stats(user)).tokens_in == 1


async def test_a_call_is_written_on_the_node_of_its_bucket(
    on_citus: BucketDatabase, citus_cluster: CitusBuckets
) -> None:
    """Citus sends each call of an entry that writes to the node, and the node runs the copy that names the shards."""
    schema = citus_cluster.schemas[0]
    async with citus_cluster.connected() as connection:
        for one in citus.gates().values():
            if "RETURNS trigger" in one.source:
                continue
            arguments = ", ".join(f"NULL::{type_}" for type_ in one.argument_types.split(", "))
            plan = await connection.fetch(f"EXPLAIN SELECT * FROM {schema}.{one.name}({arguments})")
            assert any("Citus" in row[0] for row in plan), plan


async def test_locks_hold_on_the_node_of_the_bucket(on_citus: BucketDatabase, citus_cluster: CitusBuckets) -> None:
    """A host's transaction runs on the coordinator, and keeps a direct call waiting nevertheless."""
    db, user = on_citus, user_in(on_citus, 0)
    async with SessionDatabase.connect(citus_cluster.url) as host:
        async with host.engine.begin() as connection:
            # The session does not exist, so there is no row to lock.
            assert await db.bind(connection).lifecycle.ensure_and_touch_session("new", user) == "created"
            waiting = asyncio.create_task(db.lifecycle.ensure_and_touch_session("new", user))
            erasing = asyncio.create_task(db.maintenance.erase_user(user, tombstone=True))
            await asyncio.sleep(1)
            assert not waiting.done()
            assert not erasing.done()
        await asyncio.wait([waiting, erasing])
        # Whichever came first: the touch found the session or was refused, and nothing of the user is left.
        assert erasing.exception() is None
        if (refused := waiting.exception()) is not None:
            assert isinstance(refused, InvalidValueError)
    with pytest.raises(InvalidValueError, match="erased"):
        await db.lifecycle.ensure_and_touch_session("new", user)
    assert (await db.lifecycle.aggregate_stats(user)).sessions == 0


async def test_two_buckets_in_one_transaction_of_a_host(on_citus: BucketDatabase, citus_cluster: CitusBuckets) -> None:
    db = on_citus
    here, there = user_in(db, 0), user_in(db, 1)
    async with SessionDatabase.connect(citus_cluster.url) as host:
        async with host.engine.connect() as connection:
            await db.bind(connection).lifecycle.record([event(here, 1), event(there, 1)])
        assert (await db.lifecycle.aggregate_stats(Viewer.auditor())).sessions == 0
        async with host.engine.begin() as connection:
            await db.bind(connection).lifecycle.record([event(here, 1), event(there, 1)])
    assert (await db.lifecycle.aggregate_stats(Viewer.auditor())).tokens_in == 2


async def test_a_function_that_is_not_distributed_is_refused_and_migrate_distributes_it(
    on_citus: BucketDatabase, citus_cluster: CitusBuckets
) -> None:
    schema, user = citus_cluster.schemas[1], user_in(on_citus, 1)
    async with citus_cluster.connected() as connection:
        await connection.execute(f"DROP FUNCTION {schema}.record_wave{citus.SUFFIX}")
        await connection.execute(function_files()["reprice_v1"].create_sql(schema, replace=True))
    async with SessionDatabase.buckets(citus_cluster.places) as db:
        with pytest.raises(SchemaError, match="do not run on its node: record_wave_at_shards, reprice_v1: run"):
            await db.check()
    async with citus_cluster.connected() as connection:
        await connection.execute(f"ALTER FUNCTION {schema}.empty_sessions_v1 RENAME TO gone")
    async with SessionDatabase.buckets(citus_cluster.places) as db:
        with pytest.raises(SchemaError, match="empty_sessions_v1"):
            await db.check()
        await db.lifecycle.aggregate_stats(user_in(db, 0))  # another bucket is not concerned
        with pytest.raises(SchemaError, match="empty_sessions_v1"):
            await db.lifecycle.ensure_and_touch_session("s", user)
        await db.migrate()
        assert await db.check() == []
        assert await db.lifecycle.ensure_and_touch_session("s", user) == "created"
    async with citus_cluster.connected() as connection:
        await connection.execute(f"DROP FUNCTION {schema}.gone")
        assert await citus.group_of(connection, schema) is not None


async def test_an_operator_lists_moves_and_rebalances(on_citus: BucketDatabase, citus_cluster: CitusBuckets) -> None:
    nodes = await citus_cluster.nodes()
    named = [word for place in citus_cluster.places for word in ("--place", f"{place.url}#{place.schema}")]
    user = user_in(on_citus, 2)
    await on_citus.lifecycle.record([event(user, 1)])

    def listed(command: str, *more: str) -> list[str]:
        lines = succeed("db", "buckets", command, *more, *named, "--json").splitlines()
        return [json.loads(line)["node"] for line in lines]

    for number in range(4):
        found = json.loads(succeed("db", "buckets", "move", str(number), "--to", nodes[0], "--yes", "--json", *named))
        assert found["node"] == nodes[0]
    assert listed("list") == [nodes[0]] * 4
    assert set(listed("rebalance", "--yes")) == set(nodes)
    assert (await on_citus.lifecycle.aggregate_stats(user)).tokens_in == 1
    assert "Citus has distributed 4 buckets." in succeed("db", "distribute", *named)
    refused = run_command("db", "buckets", "move", "0", "--to", "127.0.0.1:1", "--yes", *named)
    assert refused.returncode == 1
    assert "expected a node that keeps data" in refused.stderr
    with pytest.raises(ConfigurationError, match="of Citus: give host:port of another node"):
        await on_citus.placement.move(0, citus_cluster.url.replace("127.0.0.1", "localhost"))


async def test_a_database_without_citus_is_refused(session_database_url: str) -> None:
    async with SessionDatabase.buckets(["a", "b"], url=session_database_url) as db:
        with pytest.raises(SchemaError, match="not migrated"):
            await db.placement.distribute()
        await db.migrate()
        with pytest.raises(ConfigurationError, match="bucket 1: the database has no extension citus"):
            await db.placement.distribute()
        assert await db.placement.node_of(0) is None
        with pytest.raises(ConfigurationError, match="bucket 0 is not distributed"):
            await db.placement.rebalance()
        with pytest.raises(ConfigurationError, match="not distributed: run"):
            await db.placement.move_to_node(0, "127.0.0.1:1")


def test_the_copies_name_shards_and_number_rows() -> None:
    """Citus plans nothing in them. A shard has no default that numbers its rows."""
    numbered = {table.name for table in metadata.sorted_tables if any(one.identity for one in table.columns)}
    shards = {table.name: f"b.{table.name}_7" for table in metadata.sorted_tables}
    tables = "|".join(shards)
    inserted = set()
    for one in citus.copied().values():
        _, _, body = citus.copy_of(one, shards).source.partition(BODY_TAG)
        assert not re.search(rf"\{{schema\}}\.({tables})\b", body)
        called = {name.removesuffix(citus.SUFFIX) for name in re.findall(r"\{schema\}\.(\w+_at_shards)\(", body)}
        assert called == set(re.findall(r"\{schema\}\.(\w+)\(", one.source)[1:]) & citus.copied().keys()
        for table, rest in re.findall(r"INSERT INTO b\.(\w+)_7\b([^;]*)", body):
            if table in numbered:
                assert re.match(r"(?: AS \w+)?\s+\((record_no|change_id), .*?\)\s+SELECT nextval\(", rest, re.DOTALL), (
                    rest
                )
                inserted.add(table)
    assert inserted == numbered


def test_a_gate_stands_for_the_entry() -> None:
    shards = {"session_records": "b.session_records_7"}
    for one in citus.gates().values():
        gate = citus.gate_of("b", one, shards, 7)
        assert gate.signature == one.signature
        assert f"{STANDS_FOR}{one.body_md5('b')}\n" in gate.source
        assert ("s.shardid = 7" in gate.source) != ("RETURNS trigger" in gate.source)
    assert not [one for one in function_files().values() if STANDS_FOR in one.source]


async def test_roll_ups_are_made_divided_and_repaired(citus_cluster: CitusBuckets, on_citus: BucketDatabase) -> None:
    """One hour has enough sessions for buckets of every length, and later ones divide and change them."""
    db, dataset = on_citus, UUID(int=99)
    user, schema = user_in(db, 0), citus_cluster.schemas[0]

    async def record(first: int, after: int) -> None:
        items: list[UsageEvent | End] = []
        for number in range(first, after):
            at = BEGAN + timedelta(minutes=number % 600)
            of = {"session_id": f"s{number}", "user_id": user}
            items.append(UsageEvent(**of, dataset_id=dataset, model=f"m{number % 3}", tokens_in=1, cost_usd=1, at=at))
            items.append(End(**of, status="completed", at=at))
        await db.lifecycle.record(items)
        assert (await db.maintenance.roll_up()).sessions == after - first

    async def levels() -> set[str]:
        async with citus_cluster.connected() as connection:
            return {row[0] for row in await connection.fetch(f"SELECT DISTINCT level FROM {schema}.session_roll_ups")}

    await record(0, 200)
    few = await levels()
    await record(200, 3000)
    assert "hour" in await levels()
    assert await levels() > few
    await db.lifecycle.reopen_session("s1", user)
    assert await db.maintenance.delete_session("s2", user)
    await db.maintenance.roll_up()
    for viewer in (Viewer(user), Viewer(UUID(int=5), permitted_dataset_ids=[dataset]), Viewer.auditor()):
        stats = await db.lifecycle.aggregate_stats(viewer)
        assert (stats.sessions, stats.tokens_in) == (2999, 2999)
        costs = await db.lifecycle.cost_by_model(viewer)
        assert {row.model: row.session_count for row in costs} == {"m0": 1000, "m1": 1000, "m2": 999}
        page = await db.lifecycle.list_session_rows(SessionListFilters(viewer=viewer, order_by="cost_usd", limit=20))
        ids = sorted((f"s{number}" for number in range(3000) if number != 2), reverse=True)
        assert (page.total, [one.record.session_id for one in page.sessions]) == (2999, ids[:20])
    assert (await db.maintenance.reconcile()).mismatch_count == 0
    async with citus_cluster.connected() as connection:
        await connection.execute(f"UPDATE {schema}.session_roll_ups SET sessions = sessions + 1 WHERE level = 'hour'")
    assert (await db.maintenance.reconcile(repair=True)).mismatch_count > 0
    assert (await db.maintenance.reconcile()).mismatch_count == 0


async def test_roles_of_little_rights_work_on_a_distributed_bucket(
    on_citus: BucketDatabase, citus_cluster: CitusBuckets
) -> None:
    """With what `db roles` says, and with what the page on buckets adds to it for sequences."""
    roles = {role: f"citus_{role}_{os.getpid()}" for role in (DatabaseRole.WORKER, DatabaseRole.READER)}
    worker, reader = roles.values()

    def places_of(name: str) -> list[Place]:
        return [Place(schema, url_as(citus_cluster.url, name)) for schema in citus_cluster.schemas]

    async with citus_cluster.connected() as connection:
        try:
            for role, name in roles.items():
                await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
                for schema in citus_cluster.schemas:
                    await connection.execute(role_sql(schema, role, name))
            for schema in citus_cluster.schemas:
                grant = f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {worker}"
                await connection.fetch("SELECT run_command_on_workers($1)", grant)
            users = [user_in(on_citus, number) for number in range(len(citus_cluster.schemas))]
            runs = [Run(run_id="r", user_id=user, session_id="s", started_at=BEGAN) for user in users]
            async with SessionDatabase.buckets(places_of(worker)) as db:
                await db.lifecycle.record([*(event(user, 1) for user in users), *runs])
            async with SessionDatabase.buckets(places_of(reader)) as db:
                for user in users:
                    assert (await db.lifecycle.aggregate_stats(user)).tokens_in == 1
                    assert (
                        len((await db.activity.list_runs(RunFilters(viewer=Viewer(user), include_open=True))).runs) == 1
                    )
                    with pytest.raises(ConfigurationError, match="permission denied"):
                        await db.lifecycle.record([event(user, 2)])
        finally:
            for name in roles.values():
                await connection.execute(f"DROP OWNED BY {name}")
                await connection.execute(f"DROP ROLE IF EXISTS {name}")
