-- Deletes the runs, steps and messages of sessions, and takes the events of the sessions out of the sums of all runs. The
-- caller holds the locks of the sessions.
-- Answers how many rows went; in `named_users` and `named_runs` all runs that the sessions named, in the order of their
-- keys; and in `left_users` and `left_runs` the runs of other sessions that lost events. Raises nothing.
-- Locks: the rows of all runs that the sessions name, in the order of their keys (rule R10).
CREATE FUNCTION {schema}.delete_activity(
    of_users uuid[], of_sessions text[],
    OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT named_users uuid[], OUT named_runs text[],
    OUT left_users uuid[], OUT left_runs text[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    gone_users uuid[];
    gone_runs text[];
BEGIN
    SELECT array_agg(l.user_id), array_agg(l.run_id)
    INTO named_users, named_runs
    FROM (
        SELECT r.user_id, r.run_id
        FROM (
            SELECT e.user_id, e.run_id
            FROM unnest(of_users, of_sessions) t (user_id, session_id)
            JOIN {schema}.session_usage_events e ON e.user_id = t.user_id AND e.session_id = t.session_id
            UNION
            SELECT o.user_id, named.run_id
            FROM unnest(of_users, of_sessions) t (user_id, session_id)
            JOIN {schema}.session_runs o
                ON o.user_id = t.user_id AND o.session_id = t.session_id AND o.started_at IS NOT NULL,
            LATERAL (VALUES (o.run_id), (o.parent_run_id), (o.root_run_id)) named (run_id)
        ) n
        JOIN {schema}.session_runs r ON r.user_id = n.user_id AND r.run_id = n.run_id
        ORDER BY r.user_id, r.run_id
        FOR UPDATE OF r
    ) l;

    WITH changed AS (
        UPDATE {schema}.session_runs r
        SET events_cost_usd = r.events_cost_usd - e.cost_usd,
            events_tokens_in = r.events_tokens_in - e.tokens_in,
            events_tokens_out = r.events_tokens_out - e.tokens_out,
            events_cache_read_tokens = r.events_cache_read_tokens - e.cache_read_tokens,
            events_cache_write_tokens = r.events_cache_write_tokens - e.cache_write_tokens,
            events_plan_cost_usd = r.events_plan_cost_usd - coalesce(e.plan_cost_usd, 0)
        FROM (
            SELECT e.user_id, e.run_id, coalesce(sum(e.cost_usd), 0) AS cost_usd, sum(e.tokens_in) AS tokens_in,
                   sum(e.tokens_out) AS tokens_out, sum(e.cache_read_tokens) AS cache_read_tokens,
                   sum(e.cache_write_tokens) AS cache_write_tokens, sum(e.plan_cost_usd) AS plan_cost_usd
            FROM unnest(of_users, of_sessions) t (user_id, session_id)
            JOIN {schema}.session_usage_events e ON e.user_id = t.user_id AND e.session_id = t.session_id
            WHERE e.run_id IS NOT NULL AND e.key_scope <> 'run' AND NOT e.late
            GROUP BY e.user_id, e.run_id
        ) e
        WHERE r.user_id = e.user_id AND r.run_id = e.run_id
        RETURNING r.user_id, r.run_id, r.session_id
    )
    SELECT array_agg(c.user_id), array_agg(c.run_id) INTO left_users, left_runs
    FROM (
        SELECT c.user_id, c.run_id
        FROM (
            SELECT c.user_id, c.session_id FROM changed c WHERE c.session_id IS NOT NULL
            EXCEPT
            SELECT t.user_id, t.session_id FROM unnest(of_users, of_sessions) t (user_id, session_id)
        ) o
        JOIN {schema}.session_records s ON s.user_id = o.user_id AND s.session_id = o.session_id
        JOIN changed c ON c.user_id = o.user_id AND c.session_id = o.session_id
    ) c;

    SELECT array_agg(r.user_id), array_agg(r.run_id) INTO gone_users, gone_runs
    FROM unnest(of_users, of_sessions) t (user_id, session_id)
    JOIN {schema}.session_runs r
        ON r.user_id = t.user_id AND r.session_id = t.session_id AND r.started_at IS NOT NULL;
    SELECT d.runs, d.steps INTO runs, steps FROM {schema}.delete_runs(gone_users, gone_runs) d;

    DELETE FROM {schema}.session_messages m
    USING unnest(of_users, of_sessions) t (user_id, session_id)
    WHERE m.user_id = t.user_id AND m.session_id = t.session_id;
    GET DIAGNOSTICS messages = ROW_COUNT;
END
$body$;
