"""Row-level security by choice: Postgres shows a role only the rows of the viewer that a read names (rule R11).

The library names the viewer in a setting of the transaction. Everybody may write such a setting, so the library signs
it, and the policies ask two functions that prove the signature. They run with the rights of the owner, who alone reads
the table with the key. So a connection without the key of the library sees no row, whatever it sets.

Roles that write have to see every row. They are named when it is enabled, and a policy of theirs admits all rows.
"""

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_lifecycle.entities import KEY_TABLE, metadata, quoted
from session_lifecycle.errors import ConfigurationError
from session_lifecycle.models import Viewer
from session_lifecycle.models.schema import RowLevelSecurityReport
from session_lifecycle.postgres.driver_statements import VIEWER_SETTING
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.postgres.failures import driver_error
from session_lifecycle.postgres.schema_objects import as_text
from session_lifecycle.settings import Settings

TOKEN_SECONDS = 600
"""How long a signed viewer is good for: longer than any read, and than clocks differ."""
NOT_SIGNED = "the viewer is not signed with the key of this database"
POLICY = "session_lifecycle_viewer"
POLICY_OF_TRUSTED = "session_lifecycle_trusted"
FUNCTIONS = ("signed_viewer()", "viewer_ids(text)", "viewer_sees_all()")
TABLES = tuple(sorted(table.name for table in metadata.tables.values()))

_BLOCK = 64
"""The block of SHA-256 in bytes: RFC 2104 fills a key up to it."""

_OBJECTS = """
CREATE TABLE IF NOT EXISTS {schema}.{key_table} (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    inner_pad bytea NOT NULL,
    outer_pad bytea NOT NULL
);
-- Without a policy the owner alone sees its row, whatever is granted on all tables of the schema.
ALTER TABLE {schema}.{key_table} ENABLE ROW LEVEL SECURITY;
INSERT INTO {schema}.{key_table} (inner_pad, outer_pad)
VALUES ('\\x{inner}', '\\x{outer}')
ON CONFLICT (only_row) DO UPDATE SET inner_pad = excluded.inner_pad, outer_pad = excluded.outer_pad;

CREATE OR REPLACE FUNCTION {schema}.signed_viewer() RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS {tag}
DECLARE
    given text := current_setting('{setting}', true);
    said text := substr(given, 65);
    pads record;
BEGIN
    IF given IS NULL OR given = '' THEN
        RETURN NULL;
    END IF;
    SELECT k.inner_pad, k.outer_pad INTO pads FROM {schema}.{key_table} k;
    -- HMAC of RFC 2104, whose two padded keys the table has.
    IF encode(sha256(pads.outer_pad || sha256(pads.inner_pad || convert_to(said, 'UTF8'))), 'hex')
        IS DISTINCT FROM left(given, 64)
    THEN
        RAISE EXCEPTION 'the viewer is not signed with the key of this database: compare row_level_security_key'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF (said::jsonb ->> 'until')::double precision < extract(epoch FROM clock_timestamp()) THEN
        RAISE EXCEPTION 'the signature of the viewer has expired: compare the clocks of this server and the caller'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN said::jsonb;
END
{tag};

CREATE OR REPLACE FUNCTION {schema}.viewer_ids(kind text) RETURNS uuid[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS {tag}
BEGIN
    RETURN ARRAY(SELECT jsonb_array_elements_text({schema}.signed_viewer() -> kind)::uuid);
END
{tag};

CREATE OR REPLACE FUNCTION {schema}.viewer_sees_all() RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS {tag}
BEGIN
    RETURN coalesce(({schema}.signed_viewer() ->> 'all')::boolean, false);
END
{tag};
REVOKE ALL ON FUNCTION {schema}.signed_viewer() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION {schema}.viewer_ids(text), {schema}.viewer_sees_all() TO PUBLIC;
"""

