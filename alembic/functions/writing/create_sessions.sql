-- Creates the sessions of plain items that do not exist yet, each as its first item finds it and without any total.
-- `record_plain` then adds to them as to all others.
-- Answers the positions of the items that created a session.
-- Raises `SL001` where no session is missing: one has ended. `record_v1` catches it, and `record_wave` decides. Lets through `SL003` and `SL004` of `lock_sessions`.
-- Locks: those of `lock_sessions` (rule R10).
CREATE FUNCTION {schema}.create_sessions(wave jsonb, now_at timestamptz) RETURNS int[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
DECLARE
    creating int[];
BEGIN
    PERFORM {schema}.lock_sessions(jsonb_build_array(wave), '[]', '[]');
    WITH first_item AS MATERIALIZED (
        SELECT DISTINCT ON (i.user_id, i.session_id)
               i.position, i.user_id, i.session_id, coalesce(i.at, now_at) AS moment
        FROM jsonb_to_recordset(wave) AS i (position int, user_id uuid, session_id text, at timestamptz)
        ORDER BY i.user_id, i.session_id, i.position
    ),
    created AS (
        INSERT INTO {schema}.session_records (user_id, session_id, started_at, last_activity_at)
        SELECT f.user_id, f.session_id, f.moment, f.moment
        FROM first_item f
        ON CONFLICT DO NOTHING
        RETURNING user_id, session_id
    )
    SELECT array_agg(f.position) INTO creating
    FROM created c
    JOIN first_item f ON f.user_id = c.user_id AND f.session_id = c.session_id;
    IF creating IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SL001', MESSAGE = 'a session has ended';
    END IF;
    RETURN creating;
END
$body$;
