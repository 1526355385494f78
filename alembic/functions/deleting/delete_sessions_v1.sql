-- Deletes the sessions of `keys` with all their rows, in one transaction; `idle_before` as in `lock_idle_sessions`.
-- Answers one row: how many rows went. Raises nothing.
-- Locks: those of `lock_idle_sessions`, then those of `delete_activity` (rule R10). What is deleted is read after the locks
-- are held, so no row that a writer adds meanwhile is left.
CREATE FUNCTION {schema}.delete_sessions_v1(
    keys jsonb, idle_before timestamptz,
    OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
DECLARE
    locked record;
    activity record;
BEGIN
    SELECT l.users, l.sessions INTO locked FROM {schema}.lock_idle_sessions(keys, idle_before) l;
    SELECT a.runs, a.steps, a.messages, a.named_users, a.named_runs INTO activity
    FROM {schema}.delete_activity(locked.users, locked.sessions) a;

    -- A run of another session, or of none, loses the sums of its events in these sessions.
    UPDATE {schema}.session_runs r
    SET events_cost_usd = r.events_cost_usd - e.cost_usd,
        events_tokens_in = r.events_tokens_in - e.tokens_in,
        events_tokens_out = r.events_tokens_out - e.tokens_out,
        events_cache_read_tokens = r.events_cache_read_tokens - e.cache_read_tokens,
        events_cache_write_tokens = r.events_cache_write_tokens - e.cache_write_tokens
    FROM (
        SELECT e.user_id, e.run_id, coalesce(sum(e.cost_usd), 0) AS cost_usd, sum(e.tokens_in) AS tokens_in,
               sum(e.tokens_out) AS tokens_out, sum(e.cache_read_tokens) AS cache_read_tokens,
               sum(e.cache_write_tokens) AS cache_write_tokens
        FROM unnest(locked.users, locked.sessions) t (user_id, session_id)
        JOIN {schema}.session_usage_events e ON e.user_id = t.user_id AND e.session_id = t.session_id
        WHERE e.run_id IS NOT NULL AND e.key_scope <> 'run' AND NOT e.late
        GROUP BY e.user_id, e.run_id
    ) e
    WHERE r.user_id = e.user_id AND r.run_id = e.run_id;

    DELETE FROM {schema}.session_usage_events e
    USING unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE e.user_id = t.user_id AND e.session_id = t.session_id;
    GET DIAGNOSTICS events = ROW_COUNT;
    DELETE FROM {schema}.session_model_usage m
    USING unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE m.user_id = t.user_id AND m.session_id = t.session_id;
    GET DIAGNOSTICS model_rows = ROW_COUNT;
    DELETE FROM {schema}.session_records s
    USING unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE s.user_id = t.user_id AND s.session_id = t.session_id;
    GET DIAGNOSTICS sessions = ROW_COUNT;

    runs := activity.runs;
    messages := activity.messages;
    steps := activity.steps
        + {schema}.delete_unnamed_runs(activity.named_users, activity.named_runs, idle_before);
END
$body$;
