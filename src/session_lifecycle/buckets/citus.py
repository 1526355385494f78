"""A bucket on Citus: its schema is on one node of the cluster, and its functions run on that node.

Citus plans a large statement anew in each call, for 5 to 13 ms. So the functions that write plain items are there
twice: as they are, and as copies that name the shards, the tables in which Citus keeps the rows on a node. Citus knows
nothing of a write into a shard, so a move of the schema would lose it. Therefore Python calls the gate: it first makes
a write that Citus does know, which waits for a move at work and keeps the next one waiting until the transaction ends.
Then the gate looks whether the shards are on its own node. If they are, the copies write. If not, `record_v1` does.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import asyncpg

from session_lifecycle.entities import metadata, quoted
from session_lifecycle.errors import ConfigurationError, SchemaError
from session_lifecycle.postgres.function_files import BODY_TAG, function_files
from session_lifecycle.statements.buckets import citus, moving
from session_lifecycle.statements.writing.record import GATE

if TYPE_CHECKING:
    from collections.abc import Sequence

DISTRIBUTE_COMMAND = "session-lifecycle db distribute"
COPIED = ("refuse_erased", "lock_session", "lock_sessions", "create_sessions", "record_plain", "record_v1")
"""The functions of which there is a copy that names the shards, each after those that it calls."""
SUFFIX = "_at_shards"
POLL_SECONDS = 0.2

_NAME = re.compile(r"\{schema\}\.(\w+)")
# No session has this key. The update finds no row, and takes the lock by which Citus keeps writers and moves apart.
_GATE = """
BEGIN
    IF is_plain THEN
        UPDATE {schema}.session_records SET derived = derived
        WHERE user_id = '00000000-0000-0000-0000-000000000000' AND session_id = '';
        -- A snapshot from after the lock.
        IF EXISTS (
            SELECT FROM pg_dist_placement p JOIN pg_dist_local_group here ON here.groupid = p.groupid
            WHERE p.shardid = {shard_id}
        ) THEN
            RETURN QUERY
            SELECT r.* FROM {schema}.{copy}(waves, activity, latest_at, is_plain) r;
            RETURN;
        END IF;
    END IF;
    RETURN QUERY SELECT r.* FROM {schema}.record_v1(waves, activity, latest_at, is_plain) r;
END
"""


async def has_citus(connection: "asyncpg.Connection") -> bool:
    """Whether the database has the extension."""
    return bool(await connection.fetchval(citus.HAS_CITUS))


async def group_of(connection: "asyncpg.Connection", schema: str) -> int | None:
    """The number by which Citus knows the tables of a schema that is distributed; None where it is not."""
    if not await has_citus(connection):
        return None
    found: int | None = await connection.fetchval(citus.GROUP, schema)
    return found


async def distribute(connection: "asyncpg.Connection", schema: str) -> None:
    """Distributes a schema of ours and its functions. Does what is missing, so it may run again.

    The connection is to the coordinator and in no transaction. Writers wait while the rows go to their node. What an
    interrupted call leaves behind works, more slowly.

    Raises:
        ConfigurationError: The database has no Citus.
    """
    if not await has_citus(connection):
        raise ConfigurationError("the database has no extension citus: connect to the coordinator of a Citus cluster")
    if await group_of(connection, schema) is None:
        async with connection.transaction():
            await connection.execute(citus.ALLOW_TRIGGERS)
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.execute(citus.DISTRIBUTE_SCHEMA, quoted(schema))
    await distribute_functions(connection, schema)


async def distribute_functions(connection: "asyncpg.Connection", schema: str) -> None:
    """Has each function of a distributed schema run where the schema is, and creates the copies that name shards."""
    shards = await connection.fetch(citus.SHARDS, schema)
    statements = copies(
        schema,
        {row["table_name"]: row["shard"] for row in shards},
        next(row["shard_id"] for row in shards if row["table_name"] == "session_records"),
    )
    async with connection.transaction():
        await connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        for sql in statements:
            await connection.execute(sql)
    group = await group_of(connection, schema)
    for row in await connection.fetch(citus.FUNCTIONS, schema):
        if row["group_id"] != group:
            beside = moving.place(schema, "session_records")
            await connection.execute(citus.DISTRIBUTE_FUNCTION, row["signature"], beside)


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
