-- Puts the oldest changes into the roll-ups, at most so many of each kind, and returns how many it was. One at a time: the
-- roll-ups have a single writer, and nobody who records anything waits for it. A bucket that is empty then goes.
CREATE FUNCTION {schema}.compact_rollups_v1(most integer) RETURNS bigint
LANGUAGE plpgsql
-- A few thousand buckets are looked up by their keys, and sorted in memory.
SET enable_hashjoin = off SET enable_mergejoin = off SET work_mem = '64MB' SET jit = off
AS $body$
DECLARE
    changes bigint;
    model_changes bigint;
    emptied {schema}.session_rollups[];
    emptied_of_model {schema}.session_model_rollups[];
BEGIN
    PERFORM {schema}.lock_rollups_v1();
    WITH change AS (
        DELETE FROM {schema}.session_rollup_changes c
        USING (SELECT o.change_id FROM {schema}.session_rollup_changes o ORDER BY o.change_id LIMIT most) o
        WHERE c.change_id = o.change_id
        RETURNING c.*
    ),
    quarter_hour AS (
        SELECT c.user_id, c.dataset_id, c.status, c.starts_at, sum(c.sessions)::bigint AS sessions,
               sum(c.cost_usd) AS cost_usd, sum(c.tokens_in) AS tokens_in, sum(c.tokens_out) AS tokens_out,
               sum(c.duration_us) AS duration_us, sum(c.unpriced_events)::bigint AS unpriced_events,
               sum(c.unmeasured_events)::bigint AS unmeasured_events, sum(c.late_events)::bigint AS late_events,
               sum(c.late_cost_usd) AS late_cost_usd, count(*) AS changes
        FROM change c
        GROUP BY c.user_id, c.dataset_id, c.status, c.starts_at
    ),
    bucket AS (
        INSERT INTO {schema}.session_rollups AS r
            (family, user_id, dataset_id, level, status, starts_at, sessions, cost_usd, tokens_in, tokens_out, duration_us,
             unpriced_events, unmeasured_events, late_events, late_cost_usd)
        SELECT f.family, f.user_id, f.dataset_id, l.level, q.status, l.starts_at, sum(q.sessions), sum(q.cost_usd),
               sum(q.tokens_in), sum(q.tokens_out), sum(q.duration_us), sum(q.unpriced_events), sum(q.unmeasured_events),
               sum(q.late_events), sum(q.late_cost_usd)
        FROM quarter_hour q
        CROSS JOIN LATERAL {schema}.rollup_families_v1(q.user_id, q.dataset_id) f
        CROSS JOIN LATERAL {schema}.rollup_levels_v1(q.starts_at) l
        GROUP BY f.family, f.user_id, f.dataset_id, l.level, q.status, l.starts_at
        ORDER BY f.family, f.user_id, f.dataset_id, l.level, q.status, l.starts_at
        ON CONFLICT (family, user_id, dataset_id, level, status, starts_at) DO UPDATE
        SET sessions = r.sessions + excluded.sessions,
            cost_usd = r.cost_usd + excluded.cost_usd,
            tokens_in = r.tokens_in + excluded.tokens_in,
            tokens_out = r.tokens_out + excluded.tokens_out,
            duration_us = r.duration_us + excluded.duration_us,
            unpriced_events = r.unpriced_events + excluded.unpriced_events,
            unmeasured_events = r.unmeasured_events + excluded.unmeasured_events,
            late_events = r.late_events + excluded.late_events,
            late_cost_usd = r.late_cost_usd + excluded.late_cost_usd
        RETURNING r
    )
    SELECT coalesce((SELECT sum(q.changes) FROM quarter_hour q), 0),
           (SELECT array_agg(b.r) FROM bucket b WHERE (b.r).sessions = 0)
    INTO changes, emptied;
    DELETE FROM {schema}.session_rollups r
    USING unnest(emptied) e
    WHERE r.family = e.family AND r.user_id = e.user_id AND r.dataset_id = e.dataset_id AND r.level = e.level
        AND r.status = e.status AND r.starts_at = e.starts_at;

    WITH change AS (
        DELETE FROM {schema}.session_model_rollup_changes c
        USING (SELECT o.change_id FROM {schema}.session_model_rollup_changes o ORDER BY o.change_id LIMIT most) o
        WHERE c.change_id = o.change_id
        RETURNING c.*
    ),
    quarter_hour AS (
        SELECT c.user_id, c.dataset_id, c.starts_at, c.model, sum(c.sessions)::bigint AS sessions, sum(c.cost_usd) AS cost_usd,
               sum(c.tokens_in) AS tokens_in, sum(c.tokens_out) AS tokens_out,
               sum(c.cache_read_tokens) AS cache_read_tokens, sum(c.cache_write_tokens) AS cache_write_tokens,
               sum(c.reasoning_tokens) AS reasoning_tokens, sum(c.events)::bigint AS events,
               sum(c.unpriced_events)::bigint AS unpriced_events, count(*) AS changes
        FROM change c
        GROUP BY c.user_id, c.dataset_id, c.starts_at, c.model
    ),
    bucket AS (
        INSERT INTO {schema}.session_model_rollups AS r
            (family, user_id, dataset_id, level, starts_at, model, sessions, cost_usd, tokens_in, tokens_out,
             cache_read_tokens, cache_write_tokens, reasoning_tokens, events, unpriced_events)
        SELECT f.family, f.user_id, f.dataset_id, l.level, l.starts_at, q.model, sum(q.sessions), sum(q.cost_usd),
               sum(q.tokens_in), sum(q.tokens_out), sum(q.cache_read_tokens), sum(q.cache_write_tokens),
               sum(q.reasoning_tokens), sum(q.events), sum(q.unpriced_events)
        FROM quarter_hour q
        CROSS JOIN LATERAL {schema}.rollup_families_v1(q.user_id, q.dataset_id) f
        CROSS JOIN LATERAL {schema}.rollup_levels_v1(q.starts_at) l
        GROUP BY f.family, f.user_id, f.dataset_id, l.level, l.starts_at, q.model
        ORDER BY f.family, f.user_id, f.dataset_id, l.level, l.starts_at, q.model
        ON CONFLICT (family, user_id, dataset_id, level, starts_at, model) DO UPDATE
        SET sessions = r.sessions + excluded.sessions,
            cost_usd = r.cost_usd + excluded.cost_usd,
            tokens_in = r.tokens_in + excluded.tokens_in,
            tokens_out = r.tokens_out + excluded.tokens_out,
            cache_read_tokens = r.cache_read_tokens + excluded.cache_read_tokens,
            cache_write_tokens = r.cache_write_tokens + excluded.cache_write_tokens,
            reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
            events = r.events + excluded.events,
            unpriced_events = r.unpriced_events + excluded.unpriced_events
        RETURNING r
    )
    SELECT coalesce((SELECT sum(q.changes) FROM quarter_hour q), 0),
           (SELECT array_agg(b.r) FROM bucket b WHERE (b.r).sessions = 0)
    INTO model_changes, emptied_of_model;
    DELETE FROM {schema}.session_model_rollups r
    USING unnest(emptied_of_model) e
    WHERE r.family = e.family AND r.user_id = e.user_id AND r.dataset_id = e.dataset_id AND r.level = e.level
        AND r.starts_at = e.starts_at AND r.model = e.model;
    RETURN changes + model_changes;
END
$body$;
