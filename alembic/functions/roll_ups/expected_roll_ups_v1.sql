-- Computes what a part of a family, as `holds` bounds it, must hold: the sum over the rolled-up sessions, less the changes
-- that are not put in yet. `depths` says which buckets are kept.
-- Answers the rows `session_roll_ups` must have, without those that are all zero. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.expected_roll_ups_v1(of_family text, after uuid, up_to uuid, afresh boolean)
RETURNS SETOF {schema}.session_roll_ups
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
-- With the arguments known to the planner, the part is a range of an index. The sessions are joined with their depths by a
-- hash: there are as many of these as sessions, but the planner expects a thousand.
SET plan_cache_mode = force_custom_plan SET work_mem = '64MB' SET enable_nestloop = off SET enable_mergejoin = off SET jit = off
AS $body$
BEGIN
    RETURN QUERY
    WITH share AS (
        SELECT a.user_id, a.dataset_id, a.status, a.starts_at, a.sessions, a.cost_usd, a.tokens_in, a.tokens_out,
               a.duration_us, a.unpriced_events, a.unmeasured_events, a.late_events, a.late_cost_usd, a.further_totals
        FROM {schema}.rolled_up_sessions s
        CROSS JOIN LATERAL {schema}.share(
            s.user_id, s.dataset_id, s.status, s.started_at, s.last_activity_at, s.ended_at, s.tokens_in, s.tokens_out,
            s.cost_usd, s.unpriced_events, s.unmeasured_events, s.late_events, s.late_cost_usd, s.further_totals, 1
        ) a
        WHERE {schema}.holds(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT c.user_id, c.dataset_id, c.status, c.starts_at,
               -c.sessions, -c.cost_usd, -c.tokens_in, -c.tokens_out, -c.duration_us, -c.unpriced_events,
               -c.unmeasured_events, -c.late_events, -c.late_cost_usd,
               {schema}.sum_totals_v1('{}', ARRAY[c.further_totals])
        FROM {schema}.session_roll_up_changes c
        WHERE {schema}.holds(of_family, after, up_to, c.user_id, c.dataset_id)
    ),
    -- First the shortest buckets that are kept, which are few, and from these the longer ones.
    shortest AS (
        SELECT d.user_id, d.dataset_id, d.depth, a.status, b.starts_at,
               sum(a.sessions) AS sessions, sum(a.cost_usd) AS cost_usd, sum(a.tokens_in) AS tokens_in,
               sum(a.tokens_out) AS tokens_out, sum(a.duration_us) AS duration_us,
               sum(a.unpriced_events) AS unpriced_events, sum(a.unmeasured_events) AS unmeasured_events,
               sum(a.late_events) AS late_events, sum(a.late_cost_usd) AS late_cost_usd,
               CASE WHEN bool_or(a.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(a.further_totals), '{}') END
                   AS further_totals
        FROM share a
        CROSS JOIN LATERAL (SELECT
            CASE WHEN of_family IN ('user', 'user_dataset') THEN a.user_id
                 ELSE '00000000-0000-0000-0000-000000000000' END,
            CASE WHEN of_family IN ('dataset', 'user_dataset') THEN a.dataset_id
                 ELSE '00000000-0000-0000-0000-000000000000' END,
            date_bin('6 hours', a.starts_at, '2000-01-01 00:00:00+00')
        ) o (user_id, dataset_id, six_hours)
        JOIN {schema}.depths(of_family, after, up_to, afresh) d
            ON d.user_id = o.user_id AND d.dataset_id = o.dataset_id AND d.six_hours = o.six_hours
        CROSS JOIN LATERAL (
            SELECT date_bin(
                ('{7776 hours,1296 hours,216 hours,36 hours,6 hours,1 hour}'::interval[])[d.depth], a.starts_at,
                '2000-01-01 00:00:00+00'
            )
        ) b (starts_at)
        WHERE d.depth > 0
        GROUP BY d.user_id, d.dataset_id, d.depth, a.status, b.starts_at
    )
    SELECT of_family, s.user_id, s.dataset_id, l.level, l.starts_at, s.status,
           sum(s.sessions)::bigint, sum(s.cost_usd), sum(s.tokens_in), sum(s.tokens_out), sum(s.duration_us),
           sum(s.unpriced_events)::bigint, sum(s.unmeasured_events)::bigint, sum(s.late_events)::bigint,
           sum(s.late_cost_usd),
           CASE WHEN bool_or(s.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(s.further_totals), '{}') END
    FROM shortest s
    CROSS JOIN LATERAL {schema}.levels(s.starts_at) l
    WHERE l.depth <= s.depth
    GROUP BY s.user_id, s.dataset_id, l.level, l.starts_at, s.status
    -- An empty bucket has no row.
    HAVING (sum(s.sessions), sum(s.cost_usd), sum(s.tokens_in), sum(s.tokens_out), sum(s.duration_us),
            sum(s.unpriced_events), sum(s.unmeasured_events), sum(s.late_events), sum(s.late_cost_usd)) <> (0, 0, 0, 0, 0, 0, 0, 0, 0)
        OR {schema}.sum_totals_v1(array_agg(s.further_totals), '{}') IS NOT NULL;
END
$body$;
