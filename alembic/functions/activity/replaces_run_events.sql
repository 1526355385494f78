-- Says whether an item may take the place of an event of a run although no item names the run: whether the event that the
-- key of an item holds in its session is of a run. The caller holds the locks of the sessions, so the answer stays true.
-- Raises nothing and takes no lock.
CREATE FUNCTION {schema}.replaces_run_events(waves jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
BEGIN
    RETURN waves @? '$[*][*].idempotency_key' AND EXISTS (
        SELECT
        FROM jsonb_array_elements(waves) wave,
             jsonb_to_recordset(wave) i (user_id uuid, session_id text, event_id uuid, idempotency_key text)
        JOIN {schema}.session_usage_events e
            ON e.user_id = i.user_id AND e.session_id = i.session_id AND e.event_id = i.event_id
        WHERE i.idempotency_key IS NOT NULL AND e.run_id IS NOT NULL
    );
END
$body$;
