-- Locks those sessions of `keys` that exist, and `others`, which only have to be locked as well. With `idle_before` only
-- sessions of `keys` that were last active before it.
-- Answers the sessions of `keys` that it locked, as two arrays, and all that it locked. Raises nothing.
-- Locks: the sessions' rows, in the order of their keys (rule R10). With `idle_before` a session that a writer has locked is
-- skipped, as is one that became active meanwhile; without it, and where there are `others`, the writer is waited for.
CREATE FUNCTION {schema}.lock_idle_sessions(
    keys jsonb, others jsonb, idle_before timestamptz,
    OUT users uuid[], OUT sessions text[], OUT all_users uuid[], OUT all_sessions text[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
BEGIN
    IF idle_before IS NULL OR others <> '[]' THEN
        SELECT array_agg(l.user_id) FILTER (WHERE l.is_key), array_agg(l.session_id) FILTER (WHERE l.is_key),
               array_agg(l.user_id), array_agg(l.session_id)
        INTO users, sessions, all_users, all_sessions
        FROM (
            SELECT s.user_id, s.session_id, k.is_key
            FROM (
                SELECT k.user_id, k.session_id, bool_or(k.is_key) AS is_key
                FROM (
                    SELECT k.user_id, k.session_id, true AS is_key
                    FROM jsonb_to_recordset(keys) k (user_id uuid, session_id text)
                    UNION ALL
                    SELECT o.user_id, o.session_id, false
                    FROM jsonb_to_recordset(others) o (user_id uuid, session_id text)
                ) k
                GROUP BY k.user_id, k.session_id
            ) k
            JOIN {schema}.session_records s ON s.user_id = k.user_id AND s.session_id = k.session_id
            WHERE idle_before IS NULL OR NOT k.is_key OR s.last_activity_at < idle_before
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
        all_users := users;
        all_sessions := sessions;
    END IF;
END
$body$;
