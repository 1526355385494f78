-- The same of the roll-ups by model.
CREATE FUNCTION {schema}.expected_model_rollups_v1(of_family text, after uuid, up_to uuid)
RETURNS SETOF {schema}.session_model_rollups
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan SET work_mem = '64MB' SET jit = off
AS $body$
BEGIN
    RETURN QUERY
    SELECT f.family, f.user_id, f.dataset_id, l.level, l.starts_at, a.model, sum(a.sessions)::bigint, sum(a.cost_usd),
           sum(a.tokens_in), sum(a.tokens_out), sum(a.cache_read_tokens), sum(a.cache_write_tokens),
           sum(a.reasoning_tokens), sum(a.events)::bigint, sum(a.unpriced_events)::bigint
    FROM (
        SELECT a.*
        FROM {schema}.rolled_up_sessions s
        CROSS JOIN LATERAL {schema}.rollup_model_shares_v1(s, 1) a
        WHERE {schema}.in_rollups_v1(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT c.user_id, c.dataset_id, c.starts_at, c.model, -c.sessions, -c.cost_usd, -c.tokens_in, -c.tokens_out,
               -c.cache_read_tokens, -c.cache_write_tokens, -c.reasoning_tokens, -c.events, -c.unpriced_events
        FROM {schema}.session_model_rollup_changes c
        WHERE {schema}.in_rollups_v1(of_family, after, up_to, c.user_id, c.dataset_id)
    ) a
    CROSS JOIN LATERAL {schema}.rollup_families_v1(a.user_id, a.dataset_id) f
    CROSS JOIN LATERAL {schema}.rollup_levels_v1(a.starts_at) l
    WHERE f.family = of_family
    GROUP BY f.family, f.user_id, f.dataset_id, l.level, l.starts_at, a.model
    HAVING (sum(a.sessions), sum(a.cost_usd), sum(a.tokens_in), sum(a.tokens_out), sum(a.cache_read_tokens),
            sum(a.cache_write_tokens), sum(a.reasoning_tokens), sum(a.events), sum(a.unpriced_events))
        <> (0, 0, 0, 0, 0, 0, 0, 0, 0);
END
$body$;
