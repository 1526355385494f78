"""Rows of other systems: the reference's tables, LiteLLM's spend logs, Langfuse's export."""

import csv
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
import pyarrow as pa
import pytest
from pyarrow import parquet

from session_lifecycle import InvalidValueError, SessionDatabase, SessionListFilters, Settings, UsageEvent, Viewer
from session_lifecycle.integrations import langfuse_export
from session_lifecycle.integrations.foreign_import import ForeignImport, ForeignRow
from session_lifecycle.integrations.langfuse_export import LangfuseReader, langfuse_counts
from session_lifecycle.integrations.litellm_spend_logs import spend_log_row, unmapped_fields
from session_lifecycle.integrations.reference_rows import reference_row
from session_lifecycle.integrations.row_files import files_in, rows_of_file
from session_lifecycle.maintenance.foreign import reference_rows, spend_log_rows
from session_lifecycle.models import RunFilters, UsageEventFilters
from support.stored_rows import ask

A, B, D = UUID(int=1), UUID(int=2), UUID(int=11)
AUDITOR = Viewer.auditor()
START = datetime(2026, 2, 1, 8, tzinfo=UTC)
TABLES = """
    CREATE SCHEMA theirs;
    CREATE TABLE theirs.session_records (
        session_id varchar, user_id {uuid}, dataset_id {uuid}, agent_id varchar, status varchar NOT NULL,
        started_at {time} NOT NULL, last_activity_at {time} NOT NULL, ended_at {time},
        tokens_in int NOT NULL, tokens_out int NOT NULL, cost_usd float8 NOT NULL, error_count int NOT NULL,
        last_model text, PRIMARY KEY (session_id, user_id));
    CREATE TABLE theirs.session_model_usage (
        session_id varchar, user_id {uuid}, model text, tokens_in int NOT NULL, tokens_out int NOT NULL,
        cost_usd float8 NOT NULL, updated_at {time} NOT NULL, PRIMARY KEY (session_id, user_id, model));
"""
NATIVE, HEX = {"uuid": "uuid", "time": "timestamptz"}, {"uuid": "text", "time": "timestamp"}
STATS = """
    SELECT count(*), sum(tokens_in), sum(tokens_out), sum(cost_usd::text::numeric), sum(error_count),
        count(*) FILTER (WHERE status = 'completed'), count(*) FILTER (WHERE status = 'failed')
    FROM theirs.session_records
"""
BY_MODEL = """
    SELECT model, sum(tokens_in)::int, sum(tokens_out)::int
    FROM theirs.session_model_usage GROUP BY model ORDER BY model
"""
SESSIONS = """
    SELECT session_id, user_id::text, status, started_at, last_activity_at, ended_at, tokens_in, tokens_out,
        {cost} AS cost, error_count, last_model, dataset_id::text, {agent} AS agent
    FROM {table} ORDER BY session_id, user_id::text
"""


class Reference:
    """A database of the reference: it adds floats, and keeps no event."""

    def __init__(self, connection: asyncpg.Connection, kind: dict[str, str], seed: int = 1) -> None:
        self.connection = connection
        self.chance = Random(seed)
        self.is_native = kind is NATIVE

    def id(self, one: UUID | None) -> UUID | str | None:
        return one if self.is_native or one is None else one.hex

    def at(self, moment: datetime | None) -> datetime | None:
        return moment if self.is_native or moment is None else moment.replace(tzinfo=None)

    async def live(self, number: int) -> None:
        """Writes sessions with sums of floats, some without a model, some ended."""
        records, usage = [], []
        for one in range(number):
            user, session_id = self.chance.choice((A, B)), f"s{one:06}"
            began = START + timedelta(minutes=one)
            last = began + timedelta(minutes=self.chance.randrange(60))
            totals, by_model = [0, 0, 0.0], dict[str, list[Any]]()
            model = None
            for _ in range(self.chance.randrange(6)):
                used = [self.chance.randrange(999), self.chance.randrange(99), self.chance.random() / 7]
                model = self.chance.choice(("m", "n", "gpt-4o"))
                if self.chance.random() < 0.8:
                    by_model[model] = [a + b for a, b in zip(by_model.get(model, [0, 0, 0.0]), used, strict=True)]
                totals = [a + b for a, b in zip(totals, used, strict=True)]
            status = self.chance.choice(("running", "completed", "failed"))
            ended = None if status == "running" else last + timedelta(seconds=1)
            errors = self.chance.choice((0, 0, 2))
            dataset = self.chance.choice((None, D))
            times = (self.at(began), self.at(last), self.at(ended))
            place = (session_id, self.id(user))
            records.append((*place, self.id(dataset), "agent", status, *times, *totals, errors, model))
            usage += [(*place, name, *used, self.at(last)) for name, used in by_model.items()]
        for table, rows in (("session_records", records), ("session_model_usage", usage)):
            await self.connection.copy_records_to_table(table, schema_name="theirs", records=rows)


