"""Exports: every row once, in the order of keys, from one snapshot, exact in every format, with flat memory."""

import csv
import io
import json
import tracemalloc
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pyarrow.parquet
import pytest
from sqlalchemy import func, select

from session_lifecycle import (
    ConfigurationError,
    InvalidValueError,
    RunFilters,
    SessionDatabase,
    SessionListFilters,
    Touch,
    UsageEvent,
    Viewer,
)
from session_lifecycle.entities import metadata
from session_lifecycle.maintenance.export_files import export_to_folder, row_writer
from session_lifecycle.models.transfer import EXPORT_TABLES
from session_lifecycle.statements.maintenance.export import SHAPES
from support.stored_rows import ask
from support.transfer import TINY, A, answers, live

NOT_EXPORTED = {
    "rolled_up_sessions",
    "session_model_roll_up_changes",
    "session_model_roll_ups",
    "session_buckets",
    "session_reservations",
    "session_roll_up_changes",
    "session_roll_ups",
}
DERIVED = {"activity_minute", "rolled_up", "model_key", "content_folded", "is_error"}
AT = datetime(2026, 2, 1, tzinfo=UTC)


async def exported(db: SessionDatabase, table: Any, filters: Any = None, batch: int = 500) -> list[dict[str, Any]]:
    async with aclosing(db.maintenance.export(table, filters, batch=batch)) as batches:
        return [row async for one in batches for row in one.rows]


def relation(sql: str) -> duckdb.DuckDBPyRelation:
    """The rows of a query of DuckDB."""
    found = duckdb.sql(sql)
    assert found is not None
    return found


def test_every_table_and_column_is_exported_or_derived() -> None:
    tables = {shape.table.name for shape in SHAPES.values()}
    assert tables | NOT_EXPORTED == {table.name for table in metadata.tables.values()}
    for shape in SHAPES.values():
        assert {column.name for column in shape.table.c} - shape.columns.keys() <= DERIVED


async def test_every_row_is_exported_once_in_the_order_of_its_key(session_database: SessionDatabase) -> None:
    db = session_database
    await live(db)
    seen: list[str] = []
    counted: dict[str, int] = {}
    async with aclosing(db.maintenance.export("all", batch=3)) as batches:
        async for batch in batches:
            assert 1 <= len(batch.rows) <= 3
            assert all(row.keys() == SHAPES[batch.table].columns.keys() for row in batch.rows)
            seen += [batch.table] if batch.table not in seen else []
            counted[batch.table] = counted.get(batch.table, 0) + len(batch.rows)
    assert seen == [name for name in EXPORT_TABLES if name in counted]
    for name, shape in SHAPES.items():
        async with db.engine.connect() as connection:
            stored = (await connection.execute(select(func.count()).select_from(shape.table))).scalar_one()
        assert counted.get(name, 0) == stored > 0, name
        if "model_key" not in shape.key:
            rows = await exported(db, name)
            assert [row[shape.key[0]] for row in rows] == sorted(row[shape.key[0]] for row in rows)
            keys = [tuple(row[column] for column in shape.key) for row in rows]
            assert keys == sorted(set(keys)), name


async def test_all_tables_of_an_export_are_one_snapshot(session_database: SessionDatabase) -> None:
    db = session_database
    for number in range(5):
        await db.lifecycle.accumulate_usage(f"s{number}", A, "m", 1, cost_usd=1)
    events = 0
    async with aclosing(db.maintenance.export("all", batch=1)) as batches:
        async for batch in batches:
            if batch.table == "sessions" and batch.rows[0]["session_id"] == "s1":
                await db.lifecycle.accumulate_usage("s1", A, "m", 1, cost_usd=1)
                await db.lifecycle.accumulate_usage("s9", A, "m", 1, cost_usd=1)
                await db.maintenance.delete_session("s4", A)
            events += batch.table == "usage_events"
    assert events == 5
    assert len(await exported(db, "usage_events")) == 6


