"""The SQL by which a bucket lives on Citus: its schema is on one node, and its functions run where it is.

Its texts go to the driver as they stand, on a connection to the coordinator.
"""

from session_lifecycle.entities import quoted
from session_lifecycle.statements.buckets.moving import place

HAS_CITUS = "SELECT pg_catalog.to_regclass('pg_catalog.pg_dist_schema') IS NOT NULL"

GROUP = """
SELECT d.colocationid FROM pg_catalog.pg_dist_schema d
WHERE d.schemaid = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1)
"""
"""The number of the group of tables that the schema `$1` is. No row where the schema is not distributed."""

FUNCTIONS = """
SELECT p.proname::text AS name, p.oid::regprocedure::text AS signature, d.colocationid AS group_id,
    p.prosrc AS body, coalesce(p.proconfig && ARRAY['citus.allow_nested_distributed_execution=on'], false) AS is_nested
FROM pg_catalog.pg_proc p
LEFT JOIN pg_catalog.pg_dist_object d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid
WHERE p.pronamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1)
ORDER BY p.oid
"""
"""The functions of the schema `$1`, each after those that it calls.

With the group of tables that it runs beside, its body, and whether `allow_nested` was called for it.
"""

SHARDS = """
SELECT c.relname::text AS table_name, s.shardid AS shard_id, pg_catalog.shard_name(s.logicalrelid, s.shardid) AS shard
FROM pg_catalog.pg_dist_shard s JOIN pg_catalog.pg_class c ON c.oid = s.logicalrelid
WHERE c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1)
"""
"""The shard of each table of the schema `$1`, quoted and with its schema. It keeps its name on every node."""

NODE = """
SELECT n.nodename AS host, n.nodeport AS port
FROM pg_catalog.pg_dist_shard s
JOIN pg_catalog.pg_dist_placement p USING (shardid)
JOIN pg_catalog.pg_dist_node n ON n.groupid = p.groupid AND n.noderole = 'primary'
WHERE s.logicalrelid = pg_catalog.to_regclass($1)
"""
"""The node of the table `$1`. No row where the table is not distributed."""

NODES = """
SELECT nodename || ':' || nodeport AS node FROM pg_catalog.pg_dist_node
WHERE noderole = 'primary' AND isactive AND shouldhaveshards ORDER BY nodeid
"""
"""The nodes that keep data, as host:port."""

# Citus refuses triggers, as one may write on another node. Ours writes into tables of its own schema.
ALLOW_TRIGGERS = "SET LOCAL citus.enable_unsafe_triggers = on"
DISTRIBUTE_SCHEMA = "SELECT pg_catalog.citus_schema_distribute($1::text::regnamespace)"
DISTRIBUTE_FUNCTION = "SELECT pg_catalog.create_distributed_function($1::text::regprocedure, colocate_with => $2::text)"
NESTED = ("depths", "expected_roll_ups_v1", "is_dense", "members", "session_models_v1")
"""The functions over tables that a statement calls beside tables."""
MOVE_SCHEMA = "SELECT pg_catalog.citus_schema_move($1::text::regnamespace, $2::text, $3::int)"
REBALANCE = "SELECT pg_catalog.citus_rebalance_start()"
JOB_STATE = "SELECT state::text FROM pg_catalog.pg_dist_background_job WHERE job_id = $1"
JOB_ERRORS = """
SELECT message FROM pg_catalog.pg_dist_background_task
WHERE job_id = $1 AND status IN ('error', 'unscheduled') AND message IS NOT NULL
"""


def identify_rows(schema: str) -> list[str]:
    """Lets logical replication, by which Citus moves a schema beside its writers, find every row.

    It leaves out computed columns, and the primary key of `session_model_usage` has one: an update would stop the move
    for ever. The model itself is as unique, since the computed column is its lower case.
    """
    table, index = place(schema, "session_model_usage"), "ix_session_model_usage_identity"
    return [
        f"CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {table} (user_id, session_id, model)",
        f"ALTER TABLE {table} REPLICA IDENTITY USING INDEX {quoted(index)}",
    ]


def allow_nested(signature: str) -> str:
    """Lets a function read tables while a statement that calls it reads tables. All of them are on one node."""
    return f"ALTER FUNCTION {signature} SET citus.allow_nested_distributed_execution = on"
