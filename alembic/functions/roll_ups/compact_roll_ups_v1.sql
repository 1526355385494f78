-- Puts the oldest changes into the roll-ups, at most `most` of each kind. A change goes only into the buckets that are kept
-- (`levels`); elsewhere reads count the sessions themselves. A bucket that is then empty goes, and one that has become dense
-- is divided.
-- Answers how many changes it took. Raises nothing.
-- Locks: the roll-ups (`lock_roll_ups`), so there is one at a time. A transaction that records never waits for it.
CREATE FUNCTION {schema}.compact_roll_ups_v1(most integer) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- A few thousand buckets are looked up by their keys and sorted in memory.
SET enable_hashjoin = off SET enable_mergejoin = off SET work_mem = '64MB' SET jit = off
AS $body$
DECLARE
    changes bigint;
    model_changes bigint;
    emptied jsonb;
    emptied_by_model jsonb;
    users uuid[];
    datasets uuid[];
    moments timestamptz[];
    of_level text;
    dense record;
BEGIN
    PERFORM {schema}.lock_roll_ups(true);
    WITH change AS (
        DELETE FROM {schema}.session_roll_up_changes c
        USING (SELECT o.change_id FROM {schema}.session_roll_up_changes o ORDER BY o.change_id LIMIT most) o
        WHERE c.change_id = o.change_id
        RETURNING c.user_id, c.dataset_id, c.status, c.starts_at, c.sessions, c.cost_usd, c.tokens_in, c.tokens_out,
                  c.duration_us, c.unpriced_events, c.unmeasured_events, c.late_events, c.late_cost_usd, c.further_totals
    ),
    hour AS (
        SELECT c.user_id, c.dataset_id, c.status, c.starts_at, sum(c.sessions)::bigint AS sessions,
               sum(c.cost_usd) AS cost_usd, sum(c.tokens_in) AS tokens_in, sum(c.tokens_out) AS tokens_out,
               sum(c.duration_us) AS duration_us, sum(c.unpriced_events)::bigint AS unpriced_events,
               sum(c.unmeasured_events)::bigint AS unmeasured_events, sum(c.late_events)::bigint AS late_events,
               sum(c.late_cost_usd) AS late_cost_usd, count(*) AS changes,
               CASE WHEN bool_or(c.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(c.further_totals), '{}') END
                   AS further_totals
        FROM change c
        GROUP BY c.user_id, c.dataset_id, c.status, c.starts_at
    ),
    -- Apart from the insertion: Citus sends one that looks into its own table to the node in a wrong form.
    total AS MATERIALIZED (
        SELECT f.family, f.user_id, f.dataset_id, l.level, l.starts_at, q.status, sum(q.sessions) AS sessions,
               sum(q.cost_usd) AS cost_usd,
               sum(q.tokens_in) AS tokens_in, sum(q.tokens_out) AS tokens_out, sum(q.duration_us) AS duration_us,
               sum(q.unpriced_events) AS unpriced_events, sum(q.unmeasured_events) AS unmeasured_events,
               sum(q.late_events) AS late_events, sum(q.late_cost_usd) AS late_cost_usd,
               CASE WHEN bool_or(q.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(q.further_totals), '{}') END
                   AS further_totals
        FROM hour q
        CROSS JOIN LATERAL {schema}.families(q.user_id, q.dataset_id) f
        CROSS JOIN LATERAL {schema}.levels(q.starts_at) l
        WHERE EXISTS (
            SELECT FROM {schema}.session_roll_ups k
            WHERE k.family = f.family AND k.user_id = f.user_id AND k.dataset_id = f.dataset_id AND k.level = l.level
                AND k.starts_at >= l.since AND k.starts_at < l.until
        )
        GROUP BY f.family, f.user_id, f.dataset_id, l.level, l.starts_at, q.status
    ),
    bucket AS (
        INSERT INTO {schema}.session_roll_ups AS r
            (family, user_id, dataset_id, level, starts_at, status, sessions, cost_usd, tokens_in, tokens_out, duration_us,
             unpriced_events, unmeasured_events, late_events, late_cost_usd, further_totals)
        SELECT t.family, t.user_id, t.dataset_id, t.level, t.starts_at, t.status, t.sessions, t.cost_usd, t.tokens_in,
               t.tokens_out, t.duration_us, t.unpriced_events, t.unmeasured_events, t.late_events, t.late_cost_usd,
               t.further_totals
        FROM total t
        ORDER BY t.family, t.user_id, t.dataset_id, t.level, t.starts_at, t.status
        ON CONFLICT (family, user_id, dataset_id, level, starts_at, status) DO UPDATE
        SET sessions = r.sessions + excluded.sessions,
            cost_usd = r.cost_usd + excluded.cost_usd,
            tokens_in = r.tokens_in + excluded.tokens_in,
            tokens_out = r.tokens_out + excluded.tokens_out,
            duration_us = r.duration_us + excluded.duration_us,
            unpriced_events = r.unpriced_events + excluded.unpriced_events,
            unmeasured_events = r.unmeasured_events + excluded.unmeasured_events,
            late_events = r.late_events + excluded.late_events,
            late_cost_usd = r.late_cost_usd + excluded.late_cost_usd,
            further_totals = CASE WHEN excluded.further_totals IS NULL THEN r.further_totals
                ELSE {schema}.sum_totals_v1(ARRAY[r.further_totals, excluded.further_totals], '{}') END
        RETURNING r.family, r.user_id, r.dataset_id, r.level, r.status, r.starts_at, r.sessions
    )
    SELECT coalesce((SELECT sum(q.changes) FROM hour q), 0),
           (SELECT jsonb_agg(jsonb_build_object(
                'family', b.family, 'user_id', b.user_id, 'dataset_id', b.dataset_id, 'level', b.level,
                'status', b.status, 'starts_at', b.starts_at
            )) FROM bucket b WHERE b.sessions = 0),
           d.of_users, d.of_datasets, d.of_moments
    INTO changes, emptied, users, datasets, moments
    FROM (
        SELECT array_agg(t.user_id) AS of_users, array_agg(t.dataset_id) AS of_datasets, array_agg(t.six_hours) AS of_moments
        FROM (SELECT DISTINCT q.user_id, q.dataset_id, date_bin('6 hours', q.starts_at, '2000-01-01 00:00:00+00') AS six_hours
              FROM hour q) t
    ) d;

    WITH change AS (
        DELETE FROM {schema}.session_model_roll_up_changes c
        USING (SELECT o.change_id FROM {schema}.session_model_roll_up_changes o ORDER BY o.change_id LIMIT most) o
        WHERE c.change_id = o.change_id
        RETURNING c.user_id, c.dataset_id, c.starts_at, c.model, c.sessions, c.cost_usd, c.tokens_in, c.tokens_out,
                  c.cache_read_tokens, c.cache_write_tokens, c.reasoning_tokens, c.events, c.unpriced_events,
                  c.further_totals
    ),
    hour AS (
        SELECT c.user_id, c.dataset_id, c.starts_at, c.model, sum(c.sessions)::bigint AS sessions, sum(c.cost_usd) AS cost_usd,
               sum(c.tokens_in) AS tokens_in, sum(c.tokens_out) AS tokens_out,
               sum(c.cache_read_tokens) AS cache_read_tokens, sum(c.cache_write_tokens) AS cache_write_tokens,
               sum(c.reasoning_tokens) AS reasoning_tokens, sum(c.events)::bigint AS events,
               sum(c.unpriced_events)::bigint AS unpriced_events, count(*) AS changes,
               CASE WHEN bool_or(c.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(c.further_totals), '{}') END
                   AS further_totals
        FROM change c
        GROUP BY c.user_id, c.dataset_id, c.starts_at, c.model
    ),
    total AS MATERIALIZED (
        SELECT f.family, f.user_id, f.dataset_id, l.level, l.starts_at, q.model, sum(q.sessions) AS sessions,
               sum(q.cost_usd) AS cost_usd,
               sum(q.tokens_in) AS tokens_in, sum(q.tokens_out) AS tokens_out,
               sum(q.cache_read_tokens) AS cache_read_tokens, sum(q.cache_write_tokens) AS cache_write_tokens,
               sum(q.reasoning_tokens) AS reasoning_tokens, sum(q.events) AS events,
               sum(q.unpriced_events) AS unpriced_events,
               CASE WHEN bool_or(q.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(array_agg(q.further_totals), '{}') END
                   AS further_totals
        FROM hour q
        CROSS JOIN LATERAL {schema}.families(q.user_id, q.dataset_id) f
        CROSS JOIN LATERAL {schema}.levels(q.starts_at) l
        WHERE EXISTS (
            SELECT FROM {schema}.session_roll_ups k
            WHERE k.family = f.family AND k.user_id = f.user_id AND k.dataset_id = f.dataset_id AND k.level = l.level
                AND k.starts_at >= l.since AND k.starts_at < l.until
        )
        GROUP BY f.family, f.user_id, f.dataset_id, l.level, l.starts_at, q.model
    ),
    bucket AS (
        INSERT INTO {schema}.session_model_roll_ups AS r
            (family, user_id, dataset_id, level, starts_at, model, sessions, cost_usd, tokens_in, tokens_out,
             cache_read_tokens, cache_write_tokens, reasoning_tokens, events, unpriced_events, further_totals)
        SELECT t.family, t.user_id, t.dataset_id, t.level, t.starts_at, t.model, t.sessions, t.cost_usd, t.tokens_in,
               t.tokens_out, t.cache_read_tokens, t.cache_write_tokens, t.reasoning_tokens, t.events, t.unpriced_events,
               t.further_totals
        FROM total t
        ORDER BY t.family, t.user_id, t.dataset_id, t.level, t.starts_at, t.model
        ON CONFLICT (family, user_id, dataset_id, level, starts_at, model) DO UPDATE
        SET sessions = r.sessions + excluded.sessions,
            cost_usd = r.cost_usd + excluded.cost_usd,
            tokens_in = r.tokens_in + excluded.tokens_in,
            tokens_out = r.tokens_out + excluded.tokens_out,
            cache_read_tokens = r.cache_read_tokens + excluded.cache_read_tokens,
            cache_write_tokens = r.cache_write_tokens + excluded.cache_write_tokens,
            reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
            events = r.events + excluded.events,
            unpriced_events = r.unpriced_events + excluded.unpriced_events,
            further_totals = CASE WHEN excluded.further_totals IS NULL THEN r.further_totals
                ELSE {schema}.sum_totals_v1(ARRAY[r.further_totals, excluded.further_totals], '{}') END
        RETURNING r.family, r.user_id, r.dataset_id, r.level, r.starts_at, r.model, r.sessions
    )
    SELECT coalesce((SELECT sum(q.changes) FROM hour q), 0),
           (SELECT jsonb_agg(jsonb_build_object(
                'family', b.family, 'user_id', b.user_id, 'dataset_id', b.dataset_id, 'level', b.level,
                'starts_at', b.starts_at, 'model', b.model
            )) FROM bucket b WHERE b.sessions = 0)
    INTO model_changes, emptied_by_model;
    -- The buckets that are empty go after both kinds of changes: these find the kept buckets by those in all.
    DELETE FROM {schema}.session_roll_ups r
    USING jsonb_to_recordset(emptied) e (
        family text, user_id uuid, dataset_id uuid, level text, status text, starts_at timestamptz
    )
    WHERE r.family = e.family AND r.user_id = e.user_id AND r.dataset_id = e.dataset_id AND r.level = e.level
        AND r.status = e.status AND r.starts_at = e.starts_at;
    DELETE FROM {schema}.session_model_roll_ups r
    USING jsonb_to_recordset(emptied_by_model) e (
        family text, user_id uuid, dataset_id uuid, level text, starts_at timestamptz, model text
    )
    WHERE r.family = e.family AND r.user_id = e.user_id AND r.dataset_id = e.dataset_id AND r.level = e.level
        AND r.starts_at = e.starts_at AND r.model = e.model;
    -- Where the last bucket of its siblings goes, none of them is kept, and so none by model.
    DELETE FROM {schema}.session_model_roll_ups r
    USING (
        SELECT DISTINCT e.family, e.user_id, e.dataset_id, l.level, l.since, l.until
        FROM jsonb_to_recordset(emptied) e (
            family text, user_id uuid, dataset_id uuid, level text, starts_at timestamptz
        )
        CROSS JOIN LATERAL {schema}.levels(e.starts_at) l
        WHERE l.level = e.level AND NOT EXISTS (
            SELECT FROM {schema}.session_roll_ups k
            WHERE k.family = e.family AND k.user_id = e.user_id AND k.dataset_id = e.dataset_id AND k.level = e.level
                AND k.starts_at >= l.since AND k.starts_at < l.until
        )
    ) gone
    WHERE r.family = gone.family AND r.user_id = gone.user_id AND r.dataset_id = gone.dataset_id
        AND r.level = gone.level AND r.starts_at >= gone.since AND r.starts_at < gone.until;

    -- From the longest level on, as a part of a divided bucket may be dense itself.
    FOREACH of_level IN ARRAY ARRAY['324 days', '54 days', '9 days', '36 hours', '6 hours', 'hour'] LOOP
        FOR dense IN
            SELECT p.family, p.user_id, p.dataset_id, p.since, p.until
            FROM (
                SELECT DISTINCT f.family, f.user_id, f.dataset_id, l.above, l.since, l.until,
                       {schema}.density(f.family) * l.parts AS enough
                FROM unnest(users, datasets, moments) c (user_id, dataset_id, moment)
                CROSS JOIN LATERAL {schema}.families(c.user_id, c.dataset_id) f
                CROSS JOIN LATERAL {schema}.levels(c.moment) l
                WHERE l.level = of_level
            ) p
            WHERE NOT EXISTS (
                    SELECT FROM {schema}.session_roll_ups k
                    WHERE k.family = p.family AND k.user_id = p.user_id AND k.dataset_id = p.dataset_id
                        AND k.level = of_level AND k.starts_at >= p.since AND k.starts_at < p.until
                )
                AND CASE
                    WHEN p.above IS NULL THEN {schema}.is_dense(p.family, p.user_id, p.dataset_id, p.enough)
                    ELSE p.enough <= (
                        SELECT sum(r.sessions) FROM {schema}.session_roll_ups r
                        WHERE r.family = p.family AND r.user_id = p.user_id AND r.dataset_id = p.dataset_id
                            AND r.level = p.above AND r.starts_at = p.since
                    )
                END
        LOOP
            PERFORM {schema}.add_parts(
                dense.family, dense.user_id, dense.dataset_id, of_level, dense.since, dense.until
            );
        END LOOP;
    END LOOP;
    RETURN changes + model_changes;
END
$body$;
