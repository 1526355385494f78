"""What the files of `alembic/functions/` hold to, and that their README says what they do."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic_core import from_json
from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql import asyncpg

import session_lifecycle
from session_lifecycle import End, Message, Run, Step, Touch, UsageEvent, Viewer
from session_lifecycle.entities import SessionModelRollUpEntity, SessionRollUpEntity
from session_lifecycle.models.sessions import Reopen
from session_lifecycle.postgres import function_files as function_files_module
from session_lifecycle.postgres.function_files import directory, function_files
from session_lifecycle.postgres.migrations import LOCK_SEED
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.statements.budgets import budgets, reservations
from session_lifecycle.statements.maintenance import delete, erase, reconcile_roll_ups, reprice, roll_up
from session_lifecycle.statements.maintenance.reconcile import SessionKey
from session_lifecycle.statements.sessions.changes import annotate_session, update_session
from session_lifecycle.statements.shared.visibility import shape_of_viewer
from session_lifecycle.statements.writing import record
from session_lifecycle.writing.prepared import prepare

SOURCE = Path(session_lifecycle.__file__).parent
FILES = {name: one.source for name, one in function_files().items()}
README = (directory() / "functions" / "README.md").read_text("utf-8")
SAFE_PATH = "SET search_path = pg_catalog, pg_temp"
U, S, AT = UUID(int=1), SessionKey(UUID(int=1), "s"), datetime(2026, 1, 1, tzinfo=UTC)
PART = reconcile_roll_ups.Part("user").shape
STATEMENTS: dict[str, ClauseElement] = {
    "record": record.record("ours")(),
    "lock items": record.lock_items("ours")(),
    "reprice": reprice.reprice("ours")(),
    "update session": update_session("ours")(),
    "annotate session": annotate_session("ours")(),
    "set budget": budgets.set_budget("ours")(),
    "would exceed": reservations.would_exceed("ours")(),
    "reserve": reservations.reserve("ours")(),
    "use of a budget": reservations.budget_use("ours", shape_of_viewer(Viewer.auditor())[0])(),
    "write tombstone": erase.write_tombstone("ours", U),
    "delete sessions": delete.delete_sessions("ours")(),
    "delete runs outside sessions": delete.delete_runs_outside_sessions("ours")(),
    "empty sessions": delete.empty_sessions("ours")(),
    "anonymise sessions": delete.anonymise_sessions("ours")(),
    "roll up": roll_up.roll_up_sessions("ours")(),
    "compact": roll_up.compact("ours")(),
    "take out": reconcile_roll_ups.take_out("ours", S),
    "rebuild": reconcile_roll_ups.rebuild("ours", PART)(),
    "rolled-up sessions": reconcile_roll_ups.rolled_up_mismatches()(),
    "their models": reconcile_roll_ups.rolled_up_model_mismatches("ours")(),
    "buckets": reconcile_roll_ups.bucket_mismatches("ours", SessionRollUpEntity, PART, 1)(),
    "buckets by model": reconcile_roll_ups.bucket_mismatches("ours", SessionModelRollUpEntity, PART, 1)(),
}
# In front of a parenthesis, and no call.
NO_CALLS = {
    "ANY",
    "ALL",
    "AS",
    "BY",
    "CONFLICT",
    "EXISTS",
    "FILTER",
    "IN",
    "KEY",
    "OVER",
    "TABLE",
    "VALUES",
    "WITH",
    "FUNCTION",
}


# Functions of Postgres that answer otherwise each time. Within one statement, `statement_timestamp` and `now` do not.
VOLATILE = r"\b(gen_random_uuid|uuidv[47]|random\w*|clock_timestamp|timeofday|nextval|setval)\("
MODIFIES = r"\b(?:INSERT INTO|UPDATE|DELETE FROM|MERGE INTO) (?:ONLY )?(?:\{schema\}|ours)\."


def without_comments(sql: str) -> str:
    return re.sub(r"--[^\n]*", "", sql)


def aliases(sql: str) -> set[str]:
    """The names of tables, CTEs, subqueries and functions in the SQL."""
    found = set(re.findall(r"\b(?:FROM|JOIN|USING|UPDATE|INTO)\s+(?:[\w{}]+\.)?\w+ (?:AS )?([a-z]\w*)", sql))
    found |= set(re.findall(r"(?:\)|\bORDINALITY)\s+(?:AS )?([a-z]\w*)", sql))
    return found | set(re.findall(r"\b([a-z]\w*) AS (?:MATERIALIZED )?\(", sql))


def calls(sql: str) -> Iterator[tuple[str, list[str]]]:
    """Every word in front of a parenthesis, and what stands between the commas within."""
    opened: list[tuple[str, list[str]]] = []
    for token in re.findall(r"'(?:[^']|'')*'|[\w.{}]+|\S|\s+", sql):
        if token == "(":
            before = "".join(opened[-1][1]).split() if opened else []
            opened.append((before[-1] if before else "", [""]))
        elif token == ")" and len(opened) > 1:
            word, parts = opened.pop()
            yield word, [one.strip() for one in parts]
            opened[-1][1][-1] += " )"
        elif token == "," and len(opened) > 1:
            opened[-1][1].append("")
        elif opened:
            opened[-1][1][-1] += token
        else:
            opened.append(("", [token]))


def faults(sql: str) -> list[str]:
    """The shapes in this SQL that a distributed Postgres sends wrongly to its nodes, or refuses."""
    sql = without_comments(sql)
    found = []
    if re.search(r"\bCASE\b(?!\s+WHEN\b)", sql):
        found.append("a simple CASE")
    if "force_generic_plan" in sql:
        found.append("a forced generic plan")
    if re.search(r"\bLANGUAGE sql\b", sql) and re.search(
        r"\b(?:FROM|JOIN|INTO|UPDATE|USING)\s+\{schema\}\.\w+\b(?!\()", sql
    ):
        found.append("a function in SQL over tables")
    for insertion in re.findall(r"\bINSERT INTO .*?(?=\bON CONFLICT\b|\bRETURNING\b|;|\n {0,8}\)|\Z)", sql, re.DOTALL):
        read = re.findall(r"\b(?:FROM|JOIN)\s+\{schema\}\.(\w+)\b(?!\()", insertion)
        found += [f"an insertion whose SELECT reads a table: {one}" for one in read]
    body = sql[sql.find("$body$") + 1 :]
    for statement in filter(re.compile(MODIFIES).search, re.split(r";|\bLOOP\b", body)):
        own = set(re.findall(r"(?:\{schema\}|ours)\.(\w+)\(", statement)) & FILES.keys()
        volatile = {name for name in own if not re.search(r"\b(?:IMMUTABLE|STABLE)\b", FILES[name])}
        volatile |= set(re.findall(VOLATILE, statement))
        found += [f"a volatile function in a statement that writes: {name}" for name in sorted(volatile)]
    named = aliases(sql)
    # Such a function answers values: its one column has the alias as its name.
    rows = named - set(re.findall(r"jsonb_array_elements\([^()]*\) (\w+)(?! *\()", sql))
    returned = set()
    for items in re.findall(r"\bRETURNING\s+([^;()]+?)(?=\s*(?:;|\)|\bINTO\b|\bLOOP\b))", sql):
        returned |= {one.strip() for one in items.split(",")} & (rows | {"*"})
        returned |= set(re.findall(r"\w+\.\*", items))
    found += [f"a whole row returned: {one}" for one in sorted(returned)]
    for word, arguments in calls(sql):
        is_table = word.startswith("{schema}.") and word.removeprefix("{schema}.") not in FILES
        if word not in NO_CALLS | named and not is_table:
            whole = [one for one in arguments if one in rows or ("." in one and one.split(".")[-1] in returned)]
            found += [f"a whole row as an argument: {word}({one})" for one in whole]
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_holds_to_what_all_hold_to(name: str) -> None:
    sql = FILES[name]
    assert f"CREATE FUNCTION {{schema}}.{name}(" in sql
    assert sql.startswith("-- "), "it says what it does"
    assert "Answers" in sql[: sql.index("CREATE")] or "Says whether" in sql
    assert faults(sql) == []
    if "LANGUAGE plpgsql" in sql:
        assert SAFE_PATH in sql
    else:
        # Parsed when it is created, so nothing in it is looked up again; and it can be inlined.
        assert re.search(r"LANGUAGE sql (?:IMMUTABLE|STABLE)(?: PARALLEL SAFE)?\n(?:BEGIN ATOMIC|RETURN )", sql)


@pytest.mark.parametrize("name", FILES)
def test_X14_no_function_compares_rows_with_each_of_an_array(name: str) -> None:
    """`= ANY (ARRAY[one])` is a lookup by key; an array of many is looked through for each row."""
    sql = without_comments(FILES[name])
    assert not re.search(r"\bALL \(|\bNOT IN \(SELECT|array_position\(", sql)
    assert not re.search(r"\bANY \((?!ARRAY\[[\w.]+\]\))", sql)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_that_calls_a_function_has_none_of_the_shapes(name: str) -> None:
    assert faults(str(STATEMENTS[name].compile(dialect=asyncpg.dialect()))) == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("holds", "CASE\n    WHEN of_family = 'dataset' THEN", "CASE of_family WHEN 'dataset' THEN"),
        ("record_activity", "CASE WHEN r.status = 'running' THEN", "CASE r.status WHEN 'running' THEN"),
        ("record_wave", "SET jit = off", "SET jit = off SET plan_cache_mode = force_generic_plan"),
        (
            "expected_roll_ups_v1",
            "session_roll_up_changes c\n",
            "session_roll_up_changes c, LATERAL {schema}.share(c, 1) e\n",
        ),
        ("settle_runs", "'user_id', t.user_id,", "'row', to_jsonb(t), 'user_id', t.user_id,"),
        ("compact_roll_ups_v1", "RETURNING r.family, r.user_id", "RETURNING r, r.family, r.user_id"),
        (
            "compact_roll_ups_v1",
            "(SELECT jsonb_agg(jsonb_build_object(",
            "(SELECT array_agg(b), jsonb_agg(jsonb_build_object(",
        ),
        ("roll_up_sessions_v1", "s.further_totals, m.models", "to_jsonb(s), m.models"),
        ("roll_up_sessions_v1", "FROM found f\n", "FROM {schema}.session_records f\n"),
        ("add_parts", "FROM total t;", "FROM total t JOIN {schema}.session_roll_ups r ON r.level = t.status;"),
        ("roll_up_sessions_v1", "m.models\n", "m.models, {schema}.append_changes(1)\n"),
        ("anonymise_sessions_v1", "md5(secret || e.event_id::text)::uuid", "gen_random_uuid()"),
        ("record_activity", "record_nos[f.place]", "nextval('{schema}.session_runs_record_no_seq')"),
        ("share", "coalesce(late_usd, 0),\n", "(SELECT s.cost_usd FROM {schema}.session_records s),\n"),
    ],
)
def test_a_shape_that_comes_back_is_found(name: str, old: str, new: str) -> None:
    assert old in FILES[name]
    assert faults(FILES[name].replace(old, new)) != []


def test_two_files_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "other"):
        (tmp_path / "functions" / folder).mkdir(parents=True)
        (tmp_path / "functions" / folder / "f.sql").write_text("CREATE FUNCTION {schema}.f() RETURNS int")
    monkeypatch.setattr(function_files_module, "directory", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"other/f\.sql: expected the only definition of the function f$"):
        function_files.__wrapped__()


def part(title: str) -> str:
    """One part of the README."""
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def called(sql: str) -> set[str]:
    return set(re.findall(r"\{schema\}\.(\w+)\(", without_comments(sql))) & FILES.keys()


def test_the_readme_has_the_call_graph() -> None:
    drawn: dict[str, set[str]] = {}
    for line in part("Call graph").split("```")[1].splitlines():
        if line:
            name, _, calls = line.partition(" -> ")
            drawn[name] = set(filter(None, calls.split(", ")))
    calling = {name: called(sql) - {name} for name, sql in FILES.items()}
    inner = {name for name in FILES if any(name in names for names in calling.values())}
    assert drawn == {name: names for name, names in calling.items() if names or name not in inner}


def test_a_function_has_a_version_if_it_is_called_from_outside() -> None:
    python = "".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py"))
    of_python = {name for name in FILES if re.search(rf'"{name}"', python) and "_v" in name}
    assert not any(
        re.search(rf'(?:database_function|_call)\(schema, "{name}"', python) for name in FILES.keys() - of_python
    )
    of_triggers = {"leave_roll_ups_v1", "notify_of_changes_v1"}
    assert of_python | of_triggers == {name for name in FILES if re.search(r"_v\d+$", name)}


def advisory_locks() -> Iterator[tuple[int, str]]:
    for name, sql in FILES.items():
        body = without_comments(sql)
        locks = body.count("pg_advisory_xact_lock")
        seeds = re.findall(r"hashtextextended\((?:[^()]|\([^()]*\))*, (\d)\)", body)
        assert len(seeds) == locks, f"{name} takes an advisory lock without a seed"
        yield from ((int(seed), name) for seed in seeds)


def test_the_readme_has_the_seeds() -> None:
    rows = re.findall(r"^\| (\d) \|[^|]*\|([^|]*)\|$", part("Locks"), re.MULTILINE)
    drawn = {(int(seed), name) for seed, names in rows for name in re.findall(r"`([\w.]+)`", names)}
    from_python = ("session_lifecycle.postgres.migrations", "session_lifecycle.buckets.moving")
    assert drawn == {*advisory_locks(), *((LOCK_SEED, module) for module in from_python)}


def test_no_advisory_lock_is_taken_from_python_but_that_of_migrations_and_moves() -> None:
    """On Citus such a lock would be taken on the wrong node. A bucket moves between plain servers only."""
    taking = {path.name for path in SOURCE.rglob("*.py") if "advisory_" in path.read_text("utf-8")}
    assert taking == {"migrations.py", "moving.py"}


def test_the_readme_has_the_sqlstates() -> None:
    rows = re.findall(r"^\| `(SL\d+)` \|([^|]*)\|", part("SQLSTATEs"), re.MULTILINE)
    drawn = {(state, name) for state, names in rows for name in re.findall(r"`(\w+)`", names)}
    bodies = {name: without_comments(sql) for name, sql in FILES.items()}
    raised = {(state, name) for name, sql in bodies.items() for state in re.findall(r"ERRCODE = '(\w+)'", sql)}
    assert drawn == raised
    caught = {(state, name) for name, sql in bodies.items() for state in re.findall(r"WHEN SQLSTATE '(\w+)'", sql)}
    taken = {(state, "reprice_v1") for state in ("SL002", "SL003", "SL004")}
    taken |= {("SL002", "delete_sessions_v1"), ("SL002", "anonymise_sessions_v1")}
    taken.add(("SL003", "lock_items_v1"))
    assert caught == {(state, "record_v1") for state in ("SL001", "SL002", "SL003")} | taken
    for state, name in raised:
        assert f"Raises `{state}`" in FILES[name] or f"`{state}`" in FILES[name].split("CREATE FUNCTION")[0]


def keys_of(title: str) -> dict[str, set[str]]:
    """The keys of each kind, as one table of the README lists them."""
    table = re.split(r"^`(\w+)`, ", part("An item's shape"), flags=re.MULTILINE)
    text = dict(zip(table[1::2], table[2::2], strict=True))[title]
    rows = {
        name: set(keys.split(", "))
        for name, keys in re.findall(r"^\| `?(\w+)`? \| `([\w, ]+)` \|$", text, re.MULTILINE)
    }
    shared = rows.pop("all")
    return {name: keys | shared for name, keys in rows.items()}


async def written(*items: Any) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The keys of each kind, as the library writes them for these items."""
    waves: dict[str, set[str]] = {}
    activity: dict[str, set[str]] = {}
    prices = PriceCatalogue()
    await prices.load()
    for item in items:
        prepared = prepare(item, prices)
        change = from_json(prepared.change) if prepared.change else None
        for found, into in ((change, waves), (prepared.activity, activity)):
            if found is not None:
                into.setdefault(found["kind"], {"position"}).update(found)
    return waves, activity


