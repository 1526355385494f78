-- Locks the sessions of `keys` that are there, in the order of their keys (rule R10), and returns them. With `idle_before`
-- only those that were last active before it: what a writer is at is passed by and not waited for, and what was active
-- meanwhile is left out. Without, all of them, whoever has to be waited for.
CREATE FUNCTION {schema}.lock_idle_sessions_v1(
    keys jsonb, idle_before timestamptz, OUT users uuid[], OUT sessions text[]
)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
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