@pytest.fixture(params=[NATIVE, HEX], ids=["native", "hex"])
async def reference(session_database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Reference]:
    connection = await asyncpg.connect(session_database_url)
    await connection.execute("SET search_path = pg_catalog")
    await connection.execute(TABLES.format(**request.param))
    yield Reference(connection, request.param)
    await connection.close()


async def run(db: SessionDatabase, rows: Sequence[ForeignRow]) -> ForeignImport:
    job = ForeignImport(db.lifecycle)
    for row in rows:
        await job.add(row)
    await job.flush()
    return job


async def import_reference(db: SessionDatabase, url: str) -> ForeignImport:
    return await run(db, [reference_row(*row) async for row in reference_rows(url, "theirs", Settings())])


async def test_the_totals_of_the_reference_are_ours_and_a_second_run_changes_nothing(
    session_database: SessionDatabase, session_database_url: str, reference: Reference
) -> None:
    await reference.live(120)
    first = await import_reference(session_database, session_database_url)
    assert first.refused == []
    theirs = await ask_plain(reference, "theirs.session_records", "cost_usd::text::numeric", "agent_id")
    ours = await ask_plain(reference, "session_lifecycle.session_records", "cost_usd", "agent_name")
    assert ours == theirs
    stats = await session_database.lifecycle.aggregate_stats(AUDITOR)
    [expected] = await reference.connection.fetch(STATS)
    found = (stats.sessions, stats.tokens_in, stats.tokens_out, stats.total_spend_usd)
    assert found == tuple(expected)[:4]
    assert (stats.completed, stats.failed, stats.late_events) == (*tuple(expected)[5:], 0)
    costs = await session_database.lifecycle.cost_by_model(AUDITOR)
    by_model = sorted((row.model, row.tokens_in, row.tokens_out) for row in costs if row.model != "unknown")
    assert by_model == [tuple(row) for row in await reference.connection.fetch(BY_MODEL)]
    assert (await session_database.maintenance.reconcile()).mismatch_count == 0
    ledger = await ask(session_database, "SELECT * FROM session_usage_events ORDER BY event_id")
    second = await import_reference(session_database, session_database_url)
    assert (second.report.new_events, second.refused) == (0, [])
    assert await ask(session_database, "SELECT * FROM session_usage_events ORDER BY event_id") == ledger
    assert await ask_plain(reference, "session_lifecycle.session_records", "cost_usd", "agent_name") == theirs


async def ask_plain(reference: Reference, table: str, cost: str, agent: str) -> list[tuple[Any, ...]]:
    rows = await reference.connection.fetch(SESSIONS.format(table=table, cost=cost, agent=agent))
    return [
        tuple(
            value.replace("-", "")
            if isinstance(value, str) and name in {"user_id", "dataset_id"}
            else value.replace(tzinfo=UTC)
            if isinstance(value, datetime) and value.tzinfo is None
            else value.normalize()
            if isinstance(value, Decimal)
            else value
            for name, value in row.items()
        )
        for row in rows
    ]


def session(**fields: Any) -> dict[str, Any]:
    return {
        "session_id": "s",
        "user_id": str(A),
        "dataset_id": None,
        "status": "running",
        "started_at": "2026-02-01T08:00:00+00:00",
        "last_activity_at": "2026-02-01T08:10:00+00:00",
        "ended_at": None,
        "tokens_in": 10,
        "tokens_out": 5,
        "cost_usd": Decimal("0.30000000000000004"),
        "error_count": 0,
        "last_model": "b",
        **fields,
    }