def full_items() -> list[Any]:
    usage: dict[str, Any] = {
        "tokens_in": 9,
        "tokens_out": 9,
        "cache_read_tokens": 1,
        "cache_write_tokens": 1,
        "reasoning_tokens": 1,
    }
    usage |= {"dataset_id": U, "provider": "openai", "errored": True, "run_id": "r", "details": {"a": 1}, "at": AT}
    run: dict[str, Any] = {
        "run_id": "r",
        "user_id": U,
        "session_id": "s",
        "parent_run_id": "p",
        "root_run_id": "p",
        "project": "p",
    }
    run |= {
        "parent_tool_call_id": "t",
        "dataset_id": U,
        "agent_name": "a",
        "client": "c",
        "provider": "p",
        "model": "m",
    }
    run |= {"name": "n", "started_at": AT, "ended_at": AT, "status": "completed", "error": "e", "input": 1, "output": 1}
    run |= {"metadata": {"a": 1}, "quality_score": 1.0, "reported_cost_usd": Decimal(1), "reported_tokens": 1}
    step: dict[str, Any] = {
        "step_id": "s",
        "run_id": "r",
        "user_id": U,
        "parent_step_id": "p",
        "seq": 1,
        "kind": "task",
        "name": "n",
    }
    step |= {
        "started_at": AT,
        "ended_at": AT,
        "inputs": 1,
        "output": 1,
        "prompt": 1,
        "errors": ["e"],
        "tool_call_id": "t",
    }
    step |= {"server_url": "u", "injected": True, "metadata": {"a": 1}}
    rare: dict[str, Any] = {"service_tier": "batch", "web_searches": 1, "tokens_in": 9}
    message = {"message_id": "m", "user_id": U, "session_id": "s", "run_id": "r", "role": "user", "content": "c"}
    return [
        Touch(
            session_id="s",
            user_id=U,
            dataset_id=U,
            agent_name="a",
            title="t",
            metadata={"a": 1},
            tags={"a": "b"},
            parent_session_id="p",
            waiting=True,
            at=AT,
        ),
        UsageEvent(
            session_id="s",
            user_id=U,
            model="gpt-4o",
            idempotency_key="k",
            revision=1,
            key_scope="user",
            touch=False,
            **usage,
        ),
        UsageEvent(session_id="s", user_id=U, model="gpt-4o", cost_usd=1, measured=True, **usage),
        UsageEvent(session_id="s", user_id=U, measured=False),
        UsageEvent(session_id="s", user_id=U, model="gpt-4o", billing="plan", kind="embedding", partial=True, **rare),
        UsageEvent(session_id="s", user_id=U),
        End(session_id="s", user_id=U, status="failed", reason="r", at=AT),
        Reopen(session_id="s", user_id=U, at=AT),
        Run(**run, revision=1),
        Step(**step, revision=1),
        Message(**message, created_at=AT, metadata={"a": 1}, revision=1),
    ]


