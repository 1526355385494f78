-- Deletes the messages of the sessions of `keys` that are older than `older_than`, and empties the payloads of their older
-- runs and steps, in one transaction. A run and a step are as old as their end, or as their start while they are open. The
-- errors of a step become the mark "pruned", which counts as one error.
-- Answers one row: how many rows had any, and the keys of the sessions. Raises nothing.
-- Locks: the sessions' rows, in the order of their keys, without those that a writer has locked; then the runs' rows, in
-- the order of their keys (rule R10).
CREATE FUNCTION {schema}.empty_sessions_v1(
    keys jsonb, older_than timestamptz,
    OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint,
    OUT session_keys jsonb
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    locked_users uuid[];
    locked_sessions text[];
BEGIN
    SELECT array_agg(l.user_id), array_agg(l.session_id) INTO locked_users, locked_sessions
    FROM (
        SELECT s.user_id, s.session_id
        FROM jsonb_to_recordset(keys) k (user_id uuid, session_id text)
        JOIN {schema}.session_records s ON s.user_id = k.user_id AND s.session_id = k.session_id
        ORDER BY s.user_id, s.session_id
        FOR NO KEY UPDATE OF s SKIP LOCKED
    ) l;

    -- A transaction that records an event of such a run in another session locks the run too, in this order.
    PERFORM 1
    FROM unnest(locked_users, locked_sessions) t (user_id, session_id)
    JOIN {schema}.session_runs r ON r.user_id = t.user_id AND r.session_id = t.session_id AND r.started_at IS NOT NULL
    ORDER BY r.user_id, r.run_id
    FOR NO KEY UPDATE OF r;

    UPDATE {schema}.session_steps s
    SET inputs = NULL, output = NULL, prompt = NULL, errors = CASE WHEN s.is_error THEN '"pruned"'::jsonb END
    FROM unnest(locked_users, locked_sessions) t (user_id, session_id)
    JOIN {schema}.session_runs r ON r.user_id = t.user_id AND r.session_id = t.session_id AND r.started_at IS NOT NULL
    WHERE s.user_id = r.user_id AND s.run_id = r.run_id AND coalesce(s.ended_at, s.started_at) < older_than
        AND (s.inputs IS NOT NULL OR s.output IS NOT NULL OR s.prompt IS NOT NULL OR s.errors <> '"pruned"');
    GET DIAGNOSTICS steps = ROW_COUNT;

    UPDATE {schema}.session_runs r
    SET input = NULL, output = NULL, error = NULL
    FROM unnest(locked_users, locked_sessions) t (user_id, session_id)
    WHERE r.user_id = t.user_id AND r.session_id = t.session_id AND r.started_at < older_than
        AND coalesce(r.ended_at, r.started_at) < older_than
        AND (r.input IS NOT NULL OR r.output IS NOT NULL OR r.error IS NOT NULL);
    GET DIAGNOSTICS runs = ROW_COUNT;

    DELETE FROM {schema}.session_messages m
    USING unnest(locked_users, locked_sessions) t (user_id, session_id)
    WHERE m.user_id = t.user_id AND m.session_id = t.session_id AND m.created_at < older_than;
    GET DIAGNOSTICS messages = ROW_COUNT;

    sessions := coalesce(cardinality(locked_users), 0);
    SELECT jsonb_agg(jsonb_build_object('user_id', t.user_id, 'session_id', t.session_id)) INTO session_keys
    FROM unnest(locked_users, locked_sessions) t (user_id, session_id);
    events := 0;
    model_rows := 0;
END
$body$;