def model(
    name: str, tokens_in: int, tokens_out: int, cost: str, at: str = "2026-02-01T08:05:00+00:00"
) -> dict[str, Any]:
    return {
        "model": name,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost_usd": Decimal(cost),
        "updated_at": at,
    }


async def test_what_models_have_beyond_an_ended_session_is_late(session_database: SessionDatabase) -> None:
    ended = session(status="completed", ended_at="2026-02-01T08:10:00+00:00")
    models = [model("a", 4, 2, "0.1"), model("b", 16, 5, "0.9", "2026-02-01T09:00:00+00:00")]
    for _ in range(2):
        job = await run(session_database, [reference_row(ended, models)])
        assert job.refused == []
    found = await session_database.lifecycle.get_session_row("s", A)
    assert found is not None
    record = found.record
    assert (record.tokens_in, record.tokens_out, record.cost_usd) == (10, 5, Decimal("0.30000000000000004"))
    assert (record.late_events, record.late_cost_usd, record.last_model) == (1, Decimal("0.69999999999999996"), "b")
    assert (await session_database.maintenance.reconcile()).mismatch_count == 0


async def test_a_session_that_grew_is_imported_again(session_database: SessionDatabase) -> None:
    early = reference_row(session(cost_usd=Decimal("0.1")), [model("b", 10, 5, "0.1")])
    later = session(
        tokens_in=30,
        cost_usd=Decimal("0.4"),
        status="failed",
        ended_at="2026-02-01T08:30:00",
        error_count=2,
        last_activity_at="2026-02-01T08:29:00",
    )
    grown = reference_row(later, [model("b", 30, 5, "0.4", "2026-02-01T08:20:00")])
    for row in (early, grown, grown):
        assert (await run(session_database, [row])).refused == []
    found = await session_database.lifecycle.get_session_row("s", A)
    assert found is not None
    record = found.record
    assert (record.status, record.tokens_in, record.cost_usd, record.error_count) == ("failed", 30, Decimal("0.4"), 2)
    assert (record.last_activity_at.minute, record.ended_at) == (29, datetime(2026, 2, 1, 8, 30, tzinfo=UTC))


async def test_a_session_that_has_usage_of_our_own_is_told(session_database: SessionDatabase) -> None:
    await session_database.lifecycle.accumulate_usage("s", A, "m", 7, cost_usd=1)
    job = await run(session_database, [reference_row(session(cost_usd=Decimal(1)), [model("b", 10, 5, "1")])])
    [told] = job.refused
    assert str(told) == (
        f"session 's' of user {A}: tokens_in: got '17', expected 10, which is the total of the other system"
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"status": "abandoned"}, "status"),
        ({"user_id": "somebody"}, "user_id"),
        ({"tokens_in": -1}, "tokens_in"),
        ({"started_at": "yesterday"}, "started_at"),
        ({"cost_usd": "NaN"}, "cost_usd"),
        ({"cost_usd": Decimal("1e400")}, "cost_usd"),
        ({"dataset_id": "x"}, "dataset_id"),
        ({"session_id": " "}, "session_id"),
        ({"rolled_up": False}, "session_records"),
    ],
)
def test_a_row_of_the_reference_that_is_refused_names_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        reference_row(session(**fields), [])
    assert refused.value.field == field


# LiteLLM

REQUEST = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "api_key": "hash",
    "spend": 0.00022500000000000002,
    "total_tokens": 130,
    "prompt_tokens": 110,
    "completion_tokens": 20,
    "startTime": "2026-02-01T08:00:00",
    "endTime": "2026-02-01T08:00:02.5",
    "model": "claude-sonnet-4",
    "custom_llm_provider": "anthropic",
    "user": str(A),
    "metadata": {
        "status": "success",
        "usage_object": {"cache_read_input_tokens": 60, "cache_creation_input_tokens": 40},
        "additional_usage_values": {},
    },
    "cache_hit": "False",
    "request_tags": ["a"],
    "session_id": "conversation",
    "status": "success",
    "agent_id": "coder",
}
SPEND_LOGS = """
    CREATE TABLE public."LiteLLM_SpendLogs" (
        request_id text PRIMARY KEY, call_type text NOT NULL, api_key text NOT NULL DEFAULT '',
        spend double precision NOT NULL DEFAULT 0, total_tokens int NOT NULL DEFAULT 0,
        prompt_tokens int NOT NULL DEFAULT 0, completion_tokens int NOT NULL DEFAULT 0,
        "startTime" timestamp(3) NOT NULL, "endTime" timestamp(3) NOT NULL, model text NOT NULL DEFAULT '',
        custom_llm_provider text DEFAULT '', "user" text DEFAULT '', metadata jsonb DEFAULT '{}',
        cache_hit text DEFAULT '',
        request_tags jsonb DEFAULT '[]', session_id text, status text, agent_id text)
"""


