"""Data in and out as operators do it: good, refused, interrupted, and killed on the way and run again."""

import asyncio
import csv
import io
import json
import signal
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from session_lifecycle import RunFilters, SessionDatabase, SessionListFilters, Viewer
from session_lifecycle.models import UsageEventFilters
from session_lifecycle.testing import TemplateServer
from support.commands import run, running, succeed
from support.eventually import eventually
from support.transfer import A, another_database, answers, live

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
SLOW_SESSIONS = """
    CREATE FUNCTION public.sleep() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_catalog.pg_sleep(60); RETURN NEW; END $$;
    CREATE TRIGGER sleep BEFORE INSERT ON session_lifecycle.session_records
        FOR EACH ROW EXECUTE FUNCTION public.sleep();
"""
NO_LONGER_SLOW = "DROP TRIGGER sleep ON session_lifecycle.session_records"


@pytest.fixture
async def at(session_database_url: str) -> tuple[str, str]:
    async with SessionDatabase.connect(session_database_url) as db:
        await live(db, [A])
    return "--database-url", session_database_url


async def test_a_complete_export_is_imported_and_moved(
    at: tuple[str, str], session_template_server: TemplateServer, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    said = json.loads(succeed("export", "all", "--output", str(folder), *at, "--json"))
    assert (said["rows"]["sessions"], said["rows"]["tombstones"]) == (7, 1)
    again = run("export", "all", "--output", str(folder), *at)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith(f"error: the folder {folder} is not empty")
    async with SessionDatabase.connect(at[1]) as db:
        before = await answers(db)
    for command in (("import", "lifecycle", str(folder)), ("move",)):
        async with another_database(session_template_server) as target:
            to = target.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            where = ("--database-url", to) if command[0] == "import" else ("--to", to, *at)
            report = json.loads(succeed(*command, *where, "--json"))
            added = {one["table"]: one["added"] for one in report["tables"]}
            assert (added, report["refused_rows"], report["mismatch_count"]) == (said["rows"], 0, 0)
            shown = succeed(*command, *where)
            assert "sessions: 0 added, 7 unchanged, 0 refused\n" in shown
            after = await answers(target)
            assert {name for name in before if before[name] != after[name]} == set()


async def test_the_rows_that_the_filters_of_the_lists_choose_are_exported(at: tuple[str, str], tmp_path: Path) -> None:
    async with SessionDatabase.connect(at[1]) as db:
        chosen = SessionListFilters(viewer=Viewer(A), tags={"customer": "acme"})
        page = await db.lifecycle.list_session_rows(chosen)
        events = await db.activity.list_usage_events(UsageEventFilters(viewer=Viewer(A), session_id="s", model="m"))
        runs = await db.activity.list_runs(RunFilters(viewer=Viewer(A), session_id="s", include_open=True))
    of_a = ("--user", str(A), *at)
    lines = succeed("export", "sessions", "--tag", "customer=acme", *of_a).splitlines()
    assert (
        [json.loads(line)["session_id"] for line in lines] == [row.record.session_id for row in page.sessions] == ["s"]
    )
    assert json.loads(lines[0])["cost_usd"] == format(page.sessions[0].record.cost_usd, "f")
    table = list(
        csv.DictReader(
            io.StringIO(succeed("export", "usage-events", "--session", "s", "--model", "m", "--format", "csv", *of_a))
        )
    )
    assert {row["event_id"] for row in table} == {str(event.event_id) for event in events.events}
    assert [row["event_id"] for row in table] == sorted(row["event_id"] for row in table)
    exported = succeed("export", "runs", "--session", "s", "--include-open", *of_a).splitlines()
    assert {json.loads(line)["run_id"] for line in exported} == {run.run_id for run in runs.runs}
    steps = succeed("export", "steps", "--session", "s", *of_a).splitlines()
    assert [json.loads(line)["step_id"] for line in steps] == ["1", "2"]
    messages = succeed("export", "messages", "--tag", "customer=acme", *of_a).splitlines()
    assert [json.loads(line)["message_id"] for line in messages] == ["a", "m", "t", "z"]
    stranger = ("--user", str(UUID(int=97)), *at)
    for words in ("sessions", "usage-events", "runs", "steps", "messages"):
        assert succeed("export", words, *stranger) == ""


async def test_an_export_into_a_file_is_whole_or_not_there(at: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "sessions.csv"
    to = ("--format", "csv", "--output", str(file))
    report = {"table": "sessions", "format": "csv", "output": str(file), "rows": 7}
    assert json.loads(succeed("export", "sessions", *to, *at, "--json")) == report
    assert file.read_text().count("\n") == 8
    there = run("export", "sessions", *to, *at)
    assert (there.returncode, there.stderr) == (
        2,
        f"error: --output: {file} exists already: give another path, or delete it\n",
    )
    nowhere = run("export", "sessions", "--output", str(tmp_path / "no" / "file"), *at)
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    both = run("export", "sessions", "--json", *at)
    assert (both.returncode, both.stdout) == (2, "")
    refused = run("export", "sessions", "--min-cost", "-1", "--output", str(tmp_path / "x"), *at)
    assert (refused.returncode, refused.stdout) == (2, "")
    left = await asyncio.to_thread(lambda: [one.name for one in tmp_path.iterdir()])
    assert left == ["sessions.csv"]


async def test_an_import_of_what_is_no_export_is_refused(at: tuple[str, str], tmp_path: Path) -> None:
    empty = run("import", "lifecycle", str(tmp_path), *at)
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "expected the folder of a complete export, with a manifest.json" in empty.stderr
    for arguments in (("langfuse", str(tmp_path / "none")), ("litellm-spend-logs", str(tmp_path / "none"))):
        missing = run("import", *arguments, *at)
        assert (missing.returncode, missing.stdout) == (2, "")
        assert "expected a file, or a folder with files named" in missing.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_an_import_that_ends_on_the_way_shows_nothing_and_is_run_again(
    at: tuple[str, str], session_template_server: TemplateServer, tmp_path: Path, how: signal.Signals
) -> None:
    succeed("export", "all", "--output", str(tmp_path / "all"), *at)
    async with another_database(session_template_server) as target:
        to = target.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        admin = await asyncpg.connect(to)
        await admin.execute(SLOW_SESSIONS)
        command = ("import", "lifecycle", str(tmp_path / "all"), "--database-url", to)
        with running(*command) as process:

            async def writes_sessions() -> bool:
                return bool(await admin.fetchval(SLEEPING))

            await eventually(writes_sessions, within_seconds=60)
            process.send_signal(how)
            await asyncio.to_thread(process.communicate, timeout=60)
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(how, -how)
        # What was written belongs to sessions that are not there yet.
        assert await admin.fetchval("SELECT count(*) FROM session_lifecycle.session_usage_events") > 0
        auditor = Viewer.auditor()
        page = await target.lifecycle.list_session_rows(SessionListFilters(viewer=auditor))
        events = await target.activity.list_usage_events(UsageEventFilters(viewer=auditor))
        assert (page.total, events.total, (await target.reports.spend(auditor)).cost_usd) == (0, 0, Decimal(0))
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        await admin.execute(NO_LONGER_SLOW)
        await admin.close()
        assert "sessions: 7 added, 0 unchanged, 0 refused\n" in succeed(*command)
        assert "sessions: 0 added, 7 unchanged, 0 refused\n" in succeed(*command)


async def test_an_interrupted_export_leaves_no_manifest(at: tuple[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "all"
    # Another connection looks on: a transaction sees the activity of the server as it was at its first look.
    locker, admin = await asyncpg.connect(at[1]), await asyncpg.connect(at[1])
    async with locker.transaction():
        await locker.execute("LOCK TABLE session_lifecycle.session_usage_events")
        with running("export", "all", "--output", str(folder), *at) as process:

            async def waits() -> bool:
                return bool(await admin.fetchval(WAITING))

            await eventually(waits, within_seconds=60)
            process.send_signal(signal.SIGINT)
            await asyncio.to_thread(process.communicate, timeout=60)
    await locker.close()
    await admin.close()
    assert process.returncode == 130
    assert not (folder / "manifest.json").exists()
    assert run("import", "lifecycle", str(folder), *at).returncode == 2


SPEND_LOG = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "api_key": "hash",
    "spend": 0.00022500000000000002,
    "total_tokens": 30,
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "startTime": "2026-02-01T08:00:00",
    "endTime": "2026-02-01T08:00:02.5",
    "model": "gpt-4o",
    "custom_llm_provider": "openai",
    "user": str(A),
    "session_id": "s",
    "status": "success",
}
OBSERVATION = {
    "id": "o1",
    "trace_id": "t1",
    "trace_name": "answer",
    "type": "GENERATION",
    "parent_observation_id": "",
    "start_time": "2026-02-01 08:00:00.000000",
    "end_time": "2026-02-01 08:00:01.000000",
    "user_id": str(A),
    "session_id": "s",
    "provided_model_name": "gpt-4o",
    "usage_details": {"input": 7, "input_cached_tokens": 3, "output": 5, "total": 15},
    "total_cost": 0.125,
    "environment": "production",
}


@pytest.mark.parametrize(
    ("source", "row", "kept"), [("litellm-spend-logs", SPEND_LOG, "api_key"), ("langfuse", OBSERVATION, "environment")]
)
async def test_rows_of_another_system_are_imported_once_and_refused_by_line(
    session_database_url: str, tmp_path: Path, source: str, row: dict[str, Any], kept: str
) -> None:
    to = ("--database-url", session_database_url)
    file = tmp_path / "rows.jsonl"
    nobodys = {name: value for name, value in row.items() if name not in {"user", "user_id"}} | {"session_id": None}
    file.write_text(
        "".join(f"{json.dumps(one)}\n" for one in (row, {**nobodys, "id": "o2", "trace_id": "t2"})) + "no json\n"
    )
    ran = run("import", source, str(file), "--json", *to)
    report = json.loads(ran.stdout)
    assert (ran.returncode, report["new_events"], report["refused"]) == (1, 1, 2)
    assert report["unmapped"][kept] == 2
    assert f"not kept: {kept} of 2 rows" in ran.stderr
    assert f"refused: {file}:3: line: got '7 characters', expected a JSON object" in ran.stderr
    assert f"refused: {file}:2: " in ran.stderr
    file.write_text(json.dumps(row))
    again = succeed("import", source, str(file), *to)
    assert again.startswith("Imported: rows 1, items ")
    assert "new_events 0" in again
    assert json.loads(succeed("stats", *to, "--json"))["sessions"] == 1


async def test_the_reference_is_imported_from_its_database(
    session_database_url: str, session_template_server: TemplateServer
) -> None:
    to = ("--database-url", session_database_url)
    async with another_database(session_template_server) as theirs:
        url = theirs.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        missing = run("import", "reference", url, *to)
        assert (missing.returncode, missing.stdout) == (1, "")
        assert 'relation "public.session_records" does not exist' in missing.stderr
        ours = run("import", "reference", url, "--source-schema", "session_lifecycle", *to)
        assert ours.returncode == 0
        admin = await asyncpg.connect(url)
        await admin.execute(REFERENCE)
        await admin.close()
        assert "new_events 1, skipped 0, refused 0" in succeed("import", "reference", url, *to)
        assert "new_events 0, skipped 0, refused 0" in succeed("import", "reference", url, *to)


LIVED_IN_REFERENCE = """
    CREATE TABLE public.session_records (
        session_id varchar, user_id {ids}, dataset_id {ids}, status varchar NOT NULL, started_at timestamptz NOT NULL,
        last_activity_at timestamptz NOT NULL, ended_at timestamptz, tokens_in int NOT NULL, tokens_out int NOT NULL,
        cost_usd float8 NOT NULL, error_count int NOT NULL, last_model text, PRIMARY KEY (session_id, user_id));
    CREATE TABLE public.session_model_usage (
        session_id varchar, user_id {ids}, model text, tokens_in int NOT NULL, tokens_out int NOT NULL,
        cost_usd float8 NOT NULL, updated_at timestamptz NOT NULL, PRIMARY KEY (session_id, user_id, model));
    -- Up to three models, whose floats add up to what no decimal would.
    INSERT INTO public.session_model_usage
    SELECT 'session-' || n, lpad(to_hex(n % 97), 32, '0')::{ids}, 'm' || (n + part) % 7, 100 + n % 11, part,
           0.1 * (1 + part) + 0.0001 * (n % 13), '2026-02-01 08:00Z'::timestamptz + n * interval '1 s'
    FROM generate_series(1, {sessions}) n, generate_series(1, n % 4) part;
    -- One session in ten has usage that named no model; one in four is running; one in a hundred has errors.
    INSERT INTO public.session_records
    SELECT 'session-' || n, lpad(to_hex(n % 97), 32, '0')::{ids},
           CASE WHEN n % 3 = 0 THEN lpad(to_hex(n % 5), 32, '0')::{ids} END, status, at - interval '1 h', at,
           CASE WHEN status <> 'running' THEN at + interval '5 s' END, tokens_in + 10 * (n % 10 = 1)::int, tokens_out,
           cost_usd + 0.7 * (n % 10 = 1)::int, 2 * (n % 100 = 0)::int, last_model
    FROM generate_series(1, {sessions}) n,
         LATERAL (SELECT (ARRAY['running', 'completed', 'failed', 'completed'])[1 + n % 4],
                         '2026-02-01 08:00Z'::timestamptz + n * interval '1 s') x (status, at),
         LATERAL (SELECT coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0), coalesce(sum(cost_usd), 0),
                         max(model)
                  FROM public.session_model_usage WHERE session_id = 'session-' || n) y
                 (tokens_in, tokens_out, cost_usd, last_model);
    -- What a model used after the end of its session is in no total of the session.
    UPDATE public.session_model_usage SET tokens_in = tokens_in + 7, updated_at = updated_at + interval '1 h'
    WHERE model = 'm3' AND (session_id, user_id) IN (
        SELECT session_id, user_id FROM public.session_records WHERE last_model = 'm3' AND status = 'failed');
"""
SESSION_ROWS = """
    SELECT replace(user_id::text, '-', ''), session_id, replace(dataset_id::text, '-', ''), status, started_at,
           last_activity_at, ended_at, tokens_in, tokens_out, cost_usd::text::numeric, error_count, last_model
    FROM {schema}.session_records ORDER BY session_id COLLATE "C"
"""
TOKENS_BY_MODEL = "SELECT model, sum(tokens_in), sum(tokens_out) FROM public.session_model_usage GROUP BY 1"
LATE_TOKENS = "SELECT coalesce(sum(tokens_in), 0) FROM session_lifecycle.session_usage_events WHERE late"
STORED = """
    SELECT 1, md5(string_agg(t::text, '' ORDER BY t::text)) FROM session_lifecycle.session_records t
    UNION ALL SELECT 2, md5(string_agg(t::text, '' ORDER BY t::text)) FROM session_lifecycle.session_usage_events t
    UNION ALL SELECT 3, md5(string_agg(t::text, '' ORDER BY t::text)) FROM session_lifecycle.session_model_usage t
    ORDER BY 1
"""


@pytest.mark.parametrize(
    ("ids", "sessions"), [("uuid", 400), ("varchar", 400), pytest.param("uuid", 100_000, marks=pytest.mark.soak)]
)
async def test_a_lived_in_database_of_the_reference_keeps_its_totals_and_is_imported_once(
    session_database_url: str, session_template_server: TemplateServer, ids: str, sessions: int
) -> None:
    async with another_database(session_template_server) as theirs:
        url = theirs.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        source, ours = await asyncpg.connect(url), await asyncpg.connect(session_database_url)
        await source.execute(LIVED_IN_REFERENCE.format(ids=ids, sessions=sessions))
        first = await _imported_reference(url, session_database_url)
        assert (first["rows"], first["skipped"], first["refused"]) == (sessions, 0, 0)

        rows = [tuple(row) for row in await source.fetch(SESSION_ROWS.format(schema="public"))]
        assert [tuple(row) for row in await ours.fetch(SESSION_ROWS.format(schema="session_lifecycle"))] == rows
        async with SessionDatabase.connect(session_database_url) as db:
            stats = await db.lifecycle.aggregate_stats(Viewer.auditor())
            costs = {one.model: one for one in await db.lifecycle.cost_by_model(Viewer.auditor())}
            found = await db.maintenance.reconcile()
        assert (stats.sessions, stats.total_spend_usd) == (sessions, sum(row[9] for row in rows))
        assert (stats.tokens_in, stats.tokens_out) == (sum(row[7] for row in rows), sum(row[8] for row in rows))
        assert sum(one.cost_usd for one in costs.values()) == stats.total_spend_usd
        assert found.mismatch_count == 0
        by_model = {model: tokens for model, *tokens in await source.fetch(TOKENS_BY_MODEL)}
        late = await ours.fetchval(LATE_TOKENS)
        assert late > 0
        by_model["m3"][0] -= late
        assert {name: [one.tokens_in, one.tokens_out] for name, one in costs.items() if name != "unknown"} == by_model
        assert costs["unknown"].tokens_in == 10 * (sessions // 10)

        before = await ours.fetch(STORED)
        again = await _imported_reference(url, session_database_url)
        assert (again["rows"], again["new_events"], again["refused"]) == (sessions, 0, 0)
        assert await ours.fetch(STORED) == before
        await source.close()
        await ours.close()


async def _imported_reference(url: str, into: str) -> dict[str, Any]:
    with running("import", "reference", url, "--database-url", into, "--json") as command:
        said, complaints = await asyncio.to_thread(command.communicate, timeout=3600)
    assert command.returncode == 0, complaints
    report: dict[str, Any] = json.loads(said)
    return report


REFERENCE = f"""
    CREATE TABLE public.session_records (
        session_id varchar, user_id text, dataset_id text, status varchar NOT NULL, started_at timestamp NOT NULL,
        last_activity_at timestamp NOT NULL, ended_at timestamp, tokens_in int NOT NULL, tokens_out int NOT NULL,
        cost_usd float8 NOT NULL, error_count int NOT NULL, last_model text, PRIMARY KEY (session_id, user_id));
    CREATE TABLE public.session_model_usage (
        session_id varchar, user_id text, model text, tokens_in int NOT NULL, tokens_out int NOT NULL,
        cost_usd float8 NOT NULL, updated_at timestamp NOT NULL, PRIMARY KEY (session_id, user_id, model));
    INSERT INTO public.session_records VALUES ('s', '{A.hex}', NULL, 'completed', '2026-02-01 08:00',
        '2026-02-01 08:05', '2026-02-01 08:06', 10, 5, 0.1, 0, 'm');
    INSERT INTO public.session_model_usage VALUES ('s', '{A.hex}', 'm', 10, 5, 0.1, '2026-02-01 08:04');
"""
