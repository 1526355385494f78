"""Imports of complete exports: every answer is that of the database that was exported, and nothing comes in twice."""

import hashlib
import json
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from session_lifecycle import InvalidValueError, Message, Run, SessionDatabase, Step, UsageEvent, Viewer
from session_lifecycle.maintenance.export_files import export_to_folder
from session_lifecycle.models import RefusedRow
from session_lifecycle.testing import TemplateServer
from support.stored_rows import ask
from support.transfer import PRICES, A, B, another_database, answers, imported, live, rows_of

AT = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.fixture
async def source(session_database_url: str) -> Any:
    async with SessionDatabase.connect(session_database_url, prices=PRICES) as db:
        await live(db)
        yield db


async def test_an_import_into_an_empty_database_gives_every_answer_again(
    source: SessionDatabase, session_template_server: TemplateServer, tmp_path: Path
) -> None:
    before = await answers(source)
    formats: tuple[Any, ...] = ("jsonl", "parquet")
    for file_format in formats:
        folder = tmp_path / file_format
        manifest = await export_to_folder(source.maintenance.export, folder, file_format)
        async with another_database(session_template_server) as target:
            refused: list[RefusedRow] = []
            report = await target.maintenance.import_export(folder, on_refused=refused.append)
            assert (refused, report.refused_rows, report.mismatch_count) == ([], 0, 0)
            assert {one.table: one.added for one in report.tables} == rows_of(manifest)
            after = await answers(target)
            assert {name for name in before if before[name] != after[name]} == set()
            await target.maintenance.roll_up()
            assert await figures(target) == await figures(source)
            again = await target.maintenance.import_export(folder)
            assert (again.added, again.refused_rows) == (0, 0)
            assert {one.table: one.unchanged for one in again.tables} == rows_of(manifest)


async def figures(db: SessionDatabase) -> Any:
    """The figures that roll-ups answer."""
    auditor = Viewer.auditor()
    return await db.lifecycle.aggregate_stats(auditor), await db.lifecycle.cost_by_model(auditor)


@pytest.fixture
async def folder(session_database: SessionDatabase, tmp_path: Path) -> Path:
    """An export of two users, with a session, a run and a message each."""
    for user in (A, B):
        key = {"user_id": user, "session_id": "s"}
        await session_database.lifecycle.record(
            [
                Run(**key, run_id="r", started_at=AT, ended_at=AT, reported_cost_usd=3),
                UsageEvent(
                    **key, model="m", tokens_in=5, cost_usd=1, run_id="r", at=AT, idempotency_key="k", key_scope="user"
                ),
                UsageEvent(**key, model="M", tokens_in=5, cost_usd=1, at=AT, idempotency_key="l"),
                Message(**key, message_id="m", role="user", content="Straße", created_at=AT),
                Step(user_id=user, run_id="r", step_id="st", kind="tool", started_at=AT),
            ]
        )
        await session_database.lifecycle.annotate_session("s", user, "quality", score=1, at=AT)
    await export_to_folder(session_database.maintenance.export, tmp_path / "all")
    return tmp_path / "all"


@pytest.fixture
async def target(session_template_server: TemplateServer) -> AsyncIterator[SessionDatabase]:
    async with another_database(session_template_server) as db:
        yield db


def change(folder: Path, table: str, line: int, text: str | None = None, **fields: Any) -> None:
    """Changes a line of an export as somebody would who also makes the checksum right."""
    path = folder / f"{table}.jsonl"
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **fields}) if text is None else text
    write(folder, table, lines)


