-- Locks all that the items concern, until the transaction ends. `waves` holds what is written to sessions, `activity` runs,
-- steps and messages, `others` further sessions; each is an array of arrays.
-- Answers the sessions it locked, as two arrays.
-- Raises `SL003` where a session was deleted meanwhile: the caller calls again. Lets through `SL004` of `lock_session`.
-- Locks, each sorted (rule R10): keys of the user's scope, by an advisory lock with seed 2; then the sessions' rows, and
-- `lock_session` for those that do not exist.
CREATE FUNCTION {schema}.lock_sessions(
    waves jsonb, activity jsonb, others jsonb, OUT users uuid[], OUT sessions text[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- An array is written `(SELECT users)` so that the planner does not know its length: a plan for a known length looks
-- cheaper than the prepared one, so it would be made anew in every call.
-- Each lookup by a key is LATERAL with a LIMIT. A plain join may begin at the table: while the table is empty, that is as
-- cheap, and the plan stays when it has grown.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    -- Without their waves, as in `lock_runs`.
    written jsonb := jsonb_path_query_array(waves, '$[*][*]');
    acted jsonb := jsonb_path_query_array(activity, '$[*][*]');
    existing int;
    locked int;
BEGIN
    IF waves @? '$[*][*] ? (@.key_scope == "user")' THEN
        PERFORM pg_advisory_xact_lock(keys.lock_key)
        FROM (
            SELECT DISTINCT hashtextextended(i.user_id || i.event_id, 2) AS lock_key
            FROM jsonb_to_recordset(written) i (user_id text, event_id text, key_scope text)
            WHERE i.key_scope = 'user'
            ORDER BY 1
        ) keys, (SELECT count(*) FROM {schema}.session_buckets) here;
    END IF;

    -- For a key of the user's scope both sessions: the one that holds the key's event, and the one that is named. The first
    -- may be deleted before it is locked, and then the event goes into the second.
    SELECT array_agg(t.user_id ORDER BY t.user_id, t.session_id), array_agg(t.session_id ORDER BY t.user_id, t.session_id)
    INTO users, sessions
    FROM (
        SELECT i.user_id, i.session_id COLLATE "C" AS session_id
        FROM jsonb_to_recordset(written) i (user_id uuid, session_id text)
        UNION
        SELECT held.user_id, held.session_id
        FROM jsonb_to_recordset(written) i (user_id uuid, event_id uuid, key_scope text)
        JOIN LATERAL (
            SELECT e.user_id, e.session_id FROM {schema}.session_usage_events e
            WHERE e.key_scope = 'user' AND e.user_id = i.user_id AND e.event_id = i.event_id
            LIMIT 1
        ) held ON true
        WHERE i.key_scope = 'user'
        UNION
        SELECT i.user_id, i.session_id
        FROM jsonb_to_recordset(jsonb_path_query_array(others, '$[*][*]')) i (user_id uuid, session_id text)
    ) t;

    IF activity <> '[]' OR waves @? '$[*][*].run_id' THEN
        -- A run that exists has its session. A run that names no session is locked in the session that its thread suggests.
        -- Where that is the wrong one, `settle_runs` raises `SL002` with the right one.
        SELECT array_agg(t.user_id ORDER BY t.user_id, t.session_id),
               array_agg(t.session_id ORDER BY t.user_id, t.session_id)
        INTO users, sessions
        FROM (
            SELECT s.user_id, s.session_id COLLATE "C" AS session_id
            FROM unnest((SELECT users), (SELECT sessions)) s (user_id, session_id)
            UNION
            SELECT i.user_id, r.session_id
            FROM jsonb_to_recordset(written || acted) i (user_id uuid, run_id text)
            JOIN LATERAL (
                SELECT r.session_id FROM {schema}.session_runs r WHERE r.user_id = i.user_id AND r.run_id = i.run_id LIMIT 1
            ) r ON r.session_id IS NOT NULL
            UNION
            SELECT i.user_id, coalesce(root.session_id, root.run_id, i.run_id)
            FROM jsonb_to_recordset(acted) i (
                kind text, user_id uuid, run_id text, session_id text, parent_run_id text, root_run_id text,
                parent_tool_call_id text
            )
            LEFT JOIN LATERAL (
                SELECT r.session_given FROM {schema}.session_runs r
                WHERE r.user_id = i.user_id AND r.run_id = i.run_id
                LIMIT 1
            ) own ON true
            LEFT JOIN LATERAL (
                SELECT r.root_run_id FROM {schema}.session_runs r
                WHERE r.user_id = i.user_id AND r.run_id = i.parent_run_id
                LIMIT 1
            ) parent ON true
            LEFT JOIN LATERAL (
                SELECT r.run_id, r.session_id FROM {schema}.session_runs r
                WHERE r.user_id = i.user_id AND r.run_id = coalesce(i.root_run_id, parent.root_run_id)
                LIMIT 1
            ) root ON true
            WHERE i.kind = 'run' AND i.session_id IS NULL AND own.session_given IS NOT true
                AND (root.run_id IS NOT NULL OR coalesce(i.parent_run_id, i.root_run_id, i.parent_tool_call_id) IS NULL)
        ) t;
    END IF;

    SELECT count(*) INTO existing
    FROM unnest((SELECT users), (SELECT sessions)) t (user_id, session_id)
    JOIN {schema}.session_records s ON s.user_id = t.user_id AND s.session_id = t.session_id;
    IF existing < cardinality(users) THEN
        FOR place IN 1..cardinality(users) LOOP
            PERFORM {schema}.lock_session(users[place], sessions[place]);
        END LOOP;
        RETURN;
    END IF;

    -- The usual case: all of them exist, so one statement locks them.
    PERFORM 1
    FROM unnest((SELECT users), (SELECT sessions)) t (user_id, session_id)
    JOIN {schema}.session_records s ON s.user_id = t.user_id AND s.session_id = t.session_id
    ORDER BY s.user_id, s.session_id
    FOR NO KEY UPDATE OF s;
    GET DIAGNOSTICS locked = ROW_COUNT;
    IF locked < existing THEN
        RAISE EXCEPTION USING ERRCODE = 'SL003', MESSAGE = 'a session was deleted meanwhile';
    END IF;
END
$body$;
