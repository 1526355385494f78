-- Deletes those of the runs that stand for a run never recorded and that nothing names any more, with their steps. With
-- `idle_before` a run stays that has a step seen since. The caller holds the locks of the runs.
-- Answers how many steps went. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.delete_unnamed_runs(of_users uuid[], of_runs text[], idle_before timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    steps bigint;
BEGIN
    WITH gone AS (
        DELETE FROM {schema}.session_runs r
        USING unnest(of_users, of_runs) n (user_id, run_id)
        WHERE r.user_id = n.user_id AND r.run_id = n.run_id AND r.started_at IS NULL
            AND (idle_before IS NULL OR r.last_seen IS NULL OR r.last_seen < idle_before)
            -- Where the run has events, one of these sums is not zero.
            AND r.events_cost_usd = 0 AND r.events_tokens_in = 0 AND r.events_tokens_out = 0
            AND coalesce(r.events_plan_cost_usd, 0) = 0
            AND NOT EXISTS (
                SELECT FROM {schema}.session_runs c
                WHERE c.user_id = r.user_id AND c.parent_run_id = r.run_id AND c.run_id <> r.run_id
            )
            AND NOT EXISTS (
                SELECT FROM {schema}.session_runs c
                WHERE c.user_id = r.user_id AND c.root_run_id = r.run_id AND c.run_id <> r.run_id
            )
        RETURNING r.user_id, r.run_id
    ),
    gone_steps AS (
        DELETE FROM {schema}.session_steps s USING gone g WHERE s.user_id = g.user_id AND s.run_id = g.run_id
        RETURNING true
    )
    SELECT count(*) INTO steps FROM gone_steps;
    RETURN steps;
END
$body$;
