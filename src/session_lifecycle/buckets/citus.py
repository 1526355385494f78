"""A bucket on Citus: its schema is on one node of the cluster, and its functions run on that node.

Citus plans a large statement anew in each call, for 5 to 13 ms, and sends what it computes for an INSERT to every node,
also to one that is away. So there is a copy of each function that reads tables, which names the shards: the tables in
which Citus keeps the rows on a node. Citus knows nothing of a write into a shard, so a move would lose it. Therefore an
entry that writes is a gate on Citus. It first makes a write that Citus does know, which waits for a move at work and
keeps the next one waiting until the transaction ends. Then the gate looks whether the shards are on its own node. If
they are, it calls the copy. If not, it has Citus call the copy on their node.
"""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import md5

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle.entities import metadata, quoted
from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError, SchemaError, TransactionConflictError
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.postgres.function_files import BODY_TAG, STANDS_FOR, FunctionFile, function_files
from session_lifecycle.postgres.host_engines import driver_connection
from session_lifecycle.statements.buckets import citus
from session_lifecycle.statements.buckets.moving import place

DISTRIBUTE_COMMAND = "session-lifecycle db distribute"
SUFFIX = "_at_shards"
MARK = "-- Created as "
"""Before the MD5 of the text from which a copy or a gate was created."""
POLL_SECONDS = 0.2
MOVE_ATTEMPTS = 10
LEFTOVER_SECONDS = 1.0
LEFTOVER = "ErrorIfCleanupRecordForShardExists"
"""The function of Citus that refuses a move to a node on which the last move's rows are still in use."""
MOST_NAMED = 5

_NAME = re.compile(r"\{schema\}\.(\w+)")
_INSERT = re.compile(r"(INSERT INTO \{schema\}\.(\w+)(?: AS \w+)?\s+\()([^)]*)(\)\s+SELECT )")
_NUMBERED = {
    table.name: column.name
    for table in metadata.sorted_tables
    for column in table.columns
    if column.identity is not None
}
"""The tables whose rows have a number, and the column that has it."""
_RESULT = re.compile(r"RETURNS (?P<kind>\S+)")
_LANGUAGE = "\nLANGUAGE plpgsql\n"
_OUT = re.compile(r"\bOUT (\w+)")
# No session has the key of the update. It finds no row, and takes the lock by which Citus keeps writers and moves
# apart. The next statement has a snapshot from after the lock. Citus runs a query of a table with one shard where the
# shard is, in the transaction that the update began there.
_GATE = """
#variable_conflict use_column
{declare}BEGIN
    UPDATE {schema}.session_records SET derived = derived
    WHERE user_id = '00000000-0000-0000-0000-000000000000' AND session_id = '';
    IF EXISTS (
        SELECT FROM pg_dist_shard s
        JOIN pg_dist_placement p ON p.shardid = s.shardid
        JOIN pg_dist_local_group here ON here.groupid = p.groupid
        WHERE s.shardid = {shard_id} AND s.logicalrelid = {table}::regclass
    ) THEN
        {call} FROM {schema}.{copy} r;
    ELSE
        {call} FROM (SELECT count(*) FROM {schema}.session_buckets) there, {schema}.{copy} r;
    END IF;
{end}END
"""


async def group_of(connection: "asyncpg.Connection", schema: str) -> int | None:
    """The number by which Citus knows the tables of a schema that is distributed; None where it is not."""
    if not await connection.fetchval(citus.HAS_CITUS):
        return None
    found: int | None = await connection.fetchval(citus.GROUP, schema)
    return found


async def check_functions(connection: AsyncConnection, schema: str) -> bool:
    """Whether the schema is distributed. Then every function of this version runs where the schema is.

    Raises:
        SchemaError: The schema is distributed, and a function is not. The message names it and the command that helps.
    """
    driver = driver_connection(connection)
    group = await group_of(driver, schema)
    if group is None:
        return False
    there = [row for row in await driver.fetch(citus.FUNCTIONS, schema) if row["group_id"] == group]
    lacking = {*function_files(), *(f"{name}{SUFFIX}" for name in copied())} - {row["name"] for row in there}
    lacking |= {*gates()} - {row["name"] for row in there if STANDS_FOR in row["body"]}
    if lacking:
        named = ", ".join(sorted(lacking)[:MOST_NAMED]) + (" and more" if len(lacking) > MOST_NAMED else "")
        raise SchemaError(
            f"schema {schema!r} is distributed by Citus, and these functions do not run on its node: {named}: "
            f"run `{DISTRIBUTE_COMMAND}` with all places"
        )
    return True