def write(folder: Path, table: str, lines: Sequence[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    (folder / f"{table}.jsonl").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tables"][table] |= {"rows": len(lines), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


async def users(db: SessionDatabase, table: str) -> list[UUID]:
    return [user for (user,) in await ask(db, f"SELECT DISTINCT user_id FROM {table} ORDER BY user_id")]


REFUSED = [
    ("sessions", {"tokens_in": -1}, "tokens_in: got -1, expected a whole number of at least 0"),
    ("sessions", {"cost_usd": 1.5}, "cost_usd: got 1.5, expected an amount as decimal text"),
    ("sessions", {"cost_usd": "NaN"}, "cost_usd: got 'NaN', expected an amount as decimal text"),
    # Python reads these, and Postgres does not.
    *(("sessions", {"cost_usd": amount}, "cost_usd: got ") for amount in ("1_0", "\uff11", " 1", "1e5000", "1.")),
    *(
        ("sessions", {"started_at": time}, "started_at: got ")
        for time in ("2026-W01-1T00:00:00Z", "2026-01-01x00:00Z", "2026-01-01T00:00:00+00:00:30")
    ),
    ("sessions", {"dataset_id": "urn:uuid:00000000-0000-0000-0000-000000000001"}, "dataset_id: got "),
    ("sessions", {"dataset_id": "0000000_-0000-0000-0000-00000000000\uff11"}, "dataset_id: got "),
    ("annotations", {"score": 10**400}, "score: got 10"),
    ("sessions", {"status": "odd"}, "status: got 'odd', expected one of running, completed, failed"),
    ("sessions", {"status": "failed"}, "ended_at: got None, expected a time exactly where the session has ended"),
    ("sessions", {"started_at": "2026-02-01T00:00:00"}, "started_at: got '2026-02-01T00:00:00', expected the ISO 8601"),
    ("sessions", {"more": 1}, "more: got 1, expected no field of that name"),
    ("sessions", {"title": "\x00"}, "line: got "),
    ("sessions", {"title": "\ud800"}, "line: got "),
    ("usage_events", {"cache_read_tokens": 99}, "cache_read_tokens: got 99, expected a part of tokens_in"),
    ("usage_events", {"late": "no"}, "late: got 'no', expected true or false"),
    ("usage_events", {"session_id": "t"}, "session_id: got 't', expected a row that is in sessions"),
    ("steps", {"run_id": "other"}, "run_id: got 'other', expected a row that is in runs"),
    ("messages", {"role": "robot"}, "role: got 'robot', expected one of user, assistant"),
    ("messages", {"content": 5}, "content: got a int, expected text"),
    ("annotations", {"score": "1"}, "score: got '1', expected a number"),
    ("runs", {"events_cost_usd": None}, "events_cost_usd: got None, expected an amount"),
]


@pytest.mark.parametrize(
    ("table", "fields", "said"), REFUSED, ids=[f"{table} {fields}" for table, fields, _ in REFUSED]
)
async def test_a_row_that_breaks_a_rule_leaves_out_its_user_and_nobody_else(
    folder: Path, target: SessionDatabase, table: str, fields: dict[str, Any], said: str
) -> None:
    # The last line of the table is of B.
    number = len((folder / f"{table}.jsonl").read_text().splitlines())
    change(folder, table, number, **fields)
    report, refused = await imported(target, folder)
    assert refused[0].startswith(f"{table}:{number}: {said}")
    assert (report.refused_rows, report.refused_users, report.mismatch_count) == (1, 1, 0)
    for name in ("session_records", "session_runs", "session_usage_events", "session_messages", "session_steps"):
        assert await users(target, name) == [A]
    assert [(one.table, one.refused) for one in report.tables if one.table == "sessions"] == [("sessions", 1)]


async def test_a_number_that_is_no_double_of_postgres_is_refused(folder: Path, target: SessionDatabase) -> None:
    lines = (folder / "annotations.jsonl").read_text().splitlines()
    write(folder, "annotations", [*lines[:-1], re.sub('"score": ?[^,]*', '"score":1e-400', lines[-1])])
    _, refused = await imported(target, folder)
    assert refused[0].startswith(f"annotations:{len(lines)}: score: got 1E-400, expected a number")


async def test_a_total_that_the_ledger_does_not_have_is_told(folder: Path, target: SessionDatabase) -> None:
    change(folder, "sessions", 1, tokens_in=11)
    report, refused = await imported(target, folder)
    [mismatch] = report.mismatches
    assert (refused, report.mismatch_count) == ([], 1)
    assert (mismatch.user_id, mismatch.field) == (A, "tokens_in")
    assert (mismatch.found, mismatch.expected) == (Decimal(11), Decimal(10))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: change(folder, "sessions", 1, "no json"),
            "sessions:1: line: got '7 characters', expected a JSON object",
        ),
        *(
            (
                lambda folder, number=number: change(folder, "sessions", 1, f'{{"metadata": {{"n": {number}}}}}'),
                "sessions:1: line: got '",
            )
            for number in ("1e200000", "-1.5e99999999999999999999", "1e-999999", "9" * 5_000)
        ),
        (lambda folder: change(folder, "sessions", 1, user_id="nobody"), "sessions:1: user_id: got 'nobody', expected"),
        (lambda folder: (folder / "messages.jsonl").write_text(""), "expected the SHA-256 "),
        (lambda folder: (folder / "messages.jsonl").unlink(), "expected a file that can be read"),
        (lambda folder: (folder / "manifest.json").unlink(), "with a manifest.json: an interrupted export has none"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "a manifest with the format"),
    ],
)
async def test_an_export_that_is_damaged_writes_nothing(
    folder: Path, target: SessionDatabase, damage: Callable[[Path], object], said: str
) -> None:
    damage(folder)
    with pytest.raises(InvalidValueError) as refused:
        await target.maintenance.import_export(folder)
    assert said in str(refused.value)
    assert await ask(target, "SELECT * FROM session_usage_events") == []


