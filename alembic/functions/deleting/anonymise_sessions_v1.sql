-- Gives the sessions of `keys` to `pseudonym`, each under a random id, in one transaction. What they used and cost stays, and
-- when. What was said and done goes, and all that names anybody.
-- Answers one row: how many rows went or changed. Raises nothing.
-- Locks: those of `lock_idle_sessions`, then those of `delete_activity` (rule R10).
CREATE FUNCTION {schema}.anonymise_sessions_v1(
    keys jsonb, pseudonym uuid,
    OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
DECLARE
    locked record;
    activity record;
    random_ids text[];
BEGIN
    SELECT l.users, l.sessions INTO locked FROM {schema}.lock_idle_sessions(keys, NULL) l;
    SELECT a.runs, a.steps, a.messages INTO activity
    FROM {schema}.delete_activity(locked.users, locked.sessions) a;
    random_ids := ARRAY(SELECT gen_random_uuid()::text FROM unnest(locked.sessions));

    UPDATE {schema}.session_usage_events e
    SET user_id = pseudonym, session_id = t.random_id, event_id = gen_random_uuid(), idempotency_key = NULL, run_id = NULL,
        key_scope = CASE WHEN e.key_scope = 'run' THEN 'run' ELSE 'session' END, details = '{}'
    FROM unnest(locked.users, locked.sessions, random_ids) t (user_id, session_id, random_id)
    WHERE e.user_id = t.user_id AND e.session_id = t.session_id;
    GET DIAGNOSTICS events = ROW_COUNT;
    UPDATE {schema}.session_model_usage m
    SET user_id = pseudonym, session_id = t.random_id
    FROM unnest(locked.users, locked.sessions, random_ids) t (user_id, session_id, random_id)
    WHERE m.user_id = t.user_id AND m.session_id = t.session_id;
    GET DIAGNOSTICS model_rows = ROW_COUNT;
    UPDATE {schema}.session_records s
    SET user_id = pseudonym, session_id = t.random_id, agent_name = NULL, title = NULL, metadata = '{}'
    FROM unnest(locked.users, locked.sessions, random_ids) t (user_id, session_id, random_id)
    WHERE s.user_id = t.user_id AND s.session_id = t.session_id;
    GET DIAGNOSTICS sessions = ROW_COUNT;

    runs := activity.runs;
    steps := activity.steps;
    messages := activity.messages;
END
$body$;