async def test_the_readme_has_the_keys_that_the_library_writes() -> None:
    waves, activity = await written(*full_items())
    assert keys_of("waves") == waves
    assert keys_of("activity") == activity


RECORDSET = re.compile(r"jsonb_to_record(?:set)?\((.+?)\) (?:AS )?\w+ \(([^()]*)\)")


def read_by(name: str, *arguments: str) -> set[str]:
    """The keys that a function reads of items by column lists."""
    lists = [columns for argument, columns in RECORDSET.findall(without_comments(FILES[name])) if argument in arguments]
    assert lists, f"{name} reads no {arguments}"
    return {column.split()[0] for columns in lists for column in columns.split(",")}


async def test_the_functions_read_what_the_library_writes() -> None:
    waves, activity = await written(*full_items())
    in_waves, in_activity = set().union(*waves.values()), set().union(*activity.values())
    # `record_locked` alone asks whether a touch answers.
    assert read_by("record_wave", "wave") | {"answers"} == in_waves
    assert read_by("record_plain", "items") <= in_waves
    assert read_by("record_v1", "single") <= waves["usage"]
    of_touch = set(re.findall(r"single ->> '(\w+)'", FILES["record_v1"]))
    assert of_touch == waves["touch"] - {
        "position", "metadata", "run_id", "began_at", "answers", "tags", "parent_session_id", "waiting",
    }  # fmt: skip
    assert read_by("record_activity", "items") == in_activity
    for name in ("record_locked", "lock_sessions", "lock_runs", "follow_runs"):
        assert read_by(name, "wave", "wave.items", "written", "acted", "written || acted") <= in_waves | in_activity
    # What a plain item may not have is all that the short ways do not read.
    assert in_waves - read_by("record_plain", "items") == {
        "answers", "began_at", "key_scope", "metadata", "revision", "run_id", "status",
        "parts", "billing", "plan_cost_usd", "usage_kind", "service_tier", "partial",
        "tags", "parent_session_id", "waiting", "reason",
    }  # fmt: skip