async def distribute(connection: "asyncpg.Connection", schema: str) -> None:
    """Distributes a schema of ours and its functions. Does what is missing, so it may run again.

    The connection is to the coordinator, without a deadline and in no transaction. Writers wait while the rows go to
    their node. What an interrupted call leaves behind works, and is slower.

    Raises:
        ConfigurationError: The database has no Citus.
    """
    if not await connection.fetchval(citus.HAS_CITUS):
        raise ConfigurationError("the database has no extension citus 12 or later: give the URL of a coordinator")
    if await group_of(connection, schema) is None:
        async with connection.transaction():
            await connection.execute(citus.ALLOW_TRIGGERS)
            await connection.execute(citus.DISTRIBUTE_SCHEMA, quoted(schema))
    for sql in citus.identify_rows(schema):
        await connection.execute(sql)
    await distribute_functions(connection, schema)


async def distribute_functions(connection: "asyncpg.Connection", schema: str) -> None:
    """Has each function of a distributed schema run where the schema is. Creates the copies, and then the gates."""
    rows = {row["table_name"]: row for row in await connection.fetch(citus.SHARDS, schema)}
    shards = {table: row["shard"] for table, row in rows.items()}
    shard_id = rows["session_records"]["shard_id"]
    await _create(connection, schema, [copy_of(one, shards) for one in copied().values()])
    group = await group_of(connection, schema)
    for row in await connection.fetch(citus.FUNCTIONS, schema):
        if row["group_id"] != group:
            beside = place(schema, "session_records")
            await connection.execute(citus.DISTRIBUTE_FUNCTION, row["signature"], beside)
        if row["name"] in citus.NESTED and not row["is_nested"]:
            await connection.execute(citus.allow_nested(row["signature"]))
    # A gate calls its copy, which every node has by now.
    await _create(connection, schema, [gate_of(schema, one, shards, shard_id) for one in gates().values()])


async def _create(connection: "asyncpg.Connection", schema: str, functions: Sequence[FunctionFile]) -> None:
    """Creates the functions that are not there as they are here, all of them or none.

    Citus needs every node to create one. Without a new one, a node may be away.
    """
    bodies = {row["name"]: row["body"] for row in await connection.fetch(citus.FUNCTIONS, schema)}
    marks = {one: f"{MARK}{md5(one.source.encode(), usedforsecurity=False).hexdigest()}" for one in functions}
    new = {one: mark for one, mark in marks.items() if mark not in bodies.get(one.name, "")}
    if not new:
        return
    async with connection.transaction():
        await connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        for one, mark in new.items():
            head, tag, rest = one.source.partition(BODY_TAG)
            marked = replace(one, source=f"{head}{tag}\n{mark}{rest}")
            await connection.execute(marked.create_sql(schema, replace=True))


async def node_of(connection: "asyncpg.Connection", schema: str) -> str | None:
    """The node of a distributed schema, as host:port; None where the schema is not distributed."""
    if await group_of(connection, schema) is None:
        return None
    found = await connection.fetchrow(citus.NODE, place(schema, "session_records"))
    return None if found is None else f"{found['host']}:{found['port']}"


async def move(connection: "asyncpg.Connection", schema: str, node: str) -> float:
    """Moves a distributed schema to a node, as Citus does it: writers wait at the end only. Returns the seconds.

    Args:
        connection: A connection to the coordinator, without a deadline and in no transaction.
        schema: The schema.
        node: The node, as host:port.

    Raises:
        ConfigurationError: The schema is not distributed, or there is no such node.
        DeadlockDetectedError: Transactions of hosts ended the move again and again. The schema is where it was.
        TransactionConflictError: Transactions use what the last move left on the node. The schema is where it was.
    """
    if await group_of(connection, schema) is None:
        raise ConfigurationError(f"schema {schema!r} is not distributed: run `{DISTRIBUTE_COMMAND}` with all places")
    nodes = [row["node"] for row in await connection.fetch(citus.NODES)]
    if node not in nodes:
        raise ConfigurationError(f"to: got {node!r}, expected a node that keeps data: {', '.join(nodes) or 'none is'}")
    began = time.monotonic()
    if await node_of(connection, schema) != node:
        host, _, port = node.rpartition(":")
        for attempt in range(1, MOVE_ATTEMPTS + 1):
            try:
                await connection.execute(citus.MOVE_SCHEMA, quoted(schema), host, int(port))
                break
            except asyncpg.DeadlockDetectedError:
                # A host's transaction locks on the coordinator and on the node. Citus ends it, or the move.
                if attempt == MOVE_ATTEMPTS:
                    raise
                await asyncio.sleep(with_jitter(POLL_SECONDS))
            except asyncpg.InternalServerError as error:
                # Citus drops what a move leaves behind when nobody uses it any more, and does so before the next move.
                if getattr(error, "server_source_function", None) != LEFTOVER:
                    raise
                if attempt == MOVE_ATTEMPTS:
                    raise TransactionConflictError(
                        f"what the last move left on {node} is still in use: end the long transactions there and move "
                        "again; nothing was moved"
                    ) from error
                await asyncio.sleep(with_jitter(LEFTOVER_SECONDS))
    return time.monotonic() - began


