-- Deletes the sessions of `keys` with all their rows, in one transaction; `idle_before` as in `lock_idle_sessions`.
-- Answers one row: how many rows went, and the keys of the sessions. Raises nothing.
-- Locks: those of `delete_locked`.
CREATE FUNCTION {schema}.delete_sessions_v1(
    keys jsonb, idle_before timestamptz,
    OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint,
    OUT session_keys jsonb
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    others jsonb := '[]';
    found_missing text;
BEGIN
    LOOP
        -- Where a lock is missing, the block is undone with its locks and begins again, so that all are taken in their
        -- order: a run of another session that loses events here changes what it reports beyond them.
        BEGIN
            SELECT d.* INTO sessions, runs, steps, messages, events, model_rows, session_keys
            FROM {schema}.delete_locked(keys, others, idle_before) d;
            RETURN;
        EXCEPTION WHEN SQLSTATE 'SL002' THEN
            GET STACKED DIAGNOSTICS found_missing = PG_EXCEPTION_DETAIL;
            others := others || found_missing::jsonb;
        END;
    END LOOP;
END
$body$;
