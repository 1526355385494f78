-- Computes by model what a part of a family, as `holds` bounds it, must hold, as `expected_roll_ups_v1` does in all: the
-- buckets by model are kept where those of `session_roll_ups` are.
-- Answers the rows `session_model_roll_ups` must have, without those that are all zero. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.expected_model_roll_ups_v1(of_family text, after uuid, up_to uuid)
RETURNS SETOF {schema}.session_model_roll_ups
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
-- With the arguments known to the planner, the part is a range of an index. The sessions are joined with their depths by a
-- hash: there are as many of these as sessions, but the planner expects a thousand.
SET plan_cache_mode = force_custom_plan SET work_mem = '64MB' SET enable_nestloop = off SET enable_mergejoin = off SET jit = off
AS $body$
BEGIN
    RETURN QUERY
    WITH share AS (
        SELECT a.user_id, a.dataset_id, a.model, a.starts_at, a.sessions, a.cost_usd, a.tokens_in, a.tokens_out,
               a.cache_read_tokens, a.cache_write_tokens, a.reasoning_tokens, a.events, a.unpriced_events,
               a.further_totals
        FROM {schema}.rolled_up_sessions s
        CROSS JOIN LATERAL {schema}.model_shares_v1(s.user_id, s.dataset_id, s.last_activity_at, s.models, 1) a
        WHERE {schema}.holds(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT c.user_id, c.dataset_id, c.model, c.starts_at,
               -c.sessions, -c.cost_usd, -c.tokens_in, -c.tokens_out, -c.cache_read_tokens, -c.cache_write_tokens,
               -c.reasoning_tokens, -c.events, -c.unpriced_events,
               {schema}.sum_totals_v1('{}', ARRAY[c.further_totals])
        FROM {schema}.session_model_roll_up_changes c
        WHERE {schema}.holds(of_family, after, up_to, c.user_id, c.dataset_id)
    ),
    -- First the shortest buckets that are kept, which are few, and from these the longer ones.
    shortest AS (
        SELECT d.user_id, d.dataset_id, d.depth, a.model, b.starts_at,
               sum(a.sessions) AS sessions, sum(a.cost_usd) AS cost_usd, sum(a.tokens_in) AS tokens_in,
               sum(a.tokens_out) AS tokens_out, sum(a.cache_read_tokens) AS cache_read_tokens,
               sum(a.cache_write_tokens) AS cache_write_tokens, sum(a.reasoning_tokens) AS reasoning_tokens,
               sum(a.events) AS events, sum(a.unpriced_events) AS unpriced_events,
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
        JOIN {schema}.depths(of_family, after, up_to, false) d
            ON d.user_id = o.user_id AND d.dataset_id = o.dataset_id AND d.six_hours = o.six_hours
        CROSS JOIN LATERAL (
            SELECT date_bin(
                ('{7776 hours,1296 hours,216 hours,36 hours,6 hours,1 hour}'::interval[])[d.depth], a.starts_at,
                '2000-01-01 00:00:00+00'
            )
        ) b (starts_at)
        WHERE d.depth > 0
        GROUP BY d.user_id, d.dataset_id, d.depth, a.model, b.starts_at
    )
    SELECT of_family, s.user_id, s.dataset_id, l.level, l.starts_at, s.model,
           sum(s.sessions)::bigint, sum(s.cost_usd), sum(s.tokens_in), sum(s.tokens_out), sum(s.cache_read_tokens),
           sum(s.cache_write_tokens), sum(s.reasoning_tokens), sum(s.events)::bigint, sum(s.unpriced_events)::bigint,
           CASE WHEN bool_or(s.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(s.further_totals), '{}') END
    FROM shortest s
    CROSS JOIN LATERAL {schema}.levels(s.starts_at) l
    WHERE l.depth <= s.depth
    GROUP BY s.user_id, s.dataset_id, l.level, l.starts_at, s.model
    -- An empty bucket has no row.
    HAVING (sum(s.sessions), sum(s.cost_usd), sum(s.tokens_in), sum(s.tokens_out), sum(s.cache_read_tokens),
            sum(s.cache_write_tokens), sum(s.reasoning_tokens), sum(s.events), sum(s.unpriced_events)) <> (0, 0, 0, 0, 0, 0, 0, 0, 0)
        OR {schema}.sum_totals_v1(array_agg(s.further_totals), '{}') IS NOT NULL;
END
$body$;