# Each condition is asked once for a statement, not once for a row: a subquery that names no column.
_OWN = "user_id = ANY ((SELECT {schema}.viewer_ids('owners'))::uuid[])"
_SHARED = "dataset_id = ANY ((SELECT {schema}.viewer_ids('datasets'))::uuid[])"
_ALL = "(SELECT {schema}.viewer_sees_all())"
_IN_SHARED_SESSION = (
    "EXISTS (SELECT FROM {schema}.session_records of_session WHERE of_session.user_id = {table}.user_id "
    "AND of_session.session_id = {table}.session_id AND of_session." + _SHARED + ")"
)
_IN_SHARED_RUN = (
    "EXISTS (SELECT FROM {schema}.session_runs of_run JOIN {schema}.session_records of_session "
    "USING (user_id, session_id) WHERE of_run.user_id = {table}.user_id AND of_run.run_id = {table}.run_id "
    "AND of_session." + _SHARED + ")"
)
_OF_SESSION = f"{_OWN} OR {_SHARED} OR {_ALL}"
_WITHIN_SESSION = f"{_OWN} OR {_ALL} OR {_IN_SHARED_SESSION}"
_OF_FAMILY = (
    f"family IN ('user', 'user_dataset') AND {_OWN} OR family IN ('dataset', 'user_dataset') AND {_SHARED} OR {_ALL}"
)
CONDITIONS = {
    "session_records": _OF_SESSION,
    "rolled_up_sessions": _OF_SESSION,
    "session_roll_up_changes": _OF_SESSION,
    "session_model_roll_up_changes": _OF_SESSION,
    "session_model_usage": _WITHIN_SESSION,
    "session_usage_events": _WITHIN_SESSION,
    "session_messages": _WITHIN_SESSION,
    "session_annotations": _WITHIN_SESSION,
    "session_runs": _WITHIN_SESSION,
    "session_steps": f"{_OWN} OR {_ALL} OR {_IN_SHARED_RUN}",
    "session_roll_ups": _OF_FAMILY,
    "session_model_roll_ups": _OF_FAMILY,
    "session_budgets": f"{_OWN} OR user_id IS NULL AND {_SHARED} OR {_ALL}",
    "session_reservations": f"{_OWN} OR {_ALL}",
    "session_tombstones": f"{_OWN} OR {_ALL}",
    "session_repricings": _ALL,
    # It says what a bucket is, and nothing of anybody.
    "session_buckets": "true",
}
"""Which rows of a table a viewer sees. A table that is not here shows nobody anything."""

# Whether this role is walled in: neither the owner, nor trusted, nor beyond all policies.
_IS_WALLED_IN = """
    pg_catalog.row_security_active(c.oid) AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_policy p CROSS JOIN LATERAL pg_catalog.unnest(p.polroles) r (oid)
        WHERE p.polrelid = c.oid AND p.polname = :trusted AND pg_catalog.pg_has_role(r.oid, 'USAGE')
    )
"""
_STATE = text(f"""
SELECT c.relname::text, c.relrowsecurity,
    EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid AND p.polname = :policy),
    {_IS_WALLED_IN}
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND c.relname = ANY (CAST(:tables AS text[]))
ORDER BY 1
""")  # noqa: S608 - the condition above
# The name of the connection's role where it is walled in, else no row.
_WALLED_IN = text(f"""
SELECT current_user::text
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = 'session_records' AND {_IS_WALLED_IN}
""")  # noqa: S608 - the condition above
# The roles that may change sessions, and roles beyond all policies.
_WRITERS = text("""
SELECT DISTINCT r.rolname::text
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE n.nspname = :schema AND c.relname = 'session_records' AND a.privilege_type = 'UPDATE' AND r.oid <> c.relowner
ORDER BY 1
""")
_TRUSTED = text("""
SELECT DISTINCT pg_catalog.pg_get_userbyid(r.oid)::text
FROM pg_catalog.pg_policy p
JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL pg_catalog.unnest(p.polroles) r (oid)
WHERE n.nspname = :schema AND p.polname = :trusted
ORDER BY 1
""")

# The viewer is named before the function is asked.
_PROVE = """
WITH named AS MATERIALIZED (SELECT pg_catalog.set_config('{setting}', :signed, true) AS viewer)
SELECT {schema}.viewer_sees_all() FROM named WHERE named.viewer IS NOT NULL
"""


def viewer_signer(settings: Settings) -> Callable[[Viewer], str] | None:
    """Signs viewers with the key of the settings; None where `row_level_security` is off.

    Raises:
        ConfigurationError: `row_level_security` is on, and there is no key.
    """
    return partial(sign_viewer, _key(settings)) if settings.row_level_security else None


def _key(settings: Settings) -> bytes:
    if settings.row_level_security_key is None:
        raise ConfigurationError(
            "row-level security needs a key: set SESSION_LIFECYCLE_ROW_LEVEL_SECURITY_KEY to a secret of at least 32 "
            "characters, the same for `db rls enable` and for every process that reads"
        )
    return settings.row_level_security_key.get_secret_value().encode()


def sign_viewer(key: bytes, viewer: Viewer) -> str:
    """The viewer as the policies read it: the signature in 64 characters, then what the viewer sees, as JSON."""
    said = json.dumps(
        {
            "owners": [str(one) for one in viewer.owner_ids],
            "datasets": [str(one) for one in viewer.permitted_dataset_ids],
            "all": viewer.sees_all,
            "until": time.time() + TOKEN_SECONDS,
        }
    )
    return hmac.new(key, said.encode(), hashlib.sha256).hexdigest() + said


