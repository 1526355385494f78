-- Deletes the sessions of `keys` with all their rows; `others` are further sessions to lock, `idle_before` is as in
-- `lock_idle_sessions`.
-- Answers one row: how many rows went, and the keys of the sessions. Lets through `SL002` of `settle_runs`: the caller calls again with those sessions.
-- Locks: those of `lock_idle_sessions`, then those of `delete_activity` (rule R10). What is deleted is read after the locks
-- are held, so no row that a writer adds meanwhile is left.
CREATE FUNCTION {schema}.delete_locked(
    keys jsonb, others jsonb, idle_before timestamptz,
    OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint,
    OUT session_keys jsonb
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    locked record;
    activity record;
BEGIN
    SELECT l.users, l.sessions, l.all_users, l.all_sessions INTO locked
    FROM {schema}.lock_idle_sessions(keys, others, idle_before) l;
    SELECT a.runs, a.steps, a.messages, a.named_users, a.named_runs, a.left_users, a.left_runs INTO activity
    FROM {schema}.delete_activity(locked.users, locked.sessions) a;

    PERFORM {schema}.delete_settled(locked.users);
    DELETE FROM {schema}.session_usage_events e
    USING unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE e.user_id = t.user_id AND e.session_id = t.session_id;
    GET DIAGNOSTICS events = ROW_COUNT;
    DELETE FROM {schema}.session_model_usage m
    USING unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE m.user_id = t.user_id AND m.session_id = t.session_id;
    GET DIAGNOSTICS model_rows = ROW_COUNT;
    DELETE FROM {schema}.session_annotations a
    USING unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE a.user_id = t.user_id AND a.session_id = t.session_id;
    DELETE FROM {schema}.session_records s
    USING unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE s.user_id = t.user_id AND s.session_id = t.session_id;
    GET DIAGNOSTICS sessions = ROW_COUNT;

    SELECT jsonb_agg(jsonb_build_object('user_id', t.user_id, 'session_id', t.session_id)) INTO session_keys
    FROM unnest(locked.users, locked.sessions) t (user_id, session_id);
    runs := activity.runs;
    messages := activity.messages;
    steps := activity.steps
        + {schema}.delete_unnamed_runs(activity.named_users, activity.named_runs, idle_before);
    IF activity.left_runs IS NOT NULL THEN
        PERFORM {schema}.settle_runs(
            activity.left_users, activity.left_runs, array_fill(false, ARRAY[cardinality(activity.left_runs)]),
            array_fill(NULL::text, ARRAY[cardinality(activity.left_runs)]), locked.all_users, locked.all_sessions,
            statement_timestamp()
        );
    END IF;
END
$body$;
