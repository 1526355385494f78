-- Locks the rows of all runs that the items name or may change, and makes the rows that are missing. A row made here has no
-- start: it stands for a run that was named and not recorded yet. A run's descendants may change only where an item says
-- something new of its thread, so recording a run again costs the same however many descendants it has. The caller holds
-- the locks of the sessions.
-- Answers the runs, as arrays; `linked` says of each run whether its thread may change, `sessions` in which session it is.
-- Lets through `SL004` of `refuse_erased`.
-- Locks (rule R10): an advisory lock with seed 4 on each user whose runs may get another parent; then the runs' rows, in the
-- order of their keys; then that of `refuse_erased` where a row was made.
CREATE FUNCTION {schema}.lock_runs(
    waves jsonb, activity jsonb, OUT users uuid[], OUT runs text[], OUT linked boolean[], OUT sessions text[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- An array is written `(SELECT users)` so that the planner does not know its length: a plan for a known length looks
-- cheaper than the prepared one, so it would be made anew in every call.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    -- Without their waves: the planner believes that a set in a set has ten thousand rows, and a statement makes room for
    -- as many in its hash tables, which takes ten times as long as filling them.
    written jsonb := jsonb_path_query_array(waves, '$[*][*]');
    acted jsonb := jsonb_path_query_array(activity, '$[*][*]');
BEGIN
    -- One transaction at a time changes which run of a user is whose child: a parent and its child that are recorded at
    -- the same moment see each other, and the family that is found below stays as it is.
    PERFORM pg_advisory_xact_lock(linking.lock_key)
    FROM (
        SELECT DISTINCT hashtextextended(i.user_id::text, 4) AS lock_key
        FROM jsonb_to_recordset(acted) i (kind text, user_id uuid, tool_call_id text)
        WHERE i.kind = 'run' OR i.tool_call_id IS NOT NULL
        ORDER BY 1
    ) linking, (SELECT count(*) FROM {schema}.session_buckets) here;

    SELECT array_agg(t.user_id ORDER BY t.user_id, t.run_id), array_agg(t.run_id ORDER BY t.user_id, t.run_id),
           array_agg(t.is_linked ORDER BY t.user_id, t.run_id),
           array_agg(held.session_id ORDER BY t.user_id, t.run_id)
    INTO users, runs, linked, sessions
    FROM (
        WITH RECURSIVE item AS (
            SELECT i.kind, i.user_id, i.run_id COLLATE "C" AS run_id, i.step_id COLLATE "C" AS step_id,
                   i.parent_run_id COLLATE "C" AS parent_run_id,
                   i.root_run_id COLLATE "C" AS root_run_id, i.tool_call_id COLLATE "C" AS tool_call_id,
                   s.tool_call_id AS held_tool_call_id,
                   i.kind = 'run' AND (
                       r.started_at IS NULL
                       OR i.session_id IS NOT NULL AND NOT r.session_given
                       OR i.parent_run_id IS NOT NULL AND NOT r.parent_given
                       OR i.root_run_id IS NOT NULL AND NOT r.root_given
                       OR i.parent_tool_call_id IS NOT NULL AND r.parent_tool_call_id IS NULL
                       -- The calls before its start decide which one began the run.
                       OR i.started_at < r.started_at AND NOT r.parent_given
                       OR i.revision > r.revision
                   ) AS moves,
                   i.kind = 'step' AND i.tool_call_id IS NOT NULL AND (
                       s.tool_call_id IS NULL OR i.started_at < s.started_at OR i.revision > s.revision
                   ) AS calls
            FROM jsonb_to_recordset(acted) i (
                kind text, user_id uuid, run_id text, step_id text, session_id text, parent_run_id text, root_run_id text,
                parent_tool_call_id text, tool_call_id text, started_at timestamptz, revision int
            )
            LEFT JOIN {schema}.session_runs r ON r.user_id = i.user_id AND r.run_id = i.run_id
            LEFT JOIN {schema}.session_steps s
                ON s.user_id = i.user_id AND s.run_id = i.run_id AND s.step_id = i.step_id
            WHERE i.kind <> 'message'
        ),
        -- A run that changes its thread takes its descendants along; a tool call takes the runs that its result began.
        family AS (
            SELECT i.user_id, i.run_id FROM item i WHERE i.moves
            UNION
            SELECT i.user_id, r.run_id
            FROM item i
            JOIN {schema}.session_runs r ON r.user_id = i.user_id AND r.parent_tool_call_id = i.tool_call_id
            WHERE i.calls
            UNION
            -- A revision may take its tool call away from the runs that it began.
            SELECT i.user_id, r.run_id
            FROM item i
            JOIN {schema}.session_runs r ON r.user_id = i.user_id AND r.parent_tool_call_id = i.held_tool_call_id
            WHERE i.calls
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
            -- An event may take the place of the one that its key holds, which may be of another run.
            SELECT i.user_id, named.run_id COLLATE "C", false
            FROM jsonb_to_recordset(written) i (user_id uuid, session_id text, event_id uuid, run_id text, key_scope text)
            LEFT JOIN LATERAL (
                SELECT e.run_id FROM {schema}.session_usage_events e
                WHERE i.key_scope IS NULL
                    AND e.user_id = i.user_id AND e.session_id = i.session_id AND e.event_id = i.event_id
                UNION ALL
                SELECT e.run_id FROM {schema}.session_usage_events e
                WHERE i.key_scope = 'user' AND e.key_scope = 'user' AND e.user_id = i.user_id AND e.event_id = i.event_id
            ) held ON true
            CROSS JOIN LATERAL (VALUES (i.run_id), (held.run_id)) named (run_id)
            WHERE named.run_id IS NOT NULL
        ) t
        GROUP BY t.user_id, t.run_id
    ) t
    LEFT JOIN {schema}.session_runs held ON held.user_id = t.user_id AND held.run_id = t.run_id;

    -- One statement locks the rows, sorted: every function that locks runs does it in this order.
    INSERT INTO {schema}.session_runs AS r (user_id, run_id)
    SELECT t.user_id, t.run_id
    FROM unnest((SELECT users), (SELECT runs)) t (user_id, run_id)
    ORDER BY t.user_id, t.run_id COLLATE "C"
    ON CONFLICT (user_id, run_id) DO UPDATE SET run_id = excluded.run_id WHERE false;
    IF FOUND THEN
        PERFORM {schema}.refuse_erased(t.user_id) FROM (SELECT DISTINCT unnest(users) AS user_id) t;
    END IF;
END
$body$;