def enable_sql(schema: str, settings: Settings, trusted: Sequence[str]) -> str:
    """The SQL that enables row-level security, for the owner of the schema. Running it again changes the key or roles.

    It holds the key in a form that signs, so it is as secret as the key.

    Raises:
        ConfigurationError: The settings have no key.
    """
    key = _key(settings)
    padded = (hashlib.sha256(key).digest() if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    place = quoted(schema)
    tag = "$viewer$"
    while tag in place:
        tag = f"{tag[:-1]}_$"
    parts = [
        _OBJECTS.format(
            schema=place,
            key_table=KEY_TABLE,
            tag=tag,
            setting=VIEWER_SETTING,
            inner=bytes(byte ^ 0x36 for byte in padded).hex(),
            outer=bytes(byte ^ 0x5C for byte in padded).hex(),
        ).strip()
    ]
    roles = ", ".join(quoted(role) for role in trusted)
    for table in TABLES:
        on = f"{place}.{table}"
        condition = CONDITIONS.get(table, "false").format(schema=place, table=table)
        parts.append(
            f"ALTER TABLE {on} ENABLE ROW LEVEL SECURITY;\n"
            f"DROP POLICY IF EXISTS {POLICY} ON {on};\n"
            f"CREATE POLICY {POLICY} ON {on} FOR SELECT USING ({condition});\n"
            f"DROP POLICY IF EXISTS {POLICY_OF_TRUSTED} ON {on};"
        )
        if roles:
            parts.append(f"CREATE POLICY {POLICY_OF_TRUSTED} ON {on} TO {roles} USING (true) WITH CHECK (true);")
    return "\n".join(parts) + "\n"


def disable_sql(schema: str) -> str:
    """The SQL that undoes `enable_sql`, for the owner of the schema, also where a table was lost."""
    place = quoted(schema)
    parts = [
        f"DROP POLICY IF EXISTS {policy} ON {place}.{table};"
        for table in TABLES
        for policy in (POLICY, POLICY_OF_TRUSTED)
    ]
    parts += [f"ALTER TABLE IF EXISTS {place}.{table} DISABLE ROW LEVEL SECURITY;" for table in TABLES]
    parts += [f"DROP FUNCTION IF EXISTS {place}.{name};" for name in reversed(FUNCTIONS)]
    parts.append(f"DROP TABLE IF EXISTS {place}.{KEY_TABLE};")
    return "\n".join(parts) + "\n"


async def refuse_walled_in(execution: Execution) -> None:
    """Refuses a job of a role that row-level security walls in: it would find no row, and report that all is done.

    Raises:
        ConfigurationError: The role of the execution is neither the owner, nor trusted, nor beyond all policies.
    """
    asked = _WALLED_IN.bindparams(schema=execution.schema, trusted=POLICY_OF_TRUSTED)
    for (role,) in await execution.fetch(asked):
        raise ConfigurationError(
            f"role {role!r} sees no row without a viewer, as row-level security is on, and a job has no viewer: run it "
            "as the owner of the schema, or as a role that `session-lifecycle db rls enable` trusts"
        )


async def roles_that_write(connection: AsyncConnection, schema: str) -> list[str]:
    """The roles, without the owner, to which a change of sessions is granted."""
    return list((await connection.execute(_WRITERS, {"schema": schema})).scalars())


async def row_level_security(connection: AsyncConnection, schema: str, settings: Settings) -> RowLevelSecurityReport:
    """The state of row-level security, and what is wrong with it.

    Args:
        connection: The connection whose role is looked at.
        schema: The Postgres schema of the tables.
        settings: The settings whose `row_level_security` says whether the library names viewers, and whose key signs.
    """
    sign = viewer_signer(settings)
    asked = {"schema": schema, "policy": POLICY, "trusted": POLICY_OF_TRUSTED, "tables": list(TABLES)}
    tables = (await connection.execute(_STATE, asked)).all()
    trusted = list((await connection.execute(_TRUSTED, {"schema": schema, "trusted": POLICY_OF_TRUSTED})).scalars())
    writers = await roles_that_write(connection, schema)
    role: str = (await connection.exec_driver_sql("SELECT current_user")).scalar_one()
    walled = {name for name, on, has_policy, _ in tables if on and has_policy}
    is_walled_in = any(active for *_, active in tables)
    problems: list[str] = []
    if walled and len(walled) < len(TABLES):
        problems.append(f"tables without row-level security: {', '.join(sorted(set(TABLES) - walled))}")
    if walled and (shut_out := sorted(set(writers) - set(trusted))):
        problems.append(f"roles that write and are not trusted, so they fail: {', '.join(shut_out)}")
    if is_walled_in and sign is None:
        problems.append(f"role {role} sees no row, as the setting row_level_security is off")
    if sign is not None and not walled:
        problems.append("the setting row_level_security is on, and the database has no policies")
    if is_walled_in and sign is not None:
        problems += await _of_signature(connection, schema, sign(Viewer.auditor()))
    return RowLevelSecurityReport(
        role=role,
        is_enabled=bool(walled),
        is_walled_in=is_walled_in,
        trusted_roles=tuple(trusted),
        problems=tuple(problems),
    )


async def _of_signature(connection: AsyncConnection, schema: str, signed: str) -> list[str]:
    """What the database says against a signed viewer: every read of a role that is walled in would be refused so.

    After a refusal the transaction of the connection has failed, so nothing may be asked after it.
    """
    ask = text(_PROVE.format(schema=as_text(quoted(schema)), setting=VIEWER_SETTING))
    try:
        await connection.execute(ask, {"signed": signed})
    except exc.DBAPIError as error:
        refusal = driver_error(error)
        if getattr(refusal, "sqlstate", None) != "42501":
            raise
        return [str(refusal.args[0])]
    return []
