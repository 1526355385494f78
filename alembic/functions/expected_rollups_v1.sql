-- What that part of a family should be, as `in_rollups_v1` has it: the sum over the sessions that are rolled up, less the
-- changes that are still to be put in.
CREATE FUNCTION {schema}.expected_rollups_v1(of_family text, after uuid, up_to uuid) RETURNS SETOF {schema}.session_rollups
LANGUAGE plpgsql STABLE
-- Planned with its arguments at hand, the part is a range of an index.
SET plan_cache_mode = force_custom_plan SET work_mem = '64MB' SET jit = off
AS $body$
BEGIN
    RETURN QUERY
    SELECT f.family, f.user_id, f.dataset_id, l.level, a.status, l.starts_at, sum(a.sessions)::bigint, sum(a.cost_usd),
           sum(a.tokens_in), sum(a.tokens_out), sum(a.duration_us), sum(a.unpriced_events)::bigint,
           sum(a.unmeasured_events)::bigint, sum(a.late_events)::bigint, sum(a.late_cost_usd)
    FROM (
        SELECT a.*
        FROM {schema}.rolled_up_sessions s
        CROSS JOIN LATERAL {schema}.rollup_share_v1(s, 1) a
        WHERE {schema}.in_rollups_v1(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT c.user_id, c.dataset_id, c.status, c.starts_at, -c.sessions, -c.cost_usd, -c.tokens_in, -c.tokens_out,
               -c.duration_us, -c.unpriced_events, -c.unmeasured_events, -c.late_events, -c.late_cost_usd
        FROM {schema}.session_rollup_changes c
        WHERE {schema}.in_rollups_v1(of_family, after, up_to, c.user_id, c.dataset_id)
    ) a
    CROSS JOIN LATERAL {schema}.rollup_families_v1(a.user_id, a.dataset_id) f
    CROSS JOIN LATERAL {schema}.rollup_levels_v1(a.starts_at) l
    WHERE f.family = of_family
    GROUP BY f.family, f.user_id, f.dataset_id, l.level, a.status, l.starts_at
    -- A bucket of nothing is not there.
    HAVING (sum(a.sessions), sum(a.cost_usd), sum(a.tokens_in), sum(a.tokens_out), sum(a.duration_us),
            sum(a.unpriced_events), sum(a.unmeasured_events), sum(a.late_events), sum(a.late_cost_usd))
        <> (0, 0, 0, 0, 0, 0, 0, 0, 0);
END
$body$;