async def rebalance(connection: "asyncpg.Connection") -> None:
    """Has Citus spread all that it distributes in this database over its nodes, and waits until that is done.

    Raises:
        DatabaseUnavailableError: Citus gave up. The message has its reasons.
    """
    job = await connection.fetchval(citus.REBALANCE)
    if job is None:
        return
    while True:
        state = await connection.fetchval(citus.JOB_STATE, job)
        if state in {"finished", "failed", "cancelled"}:
            break
        await asyncio.sleep(POLL_SECONDS)
    if state != "finished":
        reasons = "; ".join(row["message"] for row in await connection.fetch(citus.JOB_ERRORS, job))
        raise DatabaseUnavailableError(
            f"Citus did not rebalance, the job {job} {state}: {reasons or 'no reason given'}"
        )


@cache
def copied() -> dict[str, FunctionFile]:
    """The functions of which there is a copy: those that name a table, and those that call one of these."""
    files = function_files()
    named = {name: set(_NAME.findall(one.source)) for name, one in files.items()}
    found: set[str] = set()
    reached = {table.name for table in metadata.sorted_tables}
    while more := {name for name in files.keys() - found if named[name] & reached}:
        found |= more
        reached = more
    return {name: one for name, one in files.items() if name in found}


def gates() -> dict[str, FunctionFile]:
    """The copied entries that write. One that only reads is part of statements that Citus sends to the node."""
    return {name: one for name, one in copied().items() if one.is_entry and not one.only_reads}


def copy_of(one: FunctionFile, shards: Mapping[str, str]) -> FunctionFile:
    """The copy of a function.

    Args:
        one: The function.
        shards: The shard of each table, quoted and with its schema.
    """
    head, tag, rest = one.source.partition(BODY_TAG)
    head = head[head.index("CREATE FUNCTION") :].replace(f".{one.name}", f".{one.name}{SUFFIX}", 1)
    return replace(one, name=f"{one.name}{SUFFIX}", source=f"{head}{tag}{_at_shards(rest, shards)}")


def gate_of(schema: str, one: FunctionFile, shards: Mapping[str, str], shard_id: int) -> FunctionFile:
    """The gate that takes the place of an entry.

    Args:
        schema: The schema.
        one: The entry.
        shards: As in `copy_of`.
        shard_id: The number of the shard of `session_records`.
    """
    head, tag, rest = one.source.partition(BODY_TAG)
    head = head[head.index("CREATE FUNCTION") :]
    result = _RESULT.search(head)
    kind = result["kind"] if result else None
    if kind == "trigger":
        # It fires on the shard, where the rows are.
        body, _, end = _at_shards(rest, shards).partition(BODY_TAG)
    else:
        declare = answered = ""
        if kind in {"TABLE", "SETOF"}:
            call = "RETURN QUERY SELECT r.*"
        elif kind == "void":
            call = "PERFORM 1"
        elif kind is None:
            call = f"SELECT r.* INTO {', '.join(_OUT.findall(head))}"
        else:
            call, answered = "SELECT r.* INTO answer", "    RETURN answer;\n"
            declare = f"DECLARE\n    answer {kind};\n"
        arguments = ", ".join(f"${number}" for number in range(1, one.argument_count + 1))
        values = {
            "declare": declare,
            "call": call,
            "end": answered,
            "copy": f"{one.name}{SUFFIX}({arguments})",
            "shard_id": str(shard_id),
            "table": _literal(place(schema, "session_records")),
        }
        body, end = _GATE, ";\n"
        for name, value in values.items():
            body = body.replace(f"{{{name}}}", value)
        head = f"{head.partition(_LANGUAGE)[0]}{_LANGUAGE}SET search_path = pg_catalog, pg_temp\nAS "
    body = f"\n{STANDS_FOR}{one.body_md5(schema)}{body}"
    return replace(one, source=f"{head}{tag}{body}{tag}{end}")


def _at_shards(body: str, shards: Mapping[str, str]) -> str:
    """The body of a function, with the shards in place of the tables and the copies in place of the functions."""

    def name(found: re.Match[str]) -> str:
        return f"{found[0]}{SUFFIX}" if found[1] in copied() else shards.get(found[1], found[0])

    return _NAME.sub(name, _INSERT.sub(_number_rows, body))


def _number_rows(insert: re.Match[str]) -> str:
    """An insertion that numbers its rows: Citus gives a shard no default that is a number of a sequence."""
    into, table, columns, select = insert.groups()
    number = _NUMBERED.get(table)
    if number is None or number in columns.replace(",", " ").split():
        return insert[0]
    return f"{into}{number}, {columns}{select}nextval('{{schema}}.{table}_{number}_seq'), "


def _literal(value: str) -> str:
    return "'{}'".format(value.replace("'", "''"))
