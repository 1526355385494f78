-- Deletes the runs of `keys` that are in no session, with their steps, in one transaction. With `idle_before` only runs that
-- were last seen before it go, and a row that stands for a run never recorded goes when nothing names it. Without it all of
-- them go.
-- Answers one row: how many rows went. Raises nothing.
-- Locks: the runs' rows, in the order of their keys (rule R10). With `idle_before` a run that a writer has locked is skipped;
-- without it the writer is waited for.
CREATE FUNCTION {schema}.delete_waiting_runs_v1(
    keys jsonb, idle_before timestamptz,
    OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint,
    OUT session_keys jsonb
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    users uuid[];
    waiting text[];
    gone_users uuid[];
    gone_runs text[];
BEGIN
    IF idle_before IS NULL THEN
        SELECT array_agg(l.user_id), array_agg(l.run_id)
        INTO users, waiting
        FROM (
            SELECT r.user_id, r.run_id
            FROM jsonb_to_recordset(keys) k (user_id uuid, run_id text)
            JOIN {schema}.session_runs r ON r.user_id = k.user_id AND r.run_id = k.run_id
            WHERE r.session_id IS NULL
            ORDER BY r.user_id, r.run_id
            FOR UPDATE OF r
        ) l;
    ELSE
        -- With their parents and roots, which perhaps nothing else names.
        SELECT array_agg(l.user_id), array_agg(l.run_id)
        INTO users, waiting
        FROM (
            SELECT r.user_id, r.run_id
            FROM (
                SELECT DISTINCT o.user_id, named.run_id
                FROM jsonb_to_recordset(keys) k (user_id uuid, run_id text)
                JOIN {schema}.session_runs o ON o.user_id = k.user_id AND o.run_id = k.run_id,
                LATERAL (VALUES (o.run_id), (o.parent_run_id), (o.root_run_id)) named (run_id)
            ) n
            JOIN {schema}.session_runs r ON r.user_id = n.user_id AND r.run_id = n.run_id
            WHERE r.session_id IS NULL AND coalesce(r.last_seen, r.started_at, '-infinity') < idle_before
            ORDER BY r.user_id, r.run_id
            FOR UPDATE OF r SKIP LOCKED
        ) l;
    END IF;

    SELECT array_agg(r.user_id), array_agg(r.run_id) INTO gone_users, gone_runs
    FROM unnest(users, waiting) n (user_id, run_id)
    JOIN {schema}.session_runs r ON r.user_id = n.user_id AND r.run_id = n.run_id
    WHERE r.started_at IS NOT NULL OR idle_before IS NULL;
    SELECT d.runs, d.steps INTO runs, steps FROM {schema}.delete_runs(gone_users, gone_runs) d;
    IF idle_before IS NULL THEN
        -- Nothing that names the user stays, but for runs with events that were recorded meanwhile.
        DELETE FROM {schema}.session_runs r
        USING unnest(gone_users, gone_runs) n (user_id, run_id)
        WHERE r.user_id = n.user_id AND r.run_id = n.run_id
            AND NOT EXISTS (
                SELECT FROM {schema}.session_usage_events e WHERE e.user_id = r.user_id AND e.run_id = r.run_id
            );
    END IF;
    sessions := 0;
    messages := 0;
    events := 0;
    model_rows := 0;
    steps := steps + {schema}.delete_unnamed_runs(users, waiting, idle_before);
END
$body$;
