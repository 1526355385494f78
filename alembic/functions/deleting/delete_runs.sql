-- Deletes runs with their steps. Sessions that stay may have events of such a run. Then a row without a start stays, with
-- the sums of these events, so that they do not count twice when the run is recorded again. The caller holds the locks of
-- the runs. It has already subtracted the events that are deleted.
-- Answers how many recorded runs and how many steps went. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.delete_runs(of_users uuid[], of_runs text[], OUT runs bigint, OUT steps bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    kept jsonb;
BEGIN
    WITH gone AS (
        DELETE FROM {schema}.session_runs r
        USING unnest(of_users, of_runs) n (user_id, run_id)
        WHERE r.user_id = n.user_id AND r.run_id = n.run_id
        RETURNING r.user_id, r.run_id, r.started_at, r.events_cost_usd, r.events_tokens_in, r.events_tokens_out,
                  r.events_cache_read_tokens, r.events_cache_write_tokens, r.events_plan_cost_usd
    ),
    gone_steps AS (
        DELETE FROM {schema}.session_steps s USING gone g WHERE s.user_id = g.user_id AND s.run_id = g.run_id
        RETURNING true
    )
    SELECT count(g.started_at), (SELECT count(*) FROM gone_steps),
           jsonb_agg(jsonb_build_object(
               'user_id', g.user_id, 'run_id', g.run_id, 'cost_usd', g.events_cost_usd, 'tokens_in', g.events_tokens_in,
               'tokens_out', g.events_tokens_out, 'cache_read_tokens', g.events_cache_read_tokens,
               'cache_write_tokens', g.events_cache_write_tokens, 'plan_cost_usd', g.events_plan_cost_usd
           )) FILTER (WHERE g.events_cost_usd <> 0 OR g.events_plan_cost_usd <> 0 OR g.events_tokens_in <> 0
                          OR g.events_tokens_out <> 0)
    INTO runs, steps, kept
    FROM gone g;

    INSERT INTO {schema}.session_runs
        (user_id, run_id, events_cost_usd, events_tokens_in, events_tokens_out, events_cache_read_tokens,
         events_cache_write_tokens, events_plan_cost_usd)
    SELECT k.user_id, k.run_id, k.cost_usd, k.tokens_in, k.tokens_out, k.cache_read_tokens, k.cache_write_tokens,
           k.plan_cost_usd
    FROM jsonb_to_recordset(kept) k (
        user_id uuid, run_id text, cost_usd numeric, tokens_in bigint, tokens_out bigint, cache_read_tokens bigint,
        cache_write_tokens bigint, plan_cost_usd numeric
    );
END
$body$;