async def test_spend_logs_count_once_from_a_file_of_any_kind_and_from_the_table(
    session_database: SessionDatabase, session_database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(REQUEST)}\n\n")
    (tmp_path / "b.json").write_text(json.dumps([REQUEST]))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, REQUEST)
        writer.writeheader()
        writer.writerow({**REQUEST, "metadata": json.dumps(REQUEST["metadata"])})
    connection = await asyncpg.connect(session_database_url)
    await connection.execute(SPEND_LOGS)
    columns = ", ".join(f'"{name}"' for name in REQUEST)
    await connection.execute(
        f'INSERT INTO public."LiteLLM_SpendLogs" ({columns}) SELECT {columns} '
        'FROM jsonb_populate_record(NULL::public."LiteLLM_SpendLogs", $1::jsonb)',
        json.dumps(REQUEST),
    )
    await connection.close()
    rows = [row.fields for path in files_in(tmp_path) for row in rows_of_file(path)]
    rows += [dict(row) async for row in spend_log_rows(session_database_url, "public", Settings())]
    assert len(rows) == 4
    for number, row in enumerate(rows):
        job = await run(session_database, [spend_log_row("here", row, None)])
        assert (job.refused, job.report.new_events) == ([], 1 if number == 0 else 0), row
    page = await session_database.activity.list_usage_events(UsageEventFilters(viewer=Viewer(A)))
    [event] = page.events
    assert (event.session_id, event.idempotency_key, event.provider) == ("conversation", "chatcmpl-1", "anthropic")
    assert (event.tokens_in, event.tokens_out, event.cache_read_tokens, event.cache_write_tokens) == (110, 20, 60, 40)
    assert (event.cost_usd, event.at) == (Decimal("0.00022500000000000002"), START + timedelta(seconds=2.5))
    [found] = (await session_database.lifecycle.list_session_rows(SessionListFilters(viewer=AUDITOR))).sessions
    assert (found.record.agent_name, found.record.started_at) == ("coder", START)


async def test_a_refusal_of_the_database_names_the_row_and_its_field(session_database: SessionDatabase) -> None:
    ahead = {**REQUEST, "request_id": "ahead", "endTime": "2099-01-01T00:00:00Z"}
    job = await run(session_database, [spend_log_row("row 1", ahead, None), spend_log_row("row 2", REQUEST, None)])
    assert [(one.where, one.field) for one in job.refused] == [("row 1", "at")]
    assert job.report.new_events == 1


def test_a_spend_log_without_use_is_skipped_and_a_failure_is_an_error() -> None:
    nothing = {**REQUEST, "spend": 0, "prompt_tokens": 0, "completion_tokens": 0}
    assert spend_log_row("here", nothing, None).items == []
    *_, failed = spend_log_row("here", {**nothing, "status": "failure", "session_id": None}, None).items
    assert isinstance(failed, UsageEvent)
    assert (failed.errored, failed.session_id, failed.idempotency_key) == (True, "chatcmpl-1", "chatcmpl-1")
    # An answer of LiteLLM's own cache repeats the counts of the first one, and costs nothing.
    assert spend_log_row("here", {**REQUEST, "spend": 0, "cache_hit": "True"}, None).items == []
    # LiteLLM also writes 0 for a model whose price it does not know: that is no known cost.
    for spend in (0, 0.0, "0", "0.0"):
        *_, unpriced = spend_log_row("here", {**REQUEST, "spend": spend}, None).items
        assert isinstance(unpriced, UsageEvent)
        assert (unpriced.cost_usd, unpriced.tokens_in) == (None, 110)
    assert unmapped_fields(REQUEST) == ["api_key", "request_tags"]
    default = UUID(int=9)
    assert spend_log_row("here", {**REQUEST, "user": "default_user_id"}, default).items[0].user_id == default
    for fields, field in (
        ({"user": "default_user_id"}, "user"),
        ({"prompt_tokens": "many"}, "prompt_tokens"),
        ({"spend": "dear"}, "spend"),
        ({"spend": -1}, "cost_usd"),
        ({"endTime": None}, "endTime"),
        ({"request_id": ""}, "request_id"),
    ):
        with pytest.raises(InvalidValueError) as refused:
            spend_log_row("here", {**REQUEST, **fields}, None)
        assert refused.value.field == field


