"""A bucket on Citus: its schema is on one node of the cluster, and its functions run on that node.

Citus plans a large statement anew in each call, for 5 to 13 ms. So the functions that write plain items are there
twice: as they are, and as copies that name the shards, the tables in which Citus keeps the rows on a node. Citus knows
nothing of a write into a shard, so a move of the schema would lose it. Therefore Python calls the gate: it first makes
a write that Citus does know, which waits for a move at work and keeps the next one waiting until the transaction ends.
Then the gate looks whether the shards are on its own node. If they are, the copies write. If not, `record_v1` does.
"""

import asyncio
import re
import time
from collections.abc import Mapping

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle.entities import quoted
from session_lifecycle.errors import ConfigurationError, DatabaseUnavailableError, SchemaError, TransactionConflictError
from session_lifecycle.postgres.execution import with_jitter
from session_lifecycle.postgres.function_files import BODY_TAG, function_files
from session_lifecycle.postgres.host_engines import driver_connection
from session_lifecycle.statements.buckets import citus, moving
from session_lifecycle.statements.writing.record import GATE

DISTRIBUTE_COMMAND = "session-lifecycle db distribute"
COPIED = ("refuse_erased", "lock_session", "lock_sessions", "create_sessions", "record_plain", "record_v1")
"""The functions of which there is a copy that names the shards, each after those that it calls."""
SUFFIX = "_at_shards"
POLL_SECONDS = 0.2
MOVE_ATTEMPTS = 10
LEFTOVER_SECONDS = 1.0
LEFTOVER = "ErrorIfCleanupRecordForShardExists"
"""The function of Citus that refuses a move to a node on which the last move's rows are still in use."""
MOST_NAMED = 5

_NAME = re.compile(r"\{schema\}\.(\w+)")
# No session has this key. The update finds no row, and takes the lock by which Citus keeps writers and moves apart.
_GATE = """
BEGIN
    IF is_plain THEN
        UPDATE {schema}.session_records SET derived = derived
        WHERE user_id = '00000000-0000-0000-0000-000000000000' AND session_id = '';
        -- This statement has a snapshot from after the lock.
        IF EXISTS (
            SELECT FROM pg_dist_shard s
            JOIN pg_dist_placement p ON p.shardid = s.shardid
            JOIN pg_dist_local_group here ON here.groupid = p.groupid
            WHERE s.shardid = {shard_id} AND s.logicalrelid = {table}::regclass
        ) THEN
            RETURN QUERY
            SELECT r.* FROM {schema}.{copy}(waves, activity, latest_at, is_plain) r;
            RETURN;
        END IF;
    END IF;
    RETURN QUERY SELECT r.* FROM {schema}.record_v1(waves, activity, latest_at, is_plain) r;
END
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
    there = {row["name"] for row in await driver.fetch(citus.FUNCTIONS, schema) if row["group_id"] == group}
    lacking = sorted({*function_files(), *(f"{name}{SUFFIX}" for name in COPIED), GATE} - there)
    if lacking:
        named = ", ".join(lacking[:MOST_NAMED]) + (" and more" if len(lacking) > MOST_NAMED else "")
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
    """Has each function of a distributed schema run where the schema is, and creates the copies that name shards."""
    shards = {row["table_name"]: row for row in await connection.fetch(citus.SHARDS, schema)}
    names = {table: row["shard"] for table, row in shards.items()}
    async with connection.transaction():
        await connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        for sql in copies(schema, names, shards["session_records"]["shard_id"]):
            await connection.execute(sql)
    group = await group_of(connection, schema)
    for row in await connection.fetch(citus.FUNCTIONS, schema):
        if row["group_id"] != group:
            beside = moving.place(schema, "session_records")
            await connection.execute(citus.DISTRIBUTE_FUNCTION, row["signature"], beside)
        if row["name"] in citus.NESTED:
            await connection.execute(citus.allow_nested(row["signature"]))


async def node_of(connection: "asyncpg.Connection", schema: str) -> str | None:
    """The node of a distributed schema, as host:port; None where the schema is not distributed."""
    if await group_of(connection, schema) is None:
        return None
    found = await connection.fetchrow(citus.NODE, moving.place(schema, "session_records"))
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


def copies(schema: str, shards: Mapping[str, str], shard_id: int) -> list[str]:
    """The statements that create the copies that name the shards, and the gate."""

    def name(found: re.Match[str]) -> str:
        if found[1] in COPIED:
            return f"{found[0]}{SUFFIX}"
        return shards.get(found[1], found[0])

    files = function_files()
    statements = [_NAME.sub(name, files[one].source) for one in COPIED]
    head, _, _ = files["record_v1"].source.partition(BODY_TAG)
    gate = _GATE.replace("{copy}", f"record_v1{SUFFIX}").replace("{shard_id}", str(shard_id))
    gate = gate.replace("{table}", _literal(moving.place(schema, "session_records")))
    statements.append(f"{head.replace('.record_v1', f'.{GATE}', 1)}{BODY_TAG}{gate}{BODY_TAG};")
    tag = BODY_TAG
    while tag in schema:
        tag = f"{tag[:-1]}_$"
    return [
        sql.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
        .replace(BODY_TAG, tag)
        .replace("{schema}", quoted(schema))
        for sql in statements
    ]


def _literal(value: str) -> str:
    return "'{}'".format(value.replace("'", "''"))
