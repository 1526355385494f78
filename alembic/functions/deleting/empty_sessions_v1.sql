-- Deletes the messages of those sessions of `keys` that were last active before `idle_before`, and empties the payloads of
-- their runs and steps, in one transaction. The errors of a step become the mark "pruned", which counts as one error.
-- Answers one row: how many rows had any. Raises nothing.
-- Locks: those of `lock_idle_sessions`, which skips what a writer has locked; then the runs' rows, in the order of their keys
-- (rule R10).
CREATE FUNCTION {schema}.empty_sessions_v1(
    keys jsonb, idle_before timestamptz,
    OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
DECLARE
    locked record;
BEGIN
    SELECT l.users, l.sessions INTO locked FROM {schema}.lock_idle_sessions(keys, idle_before) l;

    -- A transaction that records an event of such a run in another session locks the run too, in this order.
    PERFORM 1
    FROM unnest(locked.users, locked.sessions) t (user_id, session_id)
    JOIN {schema}.session_runs r ON r.user_id = t.user_id AND r.session_id = t.session_id AND r.started_at IS NOT NULL
    ORDER BY r.user_id, r.run_id
    FOR NO KEY UPDATE OF r;

    UPDATE {schema}.session_steps s
    SET inputs = NULL, output = NULL, prompt = NULL, errors = CASE WHEN s.is_error THEN '"pruned"'::jsonb END
    FROM unnest(locked.users, locked.sessions) t (user_id, session_id)
    JOIN {schema}.session_runs r ON r.user_id = t.user_id AND r.session_id = t.session_id AND r.started_at IS NOT NULL
    WHERE s.user_id = r.user_id AND s.run_id = r.run_id
        AND (s.inputs IS NOT NULL OR s.output IS NOT NULL OR s.prompt IS NOT NULL OR s.errors <> '"pruned"');
    GET DIAGNOSTICS steps = ROW_COUNT;

    UPDATE {schema}.session_runs r
    SET input = NULL, output = NULL, error = NULL
    FROM unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE r.user_id = t.user_id AND r.session_id = t.session_id AND r.started_at IS NOT NULL
        AND (r.input IS NOT NULL OR r.output IS NOT NULL OR r.error IS NOT NULL);
    GET DIAGNOSTICS runs = ROW_COUNT;

    DELETE FROM {schema}.session_messages m
    USING unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE m.user_id = t.user_id AND m.session_id = t.session_id;
    GET DIAGNOSTICS messages = ROW_COUNT;

    sessions := coalesce(cardinality(locked.users), 0);
    events := 0;
    model_rows := 0;
END
$body$;
