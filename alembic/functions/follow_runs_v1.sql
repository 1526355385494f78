-- The waves, with what is about a run put into the session the run was given, whichever it names itself. The rows of all runs
-- are there and locked.
CREATE FUNCTION {schema}.follow_runs_v1(waves jsonb) RETURNS jsonb
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $body$
DECLARE
    followed jsonb;
BEGIN
    IF NOT EXISTS (
        SELECT
        FROM jsonb_array_elements(waves) wave, jsonb_to_recordset(wave) i (user_id uuid, session_id text, run_id text)
        JOIN {schema}.session_runs r ON r.user_id = i.user_id AND r.run_id = i.run_id
        WHERE r.session_given AND r.session_id <> i.session_id
    ) THEN
        RETURN waves;
    END IF;
    SELECT jsonb_agg(w.items ORDER BY w.number) INTO followed
    FROM (
        SELECT wave.number, coalesce(jsonb_agg(
                   CASE WHEN r.session_id IS NULL THEN i.item
                        WHEN i.item ? 'idempotency_key' AND NOT i.item ? 'key_scope' THEN i.item || jsonb_build_object(
                            'session_id', r.session_id,
                            'event_id', {schema}.keyed_event_id_v1(r.user_id, r.session_id, i.item ->> 'idempotency_key'))
                        ELSE i.item || jsonb_build_object('session_id', r.session_id) END
                   ORDER BY i.number) FILTER (WHERE i.item IS NOT NULL), '[]') AS items
        FROM jsonb_array_elements(waves) WITH ORDINALITY wave (items, number)
        LEFT JOIN LATERAL jsonb_array_elements(wave.items) WITH ORDINALITY i (item, number) ON true
        LEFT JOIN {schema}.session_runs r
            ON r.user_id = (i.item ->> 'user_id')::uuid AND r.run_id = i.item ->> 'run_id' AND r.session_given
            AND r.session_id <> i.item ->> 'session_id'
        GROUP BY wave.number
    ) w;
    RETURN followed;
END
$body$;