# Langfuse

TRACE = {"id": "t", "timestamp": "2026-02-01 08:00:00.000000", "name": "answer", "user_id": str(A), "session_id": "s"}
GENERATION = {
    "id": "g",
    "trace_id": "t",
    "type": "GENERATION",
    "start_time": "2026-02-01 08:00:01.000000",
    "end_time": "2026-02-01 08:00:02.000000",
    "parent_observation_id": "a",
    "provided_model_name": "gpt-4o",
    "usage_details": {"input": 40, "input_cached_tokens": 60, "output": 5, "output_reasoning_tokens": 15, "total": 120},
    "cost_details": {"input": 0.1, "output": 0.025, "total": 0.125},
    "total_cost": 0.125,
    "input": '[{"role": "user", "content": "hi"}]',
}
AGENT = {
    "id": "a",
    "trace_id": "t",
    "type": "AGENT",
    "start_time": "2026-02-01 08:00:00.500000",
    "end_time": None,
    "parent_observation_id": "",
    "level": "ERROR",
    "status_message": "it broke",
}
LEGACY = [TRACE, GENERATION, AGENT]
ENRICHED = [{**one, "user_id": str(A), "session_id": "s", "trace_name": "answer"} for one in (AGENT, GENERATION)]
API = [
    {"id": "t", "timestamp": "2026-02-01T08:00:00.000Z", "userId": str(A), "sessionId": "s", "name": "answer"},
    {
        "id": "g",
        "traceId": "t",
        "type": "GENERATION",
        "startTime": "2026-02-01T08:00:01.000Z",
        "endTime": "2026-02-01T08:00:02.000Z",
        "parentObservationId": "a",
        "model": "gpt-4o",
        "usageDetails": GENERATION["usage_details"],
        "calculatedTotalCost": 0.125,
    },
    {"id": "a", "traceId": "t", "type": "AGENT", "startTime": "2026-02-01T08:00:00.500Z", "level": "ERROR"},
]


async def import_langfuse(db: SessionDatabase, rows: Sequence[dict[str, Any]]) -> ForeignImport:
    reader = LangfuseReader(None)
    for row in rows:
        reader.note_trace(row)
    return await run(db, [reader.row(f"line {number}", row) for number, row in enumerate(rows, 1)])


@pytest.mark.parametrize("rows", [LEGACY, ENRICHED, API], ids=["legacy", "enriched", "api"])
async def test_langfuse_is_imported_once_from_each_of_its_shapes(
    session_database: SessionDatabase, rows: list[dict[str, Any]]
) -> None:
    for number in range(2):
        job = await import_langfuse(session_database, rows)
        assert (job.refused, job.report.new_events) == ([], 1 - number)
    [event] = (await session_database.activity.list_usage_events(UsageEventFilters(viewer=Viewer(A)))).events
    assert (event.session_id, event.run_id, event.idempotency_key, event.model) == ("s", "t", "g", "gpt-4o")
    assert (event.tokens_in, event.cache_read_tokens, event.tokens_out, event.reasoning_tokens) == (100, 60, 20, 15)
    assert (event.cost_usd, event.at) == (Decimal("0.125"), START + timedelta(seconds=2))
    [found] = (await session_database.activity.list_runs(RunFilters(viewer=Viewer(A), include_open=True))).runs
    assert (found.run_id, found.name, found.session_id) == ("t", "answer", "s")
    assert {(step.step_id, step.kind, step.parent_step_id) for step in found.steps} == {
        ("a", "agent", None),
        ("g", "generation", "a"),
    }
    assert [step.errors for step in found.steps if step.step_id == "a"] == [
        [rows[-1].get("status_message", "error") if rows is not ENRICHED else "it broke"]
    ]


