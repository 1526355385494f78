-- Computes what a part of a family, as `holds` bounds it, must hold: the sum over the rolled-up sessions, less the changes
-- that are not put in yet. `of_family` null stands for all families, each as a whole. `of_models` chooses the rows by model or
-- those in all; null answers both. `depths` says which buckets are kept.
-- Answers the rows that `session_roll_ups` and `session_model_roll_ups` must have, without those that are all zero. A row of
-- the first has no `model`, a row of the second no `status`. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.expected_roll_ups_v1(
    of_family text, after uuid, up_to uuid, of_models boolean, afresh boolean
) RETURNS TABLE (
    family text, user_id uuid, dataset_id uuid, level text, starts_at timestamptz, status text, model text,
    sessions bigint, cost_usd numeric, tokens_in numeric, tokens_out numeric, duration_us numeric,
    cache_read_tokens numeric, cache_write_tokens numeric, reasoning_tokens numeric, events bigint,
    unpriced_events bigint, unmeasured_events bigint, late_events bigint, late_cost_usd numeric, further_totals jsonb
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
-- With the arguments known to the planner, the part is a range of an index. The sessions are joined with their depths and
-- added up by hashes: there are as many depths as sessions, but the planner expects a thousand, and a hundred models a session.
SET plan_cache_mode = force_custom_plan SET work_mem = '64MB' SET jit = off
SET enable_nestloop = off SET enable_mergejoin = off SET enable_sort = off
AS $body$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    -- Each session is read twice, in all and by model, and not for each family again.
    WITH share AS (
        SELECT a.user_id, a.dataset_id, a.status, NULL::text AS model, a.starts_at, a.sessions, a.cost_usd, a.tokens_in,
               a.tokens_out, a.duration_us, NULL::numeric AS cache_read_tokens, NULL::numeric AS cache_write_tokens,
               NULL::numeric AS reasoning_tokens, NULL::bigint AS events, a.unpriced_events, a.unmeasured_events,
               a.late_events, a.late_cost_usd, a.further_totals
        FROM {schema}.rolled_up_sessions s
        CROSS JOIN LATERAL {schema}.share(
            s.user_id, s.dataset_id, s.status, s.started_at, s.last_activity_at, s.ended_at, s.tokens_in, s.tokens_out,
            s.cost_usd, s.unpriced_events, s.unmeasured_events, s.late_events, s.late_cost_usd, s.further_totals, 1
        ) a
        WHERE of_models IS NOT true AND {schema}.holds(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT a.user_id, a.dataset_id, NULL, a.model, a.starts_at, a.sessions, a.cost_usd, a.tokens_in,
               a.tokens_out, NULL, a.cache_read_tokens, a.cache_write_tokens,
               a.reasoning_tokens, a.events, a.unpriced_events, NULL,
               NULL, NULL, a.further_totals
        FROM {schema}.rolled_up_sessions s
        CROSS JOIN LATERAL {schema}.model_shares_v1(s.user_id, s.dataset_id, s.last_activity_at, s.models, 1) a
        WHERE of_models IS NOT false AND {schema}.holds(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT c.user_id, c.dataset_id, c.status, NULL, c.starts_at, -c.sessions, -c.cost_usd, -c.tokens_in,
               -c.tokens_out, -c.duration_us, NULL, NULL,
               NULL, NULL, -c.unpriced_events, -c.unmeasured_events,
               -c.late_events, -c.late_cost_usd, {schema}.sum_totals_v1('{}', ARRAY[c.further_totals])
        FROM {schema}.session_roll_up_changes c
        WHERE of_models IS NOT true AND {schema}.holds(of_family, after, up_to, c.user_id, c.dataset_id)
        UNION ALL
        SELECT c.user_id, c.dataset_id, NULL, c.model, c.starts_at, -c.sessions, -c.cost_usd, -c.tokens_in,
               -c.tokens_out, NULL, -c.cache_read_tokens, -c.cache_write_tokens,
               -c.reasoning_tokens, -c.events, -c.unpriced_events, NULL,
               NULL, NULL, {schema}.sum_totals_v1('{}', ARRAY[c.further_totals])
        FROM {schema}.session_model_roll_up_changes c
        WHERE of_models IS NOT false AND {schema}.holds(of_family, after, up_to, c.user_id, c.dataset_id)
    ),
    placed AS (
        SELECT f.family, f.user_id AS of_user, f.dataset_id AS of_dataset, f.depth, a.*
        FROM (SELECT s.*, date_bin('6 hours', s.starts_at, '2000-01-01 00:00:00+00') AS six_hours FROM share s) a
        LEFT JOIN {schema}.depths('all', after, up_to, afresh) in_all
            ON coalesce(of_family, 'all') = 'all' AND in_all.six_hours = a.six_hours
        LEFT JOIN {schema}.depths('user', after, up_to, afresh) in_user
            ON coalesce(of_family, 'user') = 'user' AND in_user.user_id = a.user_id AND in_user.six_hours = a.six_hours
        LEFT JOIN {schema}.depths('dataset', after, up_to, afresh) in_dataset
            ON coalesce(of_family, 'dataset') = 'dataset' AND in_dataset.dataset_id = a.dataset_id
            AND in_dataset.six_hours = a.six_hours
        LEFT JOIN {schema}.depths('user_dataset', after, up_to, afresh) in_both
            ON coalesce(of_family, 'user_dataset') = 'user_dataset' AND in_both.user_id = a.user_id
            AND in_both.dataset_id = a.dataset_id AND in_both.six_hours = a.six_hours
        CROSS JOIN LATERAL (
            VALUES
                ('all', '00000000-0000-0000-0000-000000000000'::uuid, '00000000-0000-0000-0000-000000000000'::uuid,
                 in_all.depth),
                ('user', a.user_id, '00000000-0000-0000-0000-000000000000', in_user.depth),
                ('dataset', '00000000-0000-0000-0000-000000000000', a.dataset_id, in_dataset.depth),
                ('user_dataset', a.user_id, a.dataset_id, in_both.depth)
        ) f (family, user_id, dataset_id, depth)
        WHERE f.depth IS NOT NULL
    ),
    -- First the shortest buckets that are kept, which are few, and from these the longer ones.
    shortest AS (
        SELECT a.family, a.of_user, a.of_dataset, a.depth, a.status, a.model, b.starts_at,
               sum(a.sessions) AS sessions, sum(a.cost_usd) AS cost_usd, sum(a.tokens_in) AS tokens_in,
               sum(a.tokens_out) AS tokens_out, sum(a.duration_us) AS duration_us,
               sum(a.cache_read_tokens) AS cache_read_tokens, sum(a.cache_write_tokens) AS cache_write_tokens,
               sum(a.reasoning_tokens) AS reasoning_tokens, sum(a.events) AS events,
               sum(a.unpriced_events) AS unpriced_events, sum(a.unmeasured_events) AS unmeasured_events,
               sum(a.late_events) AS late_events, sum(a.late_cost_usd) AS late_cost_usd,
               CASE WHEN bool_or(a.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(a.further_totals), '{}') END
                   AS further_totals
        FROM placed a
        CROSS JOIN LATERAL (
            SELECT date_bin(
                ('{7776 hours,1296 hours,216 hours,36 hours,6 hours,1 hour}'::interval[])[a.depth], a.starts_at,
                '2000-01-01 00:00:00+00'
            )
        ) b (starts_at)
        GROUP BY a.family, a.of_user, a.of_dataset, a.depth, a.status, a.model, b.starts_at
    )
    SELECT s.family, s.of_user, s.of_dataset, l.level, l.starts_at, s.status, s.model,
           sum(s.sessions)::bigint, sum(s.cost_usd), sum(s.tokens_in), sum(s.tokens_out), sum(s.duration_us),
           sum(s.cache_read_tokens), sum(s.cache_write_tokens), sum(s.reasoning_tokens), sum(s.events)::bigint,
           sum(s.unpriced_events)::bigint, sum(s.unmeasured_events)::bigint, sum(s.late_events)::bigint,
           sum(s.late_cost_usd),
           CASE WHEN bool_or(s.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(s.further_totals), '{}') END
    FROM shortest s
    CROSS JOIN LATERAL {schema}.levels(s.starts_at) l
    WHERE l.depth <= s.depth
    GROUP BY s.family, s.of_user, s.of_dataset, l.level, l.starts_at, s.status, s.model
    -- An empty bucket has no row. A comparison with null is null, so it leaves the other figures to decide.
    HAVING (sum(s.sessions), sum(s.cost_usd), sum(s.tokens_in), sum(s.tokens_out), sum(s.duration_us),
            sum(s.cache_read_tokens), sum(s.cache_write_tokens), sum(s.reasoning_tokens), sum(s.events),
            sum(s.unpriced_events), sum(s.unmeasured_events), sum(s.late_events), sum(s.late_cost_usd))
           <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        OR {schema}.sum_totals_v1(array_agg(s.further_totals), '{}') IS NOT NULL;
END
$body$;