async def test_an_export_that_is_left_early_gives_its_connection_back(session_database: SessionDatabase) -> None:
    db = session_database
    await db.lifecycle.accumulate_usage("s", A, "m", 1, cost_usd=1)
    await db.lifecycle.accumulate_usage("t", A, "m", 1, cost_usd=1)
    for _ in range(30):
        async with aclosing(db.maintenance.export("all", batch=1)) as batches:
            async for _ in batches:
                break
    [(open_,)] = await ask(db, "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
    assert open_ == 0


async def test_an_error_of_the_caller_stays_its_own(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.accumulate_usage("s", A, "m", 1, cost_usd=1)

    async def fail() -> None:
        async with aclosing(session_database.maintenance.export("sessions")) as batches:
            async for _ in batches:
                raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        await fail()


async def test_an_export_in_a_hosts_transaction_sees_what_it_has_written(session_database: SessionDatabase) -> None:
    async with session_database.engine.connect() as connection:
        transaction = await connection.begin()
        bound = session_database.bind(connection)
        await bound.lifecycle.accumulate_usage("s", A, "m", 1, cost_usd=1)
        async with aclosing(bound.maintenance.export("sessions")) as batches:
            assert [row["session_id"] async for batch in batches for row in batch.rows] == ["s"]
        await transaction.rollback()
    assert await exported(session_database, "sessions") == []


@pytest.mark.parametrize(
    ("table", "filters", "field"),
    [
        ("everything", None, "table"),
        ("all", SessionListFilters(viewer=Viewer(A)), "filters"),
        ("budgets", SessionListFilters(viewer=Viewer(A)), "filters"),
        ("sessions", RunFilters(viewer=Viewer(A)), "filters"),
    ],
)
def test_arguments_are_refused_at_once(session_database: SessionDatabase, table: Any, filters: Any, field: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        session_database.maintenance.export(table, filters)
    assert refused.value.field == field
    with pytest.raises(InvalidValueError, match="batch: got 0"):
        session_database.maintenance.export("sessions", batch=0)


AMOUNTS = ("0", "0.10", "12345678.000000000000000000000000000001", "3E-20", "999999999.999999999999999999999999999999")


@pytest.mark.parametrize("text", ["a\rb", "a\r\nb", "\r", "=1+1", '"', "a,b", " a ", "\t", "\x1f", "\x85", "null"])
async def test_a_cell_of_csv_is_read_back_as_it_was(
    session_database: SessionDatabase, tmp_path: Path, text: str
) -> None:
    db = session_database
    before, after = (Touch(user_id=A, session_id=key, at=AT) for key in "az")
    await db.lifecycle.record([before, Touch(user_id=A, session_id=f"k{text}", title=text, at=AT), after])
    await export_to_folder(db.maintenance.export, tmp_path / "csv", "csv")
    content = (tmp_path / "csv" / "sessions.csv").read_bytes()
    assert content.count(b"\n") == 4 + 2 * text.count("\n")
    read = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert [(row["session_id"], row["title"]) for row in read] == [("a", ""), (f"k{text}", text), ("z", "")]


async def test_amounts_ids_times_and_json_are_exact_in_every_format(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    db = session_database
    weird = "ä\"',;\n🎈\u2028"
    await db.lifecycle.record(
        [
            Touch(user_id=A, session_id=weird, at=AT, title=weird, metadata={"n": 0.1, weird: [None, True]}),
            *(
                UsageEvent(
                    user_id=A,
                    session_id=weird,
                    model="m",
                    tokens_in=1,
                    cost_usd=Decimal(amount),
                    idempotency_key=amount,
                    at=AT + timedelta(microseconds=number),
                )
                for number, amount in enumerate(AMOUNTS)
            ),
        ]
    )
    await export_to_folder(db.maintenance.export, tmp_path / "parquet", "parquet")
    await export_to_folder(db.maintenance.export, tmp_path / "jsonl", "jsonl")
    await export_to_folder(db.maintenance.export, tmp_path / "csv", "csv")
    [session] = await exported(db, "sessions")
    read = pyarrow.parquet.read_table(tmp_path / "parquet" / "sessions.parquet").to_pylist()
    assert [(row["session_id"], row["title"], json.loads(row["metadata"])) for row in read] == [
        (weird, weird, {"n": 0.1, weird: [None, True]})
    ]
    assert (UUID(read[0]["user_id"]), read[0]["started_at"], Decimal(read[0]["cost_usd"])) == (
        A,
        AT,
        session["cost_usd"],
    )
    lines = (tmp_path / "jsonl" / "usage_events.jsonl").read_text().split("\n")[:-1]
    with (tmp_path / "csv" / "usage_events.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    columns = relation(f"SELECT * FROM '{tmp_path / 'parquet' / 'usage_events.parquet'}'")
    by_duckdb = [dict(zip(columns.columns, row, strict=True)) for row in columns.fetchall()]
    for rows in ([json.loads(line) for line in lines], table, by_duckdb):
        amounts = {row["idempotency_key"]: Decimal(row["cost_usd"]) for row in rows}
        assert amounts == {amount: Decimal(amount) for amount in AMOUNTS}
        assert {row["session_id"] for row in rows} == {weird}
    assert {row["at"].astimezone(UTC) for row in by_duckdb} == {
        AT + timedelta(microseconds=n) for n in range(len(AMOUNTS))
    }
    assert [(row["late"], row["parts"]) for row in table] == [("false", "")] * len(AMOUNTS)
    totals = relation(
        f"SELECT sum(CAST(cost_usd AS DECIMAL(38, 20))), sum(tokens_in) "
        f"FROM '{tmp_path / 'parquet' / 'usage_events.parquet'}' WHERE idempotency_key IN ('0.10', '3E-20')"
    ).fetchall()
    assert totals == [(Decimal("0.10000000000000000003"), 2)]


async def test_parquet_read_back_has_the_rows_of_the_database(
    session_database: SessionDatabase, tmp_path: Path
) -> None:
    await live(session_database, [A])
    manifest = await export_to_folder(session_database.maintenance.export, tmp_path / "all", "parquet")
    for name in EXPORT_TABLES:
        rows = await exported(session_database, name)
        path = tmp_path / "all" / f"{name}.parquet"
        read = pyarrow.parquet.read_table(path).to_pylist()
        counted = relation(f"SELECT count(*) FROM '{path}'").fetchall()
        assert counted == [(len(rows),)] == [(manifest["tables"][name]["rows"],)]
        for found, stored in zip(read, rows, strict=True):
            for column, value in stored.items():
                expected = str(value) if isinstance(value, UUID) else value
                got = Decimal(found[column]) if isinstance(value, Decimal) else found[column]
                assert got == expected, (name, column)
    smallest = relation(f"SELECT min(CAST(given_cost_usd AS VARCHAR)) FROM '{tmp_path}/all/usage_events.parquet'")
    assert smallest.fetchall() == [(format(TINY, "f"),)]


async def test_memory_is_flat(session_database: SessionDatabase) -> None:
    """Thirty times the rows take no more memory, whichever format they are written in."""
    db = session_database
    many = """
        INSERT INTO session_messages (user_id, session_id, message_id, role, content, content_folded, created_at)
        SELECT '{user}', 's', to_char(n, 'FM000000'), 'user', repeat('x', 2000), 'x', now()
        FROM generate_series({first}, {last}) n
    """

    async def peak(file_format: Any) -> int:
        sink = _Sink()
        tracemalloc.start()
        try:
            writer = row_writer("messages", file_format, sink)  # type: ignore[arg-type]  # all that a writer uses
            async with aclosing(db.maintenance.export("messages", batch=100)) as batches:
                async for batch in batches:
                    writer.write(batch.rows)
            writer.finish()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for first, last in ((1, 300), (301, 9000)):
        await ask(db, many.format(user=A, first=first, last=last))
        peaks = [await peak(file_format) for file_format in ("jsonl", "csv", "parquet")]
        if last == 300:
            small = peaks
    assert all(large < 3 * before + 1_000_000 for before, large in zip(small, peaks, strict=True)), (small, peaks)


class _Sink(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def __init__(self) -> None:
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, content: Any) -> int:
        self._at += len(content)
        return len(content)


async def test_parquet_without_its_package_says_what_to_install(
    session_database: SessionDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'session-lifecycle\[parquet\]'"):
        await export_to_folder(session_database.maintenance.export, tmp_path / "all", "parquet")
    assert not (tmp_path / "all").exists()


async def test_answers_are_those_of_the_moment(session_database: SessionDatabase) -> None:
    """The helper of the imports' tests sees a difference: a late event more changes many answers."""
    await live(session_database, [A])
    before = await answers(session_database)
    await session_database.lifecycle.record(
        [UsageEvent(user_id=A, session_id="ended", at=AT + timedelta(hours=9), tokens_in=1, cost_usd=1, model="m")]
    )
    after = await answers(session_database)
    assert len({name for name in before if before[name] != after[name]}) > 10
