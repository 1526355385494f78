-- Computes what a part of a family, as `holds` bounds it, must hold: the sum over the rolled-up sessions, less the changes
-- that are not put in yet.
-- Answers the rows `session_roll_ups` must have, without those that are all zero. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.expected_roll_ups_v1(of_family text, after uuid, up_to uuid) RETURNS SETOF {schema}.session_roll_ups
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
-- With the arguments known to the planner, the part is a range of an index.
SET plan_cache_mode = force_custom_plan SET work_mem = '64MB' SET jit = off
AS $body$
BEGIN
    RETURN QUERY
    SELECT f.family, f.user_id, f.dataset_id, l.level, a.status, l.starts_at, sum(a.sessions)::bigint, sum(a.cost_usd),
           sum(a.tokens_in), sum(a.tokens_out), sum(a.duration_us), sum(a.unpriced_events)::bigint,
           sum(a.unmeasured_events)::bigint, sum(a.late_events)::bigint, sum(a.late_cost_usd),
           CASE WHEN bool_or(a.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(a.further_totals), '{}') END
    FROM (
        SELECT a.*
        FROM {schema}.rolled_up_sessions s
        CROSS JOIN LATERAL {schema}.share(
            s.user_id, s.dataset_id, s.status, s.started_at, s.last_activity_at, s.ended_at, s.tokens_in, s.tokens_out,
            s.cost_usd, s.unpriced_events, s.unmeasured_events, s.late_events, s.late_cost_usd, s.further_totals, 1
        ) a
        WHERE {schema}.holds(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT c.user_id, c.dataset_id, c.status, c.starts_at, -c.sessions, -c.cost_usd, -c.tokens_in, -c.tokens_out,
               -c.duration_us, -c.unpriced_events, -c.unmeasured_events, -c.late_events, -c.late_cost_usd,
               {schema}.sum_totals_v1('{}', ARRAY[c.further_totals])
        FROM {schema}.session_roll_up_changes c
        WHERE {schema}.holds(of_family, after, up_to, c.user_id, c.dataset_id)
    ) a
    CROSS JOIN LATERAL {schema}.families(a.user_id, a.dataset_id) f
    CROSS JOIN LATERAL {schema}.levels(a.starts_at) l
    WHERE f.family = of_family
    GROUP BY f.family, f.user_id, f.dataset_id, l.level, a.status, l.starts_at
    -- An empty bucket has no row.
    HAVING (sum(a.sessions), sum(a.cost_usd), sum(a.tokens_in), sum(a.tokens_out), sum(a.duration_us),
            sum(a.unpriced_events), sum(a.unmeasured_events), sum(a.late_events), sum(a.late_cost_usd))
        <> (0, 0, 0, 0, 0, 0, 0, 0, 0)
        OR {schema}.sum_totals_v1(array_agg(a.further_totals), '{}') IS NOT NULL;
END
$body$;
