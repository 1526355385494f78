-- Locks those sessions of `keys` that exist. With `idle_before` only sessions that were last active before it.
-- Answers the sessions it locked, as two arrays. Raises nothing.
-- Locks: the sessions' rows, in the order of their keys (rule R10). With `idle_before` a session that a writer has locked is
-- skipped, as is one that became active meanwhile; without it the writer is waited for.
CREATE FUNCTION {schema}.lock_idle_sessions(
    keys jsonb, idle_before timestamptz, OUT users uuid[], OUT sessions text[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
BEGIN
    IF idle_before IS NULL THEN
        SELECT array_agg(l.user_id), array_agg(l.session_id)
        INTO users, sessions
        FROM (
            SELECT s.user_id, s.session_id
            FROM jsonb_to_recordset(keys) k (user_id uuid, session_id text)
            JOIN {schema}.session_records s ON s.user_id = k.user_id AND s.session_id = k.session_id
            ORDER BY s.user_id, s.session_id
            FOR UPDATE OF s
        ) l;
    ELSE
        SELECT array_agg(l.user_id), array_agg(l.session_id)
        INTO users, sessions
        FROM (
            SELECT s.user_id, s.session_id
            FROM jsonb_to_recordset(keys) k (user_id uuid, session_id text)
            JOIN {schema}.session_records s ON s.user_id = k.user_id AND s.session_id = k.session_id
            WHERE s.last_activity_at < idle_before
            ORDER BY s.user_id, s.session_id
            FOR UPDATE OF s SKIP LOCKED
        ) l;
    END IF;
END
$body$;
