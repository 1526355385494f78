-- Locks the rows of all runs that the items name or that may change with those, made where they are missing; to be called
-- with the sessions locked. The row of a run that is only named has no start. `linked` says of each whether its thread may
-- change.
CREATE FUNCTION {schema}.lock_runs_v1(
    waves jsonb, activity jsonb, OUT users uuid[], OUT runs text[], OUT linked boolean[]
)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $body$
BEGIN
    -- Who changes which run is whose child is alone with the user's runs: a parent and its child that are recorded at the
    -- same moment see each other, and what is found below stays so.
    PERFORM pg_advisory_xact_lock(linking.lock_key)
    FROM (
        SELECT DISTINCT hashtextextended(i.user_id::text, 4) AS lock_key
        FROM jsonb_array_elements(activity) wave, jsonb_to_recordset(wave) i (kind text, user_id uuid, tool_call_id text)
        WHERE i.kind = 'run' OR i.tool_call_id IS NOT NULL
        ORDER BY 1
    ) linking;

    SELECT array_agg(t.user_id ORDER BY t.user_id, t.run_id), array_agg(t.run_id ORDER BY t.user_id, t.run_id),
           array_agg(t.is_linked ORDER BY t.user_id, t.run_id)
    INTO users, runs, linked
    FROM (
        WITH RECURSIVE item AS (
            SELECT i.kind, i.user_id, i.run_id COLLATE "C" AS run_id, i.parent_run_id COLLATE "C" AS parent_run_id,
                   i.root_run_id COLLATE "C" AS root_run_id, i.tool_call_id COLLATE "C" AS tool_call_id
            FROM jsonb_array_elements(activity) wave,
                 jsonb_to_recordset(wave) i (
                     kind text, user_id uuid, run_id text, parent_run_id text, root_run_id text, tool_call_id text
                 )
            WHERE i.kind <> 'message'
        ),
        -- A run that comes or goes takes its descendants along, and a tool call those that began with its result.
        family AS (
            SELECT i.user_id, i.run_id FROM item i WHERE i.kind = 'run'
            UNION
            SELECT i.user_id, r.run_id
            FROM item i
            JOIN {schema}.session_runs r ON r.user_id = i.user_id AND r.parent_tool_call_id = i.tool_call_id
            UNION
            SELECT r.user_id, r.run_id
            FROM family f
            JOIN LATERAL (
                SELECT c.user_id, c.run_id FROM {schema}.session_runs c
                WHERE c.user_id = f.user_id AND c.parent_run_id = f.run_id
                UNION ALL
                SELECT c.user_id, c.run_id FROM {schema}.session_runs c
                WHERE c.user_id = f.user_id AND c.root_run_id = f.run_id
            ) r ON true
        )
        SELECT t.user_id, t.run_id, bool_or(t.is_linked) AS is_linked
        FROM (
            SELECT f.user_id, f.run_id, true AS is_linked FROM family f
            UNION ALL
            SELECT i.user_id, named.run_id, false
            FROM item i, LATERAL (VALUES (i.run_id), (i.parent_run_id), (i.root_run_id)) named (run_id)
            WHERE named.run_id IS NOT NULL
            UNION ALL
            -- A revision may take what its key holds away from another run.
            SELECT i.user_id, coalesce(i.run_id, held.run_id) COLLATE "C", false
            FROM jsonb_array_elements(waves) wave,
                 jsonb_to_recordset(wave) i (
                     user_id uuid, session_id text, event_id uuid, run_id text, revision int, key_scope text
                 )
            LEFT JOIN LATERAL (
                SELECT e.run_id FROM {schema}.session_usage_events e
                WHERE i.revision > 0 AND i.key_scope IS NULL
                    AND e.user_id = i.user_id AND e.session_id = i.session_id AND e.event_id = i.event_id
                UNION ALL
                SELECT e.run_id FROM {schema}.session_usage_events e
                WHERE i.key_scope = 'user' AND e.key_scope = 'user' AND e.user_id = i.user_id AND e.event_id = i.event_id
            ) held ON true
            WHERE coalesce(i.run_id, held.run_id) IS NOT NULL
        ) t
        GROUP BY t.user_id, t.run_id
    ) t;

    -- Sorted, and in one statement: whoever locks several runs' rows locks them like this.
    INSERT INTO {schema}.session_runs AS r (user_id, run_id)
    SELECT t.user_id, t.run_id FROM unnest(users, runs) t (user_id, run_id) ORDER BY t.user_id, t.run_id COLLATE "C"
    ON CONFLICT (user_id, run_id) DO UPDATE SET run_id = excluded.run_id WHERE false;
    IF FOUND THEN
        PERFORM {schema}.refuse_erased_v1(t.user_id) FROM (SELECT DISTINCT unnest(users) AS user_id) t;
    END IF;
END
$body$;
