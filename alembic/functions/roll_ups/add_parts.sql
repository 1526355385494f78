-- Fills in the buckets of one level in `[since, until)` for one owner in a family: the sum over the owner's rolled-up sessions,
-- less the changes that are not put in yet. There is none of these buckets yet.
-- Answers nothing and raises nothing. The caller holds the lock of the roll-ups.
CREATE FUNCTION {schema}.add_parts(
    of_family text, of_user uuid, of_dataset uuid, of_level text, since timestamptz, until timestamptz
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    -- In hours: the name of a level says days.
    length interval := extract(epoch FROM CASE WHEN of_level = 'hour' THEN '1 hour' ELSE of_level END::interval) * interval '1 second';
BEGIN
    -- The sums are made apart from the insertions, as in `compact_roll_ups_v1`.
    WITH total AS MATERIALIZED (
        SELECT date_bin(length, a.starts_at, '2000-01-01 00:00:00+00') AS starts_at, a.status, sum(a.sessions) AS sessions,
               sum(a.cost_usd) AS cost_usd, sum(a.tokens_in) AS tokens_in, sum(a.tokens_out) AS tokens_out,
               sum(a.duration_us) AS duration_us, sum(a.unpriced_events) AS unpriced_events,
               sum(a.unmeasured_events) AS unmeasured_events, sum(a.late_events) AS late_events,
               sum(a.late_cost_usd) AS late_cost_usd,
               CASE WHEN bool_or(a.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(a.further_totals), '{}') END
                   AS further_totals
        FROM (
            SELECT a.*
            FROM {schema}.members(of_family, of_user, of_dataset, since, until) s
            CROSS JOIN LATERAL {schema}.share(
                s.user_id, s.dataset_id, s.status, s.started_at, s.last_activity_at, s.ended_at, s.tokens_in, s.tokens_out,
                s.cost_usd, s.unpriced_events, s.unmeasured_events, s.late_events, s.late_cost_usd, s.further_totals, 1
            ) a
            UNION ALL
            SELECT c.user_id, c.dataset_id, c.status, c.starts_at, -c.sessions, -c.cost_usd, -c.tokens_in, -c.tokens_out,
                   -c.duration_us, -c.unpriced_events, -c.unmeasured_events, -c.late_events, -c.late_cost_usd,
                   {schema}.sum_totals_v1('{}', ARRAY[c.further_totals])
            FROM {schema}.session_roll_up_changes c
            CROSS JOIN LATERAL {schema}.families(c.user_id, c.dataset_id) f
            WHERE f.family = of_family AND f.user_id = of_user AND f.dataset_id = of_dataset
                AND c.starts_at >= since AND c.starts_at < until
        ) a
        GROUP BY 1, 2
        HAVING sum(a.sessions) <> 0
    )
    INSERT INTO {schema}.session_roll_ups
        (family, user_id, dataset_id, level, starts_at, status, sessions, cost_usd, tokens_in, tokens_out, duration_us,
         unpriced_events, unmeasured_events, late_events, late_cost_usd, further_totals)
    SELECT of_family, of_user, of_dataset, of_level, t.starts_at, t.status, t.sessions, t.cost_usd, t.tokens_in, t.tokens_out,
           t.duration_us, t.unpriced_events, t.unmeasured_events, t.late_events, t.late_cost_usd, t.further_totals
    FROM total t;
    -- The changes of both kinds are put in apart. Where those in all cancel out so far, no bucket is kept, and so none by model.
    IF NOT FOUND THEN
        RETURN;
    END IF;
    WITH total AS MATERIALIZED (
        SELECT date_bin(length, a.starts_at, '2000-01-01 00:00:00+00') AS starts_at, a.model, sum(a.sessions) AS sessions,
               sum(a.cost_usd) AS cost_usd, sum(a.tokens_in) AS tokens_in, sum(a.tokens_out) AS tokens_out,
               sum(a.cache_read_tokens) AS cache_read_tokens, sum(a.cache_write_tokens) AS cache_write_tokens,
               sum(a.reasoning_tokens) AS reasoning_tokens, sum(a.events) AS events, sum(a.unpriced_events) AS unpriced_events,
               CASE WHEN bool_or(a.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(a.further_totals), '{}') END
                   AS further_totals
        FROM (
            SELECT a.*
            FROM {schema}.members(of_family, of_user, of_dataset, since, until) s
            CROSS JOIN LATERAL {schema}.model_shares_v1(s.user_id, s.dataset_id, s.last_activity_at, s.models, 1) a
            UNION ALL
            SELECT c.user_id, c.dataset_id, c.starts_at, c.model, -c.sessions, -c.cost_usd, -c.tokens_in, -c.tokens_out,
                   -c.cache_read_tokens, -c.cache_write_tokens, -c.reasoning_tokens, -c.events, -c.unpriced_events,
                   {schema}.sum_totals_v1('{}', ARRAY[c.further_totals])
            FROM {schema}.session_model_roll_up_changes c
            CROSS JOIN LATERAL {schema}.families(c.user_id, c.dataset_id) f
            WHERE f.family = of_family AND f.user_id = of_user AND f.dataset_id = of_dataset
                AND c.starts_at >= since AND c.starts_at < until
        ) a
        GROUP BY 1, 2
        HAVING sum(a.sessions) <> 0
    )
    INSERT INTO {schema}.session_model_roll_ups
        (family, user_id, dataset_id, level, starts_at, model, sessions, cost_usd, tokens_in, tokens_out,
         cache_read_tokens, cache_write_tokens, reasoning_tokens, events, unpriced_events, further_totals)
    SELECT of_family, of_user, of_dataset, of_level, t.starts_at, t.model, t.sessions, t.cost_usd, t.tokens_in, t.tokens_out,
           t.cache_read_tokens, t.cache_write_tokens, t.reasoning_tokens, t.events, t.unpriced_events, t.further_totals
    FROM total t;
END
$body$;