def test_an_observation_of_nobody_is_refused() -> None:
    with pytest.raises(InvalidValueError) as refused:
        LangfuseReader(None).row("here", GENERATION)
    assert refused.value.field == "trace_id"
    *_, event = (
        LangfuseReader(A).row("here", {**GENERATION, "usage_details": {}, "total_cost": 0, "cost_details": {}}).items
    )
    assert isinstance(event, UsageEvent)
    assert (event.measured, event.session_id) == (False, "t")
    assert LangfuseReader(A).row("here", {"id": "x", "name": "helpfulness", "value": 1}).items == []


def test_a_score_of_a_session_is_no_trace() -> None:
    score = {"id": "x", "timestamp": "2026-02-01 08:00:00.000000", "trace_id": None, "session_id": "s", "value": 1}
    reader = LangfuseReader(A)
    reader.note_trace(score)
    assert reader.row("here", score).items == []
    assert langfuse_export.unmapped_fields(score) == ["score"]


def test_the_folder_of_an_export_to_blob_storage_is_read_as_it_is(tmp_path: Path) -> None:
    """Langfuse compresses the files, and writes a manifest of several lines beside them."""
    for name in ("observations_v2", "manifests"):
        (tmp_path / name).mkdir()
    with gzip.open(tmp_path / "observations_v2" / "2026-02-01T09-00-00.jsonl.gz", "wt") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in ENRICHED)
    with gzip.open(tmp_path / "observations_v2" / "2026-02-01T10-00-00.json.gz", "wt") as file:
        json.dump(ENRICHED, file)
    manifest = {"version": 1, "exportSource": "EVENTS", "tables": ["observations_v2"], "files": [{"rowCount": 2}]}
    (tmp_path / "manifests" / "2026-02-01T09-00-00.json").write_text(f"{json.dumps(manifest, indent=2)}\n")
    rows = [row for path in files_in(tmp_path) for row in rows_of_file(path)]
    assert [row.error for row in rows] == [None] * 5
    assert [row.fields for row in rows] == [manifest, *ENRICHED, *ENRICHED]
    assert langfuse_export.unmapped_fields(manifest) == ["manifest"]
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(ENRICHED).encode())[:-9])
    with pytest.raises(InvalidValueError, match="expected a complete file of gzip"):
        list(rows_of_file(cut))


@pytest.mark.parametrize(("unit", "zone"), [("ms", None), ("us", "UTC"), ("ns", "Europe/Zurich")])
@pytest.mark.parametrize("text", [pa.string(), pa.binary()], ids=["string", "binary"])
async def test_langfuse_is_imported_from_parquet(
    session_database: SessionDatabase, tmp_path: Path, unit: str, zone: str | None, text: pa.DataType
) -> None:
    """ClickHouse writes texts as bytes, unless it is told otherwise, and maps as maps."""
    moment = pa.timestamp(unit, zone)
    maps = {
        "usage_details": pa.map_(text, pa.uint64()),
        "cost_details": pa.map_(text, pa.float64()),
    }
    types = {**maps, "start_time": moment, "end_time": moment, "total_cost": pa.decimal128(18, 12)}
    columns: dict[str, pa.Array] = {}
    for name in {name for row in ENRICHED for name in row}:
        values: list[Any] = [row.get(name) for row in ENRICHED]
        if name in ("start_time", "end_time"):
            values = [one and datetime.fromisoformat(one).replace(tzinfo=UTC if zone else None) for one in values]
        elif name in maps:
            values = [one and list(one.items()) for one in values]
        elif name == "total_cost":
            values = [one and Decimal(str(one)) for one in values]
        columns[name] = pa.array(values, types.get(name, text))
    parquet.write_table(pa.table(columns), tmp_path / "2026-02-01T09-00-00.parquet", row_group_size=1)
    rows = [row for path in files_in(tmp_path) for row in rows_of_file(path)]
    for number in range(2):
        job = await import_langfuse(session_database, [row.fields for row in rows])
        assert (job.refused, job.report.new_events) == ([], 1 - number)
    [event] = (await session_database.activity.list_usage_events(UsageEventFilters(viewer=Viewer(A)))).events
    assert (event.session_id, event.idempotency_key, event.model, event.at) == (
        "s", "g", "gpt-4o", START + timedelta(seconds=2)
    )  # fmt: skip
    assert (event.tokens_in, event.cache_read_tokens, event.tokens_out, event.cost_usd) == (
        100,
        60,
        20,
        Decimal("0.125"),
    )


