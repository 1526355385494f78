-- Moves the items that name a run into the run's session: the one stored, else the first that these items give the run. An
-- event that was counted in the session it names stays there. The caller holds the locks of all runs and of the sessions
-- named.
-- Answers the waves and the activity with the items moved; `waves` is null where nothing moves.
-- Raises nothing and takes no lock.
CREATE FUNCTION {schema}.follow_runs(INOUT waves jsonb, INOUT activity jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_mergejoin = off SET jit = off
AS $body$
DECLARE
    moved jsonb;
BEGIN
    WITH item AS MATERIALIZED (
        SELECT i.user_id, i.session_id, i.run_id, i.position, i.kind, i.event_id, i.idempotency_key, i.key_scope
        FROM jsonb_array_elements(waves) wave,
             jsonb_to_recordset(wave) i (
                 user_id uuid, session_id text, run_id text, position int, kind text, event_id uuid, idempotency_key text,
                 key_scope text
             )
        WHERE i.run_id IS NOT NULL
    ),
    given AS (
        SELECT DISTINCT ON (g.user_id, g.run_id) g.user_id, g.run_id, g.session_id
        FROM (
            SELECT r.user_id, r.run_id, r.session_id, -1 AS position
            FROM item i
            JOIN LATERAL (
                SELECT r.user_id, r.run_id, r.session_id
                FROM {schema}.session_runs r
                WHERE r.user_id = i.user_id AND r.run_id = i.run_id AND r.session_given
                LIMIT 1
            ) r ON true
            UNION ALL
            SELECT i.user_id, i.run_id, i.session_id, i.position FROM item i WHERE i.kind = 'touch'
        ) g
        ORDER BY g.user_id, g.run_id, g.position
    )
    SELECT jsonb_object_agg(i.position, CASE
               WHEN i.idempotency_key IS NULL OR i.key_scope IS NOT NULL THEN jsonb_build_object('session_id', g.session_id)
               ELSE jsonb_build_object(
                   'session_id', g.session_id,
                   'event_id', {schema}.keyed_event_id(i.user_id, g.session_id, i.idempotency_key)
               ) END)
    INTO moved
    FROM item i
    JOIN given g ON g.user_id = i.user_id AND g.run_id = i.run_id AND g.session_id <> i.session_id
    -- Not with EXISTS after OR: the planner may take it for a hash of the whole ledger.
    LEFT JOIN LATERAL (
        SELECT true AS is_there FROM {schema}.session_usage_events e
        WHERE e.user_id = i.user_id AND e.session_id = i.session_id AND e.event_id = i.event_id
        LIMIT 1
    ) held ON true
    WHERE i.idempotency_key IS NULL OR i.key_scope IS NOT NULL OR held.is_there IS NULL;
    IF moved IS NULL THEN
        waves := NULL;
        RETURN;
    END IF;

    SELECT jsonb_agg(w.items ORDER BY w.number) INTO waves
    FROM (
        SELECT wave.number, coalesce(jsonb_agg(i.item || coalesce(moved -> (i.item ->> 'position'), '{}') ORDER BY i.number)
                   FILTER (WHERE i.item IS NOT NULL), '[]') AS items
        FROM jsonb_array_elements(waves) WITH ORDINALITY wave (items, number)
        LEFT JOIN LATERAL jsonb_array_elements(wave.items) WITH ORDINALITY i (item, number) ON true
        GROUP BY wave.number
    ) w;
    IF EXISTS (
        SELECT
        FROM jsonb_array_elements(waves) WITH ORDINALITY wave (items, number),
             jsonb_to_recordset(wave.items) i (event_id uuid)  -- not as text: the library writes it without hyphens
        WHERE i.event_id IS NOT NULL
        GROUP BY wave.number, i.event_id
        HAVING count(*) > 1
    ) THEN
        -- Two events now have one key in one session: each item becomes a wave of its own.
        SELECT jsonb_agg(coalesce(w.items, '[]') ORDER BY p.position),
               jsonb_agg(coalesce(a.items, '[]') ORDER BY p.position)
        INTO waves, activity
        FROM (
            SELECT DISTINCT (i.item ->> 'position')::int AS position
            FROM jsonb_array_elements(waves || activity) wave, jsonb_array_elements(wave) i (item)
        ) p
        LEFT JOIN (
            SELECT (i.item ->> 'position')::int AS position, jsonb_build_array(i.item) AS items
            FROM jsonb_array_elements(waves) wave, jsonb_array_elements(wave) i (item)
        ) w ON w.position = p.position
        LEFT JOIN (
            SELECT (i.item ->> 'position')::int AS position, jsonb_build_array(i.item) AS items
            FROM jsonb_array_elements(activity) wave, jsonb_array_elements(wave) i (item)
        ) a ON a.position = p.position;
    END IF;
END
$body$;