@pytest.mark.parametrize(
    ("field", "value"), [("version", 2), ("schema_revision", "0009"), ("file_format", "csv"), ("tables", {})]
)
async def test_an_export_of_another_version_is_refused(
    folder: Path, target: SessionDatabase, field: str, value: Any
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(InvalidValueError) as refused:
        await target.maintenance.import_export(folder)
    assert refused.value.field == f"manifest.{field}"


async def test_rows_in_another_order_or_twice_are_refused(folder: Path, target: SessionDatabase) -> None:
    lines = (folder / "usage_events.jsonl").read_text().splitlines()
    write(folder, "usage_events", [*lines[:3], lines[4], lines[4], lines[3], lines[5]])
    report, refused = await imported(target, folder)
    assert refused[0].endswith("expected a key that comes after the key of the row before")
    assert (report.refused_users, await users(target, "session_records")) == (1, [A])


async def test_rows_that_are_there_are_never_changed_or_doubled(folder: Path, target: SessionDatabase) -> None:
    await imported(target, folder)
    await target.lifecycle.accumulate_usage("s", A, "m", 7, cost_usd=2)
    before = await stored(target)
    report, refused = await imported(target, folder)
    assert (report.added, report.refused_users, report.mismatch_count) == (0, 1, 0)
    assert [one.split(": got")[0] for one in refused] == ["sessions:1: last_activity_at"]
    assert await stored(target) == before


async def stored(db: SessionDatabase) -> list[Any]:
    return [
        await ask(db, f"SELECT * FROM {name} ORDER BY 1, 2, 3")
        for name in ("session_records", "session_usage_events", "session_runs")
    ]


@pytest.mark.parametrize("scope", ["user", "run"])
async def test_an_event_that_another_session_has_counted_is_refused(
    folder: Path, target: SessionDatabase, scope: str
) -> None:
    if scope == "user":
        event = UsageEvent(
            user_id=A, session_id="elsewhere", model="m", tokens_in=1, idempotency_key="k", key_scope="user"
        )
        await target.lifecycle.record([event])
    else:
        run = Run(user_id=A, session_id="elsewhere", run_id="r", started_at=AT, reported_cost_usd=9)
        await target.lifecycle.record([run])
    report, refused = await imported(target, folder)
    assert any(
        "session_id: got 's', expected 'elsewhere', whose ledger has the event already" in one for one in refused
    )
    assert (report.mismatch_count, await users(target, "session_usage_events")) == (0, [A, B])
    assert await ask(target, "SELECT count(*) FROM session_usage_events WHERE user_id = :a", a=A) == [(1,)]


async def test_a_user_who_is_erased_does_not_come_back(folder: Path, target: SessionDatabase) -> None:
    await target.maintenance.erase_user(A, tombstone=True)
    report, refused = await imported(target, folder)
    assert all("expected a user who is not erased in this database" in one for one in refused)
    assert (report.refused_users, await users(target, "session_records")) == (1, [B])


async def test_what_is_recorded_after_an_import_comes_after_it(folder: Path, target: SessionDatabase) -> None:
    # The message of B has the second number, and a sequence that begins anew would give the first.
    await imported(target, folder)
    said = Message(
        user_id=B, session_id="s", message_id="0 comes first by its id", role="user", content="x", created_at=AT
    )
    await target.lifecycle.record([said])
    history = await target.activity.chat_history("s", B)
    assert [message.message_id for message in history] == ["m", "0 comes first by its id"]


async def test_an_import_that_fails_on_the_way_is_done_by_the_next_call(folder: Path, target: SessionDatabase) -> None:
    def stop(doing: str, table: str, _rows: int) -> None:
        if (doing, table) == ("read", "messages"):
            raise KeyError

    with pytest.raises(KeyError):
        await target.maintenance.import_export(folder, on_progress=stop)
    assert await users(target, "session_usage_events") == [A, B]
    assert await users(target, "session_records") == []
    report, refused = await imported(target, folder)
    assert (refused, report.mismatch_count) == ([], 0)
    assert {one.table: (one.added > 0, one.unchanged > 0) for one in report.tables if one.read} == {
        "sessions": (True, False),
        "session_models": (False, True),
        "usage_events": (False, True),
        "runs": (False, True),
        "steps": (False, True),
        "messages": (False, True),
        "annotations": (True, False),
    }


async def test_an_import_holds_few_rows_at_once(
    session_database: SessionDatabase, target: SessionDatabase, tmp_path: Path
) -> None:
    many = """
        INSERT INTO session_records (user_id, session_id, title)
        SELECT '{user}', to_char(n, 'FM000000'), repeat('x', 1000) FROM generate_series({first}, {last}) n
    """
    peaks = []
    for number, (first, last) in enumerate(((1, 600), (601, 4000))):
        await ask(session_database, many.format(user=A, first=first, last=last))
        await export_to_folder(session_database.maintenance.export, tmp_path / str(number))
        tracemalloc.start()
        report = await target.maintenance.import_export(tmp_path / str(number))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.refused_rows == 0
    assert peaks[1] < 3 * peaks[0] + 2_000_000