@pytest.mark.parametrize("damage", ["empty", "cut", "compressed", "other"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, damage: str) -> None:
    whole = tmp_path / "whole.parquet"
    parquet.write_table(pa.table({"id": ["a"] * 100}), whole)
    content = whole.read_bytes()
    damaged = {"empty": b"", "cut": content[:-20], "compressed": gzip.compress(content), "other": b"id,name\na,b\n"}
    (tmp_path / "damaged.parquet").write_bytes(damaged[damage])
    with pytest.raises(InvalidValueError, match="expected a complete file of Parquet"):
        list(rows_of_file(tmp_path / "damaged.parquet"))


def test_parquet_of_any_type_becomes_rows_or_is_refused(tmp_path: Path) -> None:
    nanoseconds = 1_767_225_600_123_456_789
    kinds = {
        "2026-01-01T00:00:00.123456": pa.array([nanoseconds], pa.timestamp("ns")),
        "00:00:01.234567": pa.array([1_234_567_891], pa.time64("ns")),
        timedelta(microseconds=1_234_567): pa.array([1_234_567_891], pa.duration("ns")),
        "2026-01-01": pa.array([date(2026, 1, 1)]),
        str(A): pa.array([A.bytes], pa.uuid()),
    }
    for expected, column in kinds.items():
        parquet.write_table(pa.table({"a": column}), tmp_path / "a.parquet")
        assert [row.fields for row in rows_of_file(tmp_path / "a.parquet")] == [{"a": expected}]
    for column in (
        pa.array([[nanoseconds]], pa.list_(pa.timestamp("ns"))),
        pa.array([253_402_300_800_000], pa.timestamp("ms")),
        pa.array([2**30], pa.date32()),
    ):
        parquet.write_table(pa.table({"a": column}), tmp_path / "a.parquet")
        with pytest.raises(InvalidValueError, match="expected values that Python can hold"):
            list(rows_of_file(tmp_path / "a.parquet"))


def test_texts_of_parquet_are_utf8(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": [b"a", b"\xff"]}), tmp_path / "odd.parquet")
    with pytest.raises(InvalidValueError, match=r"odd\.parquet:2"):
        list(rows_of_file(tmp_path / "odd.parquet"))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_page_of_an_api_has_its_rows_in_data(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "page.json").write_text(json.dumps({"data": API, "meta": {"page": 1}}, indent=indent))
    assert [row.fields for row in rows_of_file(tmp_path / "page.json")] == API


@pytest.mark.parametrize("amount", ["NaN", "sNaN", "Infinity", "1e400", "1e-400", "9" * 5_000, 10**400])
def test_an_amount_that_no_sum_can_hold_is_a_refusal_and_no_end_of_the_import(amount: Any) -> None:
    observation = {"id": "o", "trace_id": "t", "type": "GENERATION", "start_time": "2026-01-01T00:00:00Z"}
    for name, fields in {
        "cost_details.input": {"cost_details": {"input": amount, "output": 0.1}},
        "total_cost": {"total_cost": amount},
    }.items():
        with pytest.raises(InvalidValueError) as refused:
            LangfuseReader(A).row("here", observation | fields)
        assert refused.value.field == name
    for name in ("spend", "prompt_tokens"):
        with pytest.raises(InvalidValueError) as refused:
            spend_log_row("here", {**REQUEST, name: amount}, None)
        assert refused.value.field == name


def test_langfuse_adds_up_the_types_of_usage() -> None:
    assert langfuse_counts({"input": 3, "output": 4, "total": 7}) == {"tokens_in": 3, "tokens_out": 4}
    anthropic = {"input": 3, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 2, "output": 4}
    counted = {"tokens_in": 10, "tokens_out": 4, "cache_read_tokens": 5, "cache_write_tokens": 2}
    assert langfuse_counts(anthropic) == counted
    assert langfuse_counts({"promptTokens": 3, "completionTokens": 4, "totalTokens": 7}) == {
        "tokens_in": 3,
        "tokens_out": 4,
    }
