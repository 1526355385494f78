-- Computes by model what a part of a family, as `holds` bounds it, must hold, as `expected_roll_ups_v1` does in all.
-- Answers the rows `session_model_roll_ups` must have, without those that are all zero. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.expected_model_roll_ups_v1(of_family text, after uuid, up_to uuid)
RETURNS SETOF {schema}.session_model_roll_ups
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET work_mem = '64MB' SET jit = off
AS $body$
BEGIN
    RETURN QUERY
    SELECT f.family, f.user_id, f.dataset_id, l.level, l.starts_at, a.model, sum(a.sessions)::bigint, sum(a.cost_usd),
           sum(a.tokens_in), sum(a.tokens_out), sum(a.cache_read_tokens), sum(a.cache_write_tokens),
           sum(a.reasoning_tokens), sum(a.events)::bigint, sum(a.unpriced_events)::bigint,
           CASE WHEN bool_or(a.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(a.further_totals), '{}') END
    FROM (
        SELECT a.*
        FROM {schema}.rolled_up_sessions s
        CROSS JOIN LATERAL {schema}.model_shares_v1(s.user_id, s.dataset_id, s.last_activity_at, s.models, 1) a
        WHERE {schema}.holds(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT c.user_id, c.dataset_id, c.starts_at, c.model, -c.sessions, -c.cost_usd, -c.tokens_in, -c.tokens_out,
               -c.cache_read_tokens, -c.cache_write_tokens, -c.reasoning_tokens, -c.events, -c.unpriced_events,
               {schema}.sum_totals_v1('{}', ARRAY[c.further_totals])
        FROM {schema}.session_model_roll_up_changes c
        WHERE {schema}.holds(of_family, after, up_to, c.user_id, c.dataset_id)
    ) a
    CROSS JOIN LATERAL {schema}.families(a.user_id, a.dataset_id) f
    CROSS JOIN LATERAL {schema}.levels(a.starts_at) l
    WHERE f.family = of_family
    GROUP BY f.family, f.user_id, f.dataset_id, l.level, l.starts_at, a.model
    HAVING (sum(a.sessions), sum(a.cost_usd), sum(a.tokens_in), sum(a.tokens_out), sum(a.cache_read_tokens),
            sum(a.cache_write_tokens), sum(a.reasoning_tokens), sum(a.events), sum(a.unpriced_events))
        <> (0, 0, 0, 0, 0, 0, 0, 0, 0)
        OR {schema}.sum_totals_v1(array_agg(a.further_totals), '{}') IS NOT NULL;
END
$body$;
