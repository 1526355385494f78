-- Writes the usual batch: touches and new usage of sessions that are running. One short statement writes it.
-- Answers a row for each item.
-- Raises `SL001` where a session does not exist or has ended, and `unique_violation` where a key is held already. `record_v1`
-- catches both, and `record_wave` decides.
-- Locks: the sessions' rows, in the order of their keys (rule R10).
CREATE FUNCTION {schema}.record_plain(items jsonb, now_at timestamptz) RETURNS TABLE (
    item_position int,
    outcome text,
    event_cost_usd numeric,
    session_tokens_in bigint,
    session_tokens_out bigint,
    session_cost_usd numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_mergejoin = off SET jit = off
AS $body$
#variable_conflict use_column
DECLARE
    written int;
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT i.position, i.kind, i.user_id, i.session_id COLLATE "C" AS session_id, i.dataset_id, i.agent_name, i.title,
               i.event_id, i.model, i.provider, i.cost_usd, i.given_cost_usd, i.price_source, i.unit_prices,
               i.idempotency_key,
               coalesce(i.at, now_at) AS moment,
               coalesce(i.tokens_in, 0) AS tokens_in,
               coalesce(i.tokens_out, 0) AS tokens_out,
               coalesce(i.cache_read_tokens, 0) AS cache_read_tokens,
               coalesce(i.cache_write_tokens, 0) AS cache_write_tokens,
               coalesce(i.reasoning_tokens, 0) AS reasoning_tokens,
               coalesce(i.errored, false) AS errored,
               coalesce(i.measured, true) AS measured,
               coalesce(i.details, '{}') AS details,
               coalesce(i.touch, true) AS touch,
               (i.kind = 'usage' AND i.cost_usd IS NULL AND coalesce(i.measured, true))::int AS unpriced,
               coalesce(i.tokens_in > 0 OR i.tokens_out > 0 OR i.cost_usd > 0 OR NOT i.measured, false) AS is_measurement
        FROM jsonb_to_recordset(items) AS i (
            position int, kind text, user_id uuid, session_id text, at timestamptz, dataset_id uuid, agent_name text,
            title text, event_id uuid, model text, provider text, tokens_in bigint, tokens_out bigint,
            cache_read_tokens bigint, cache_write_tokens bigint, reasoning_tokens bigint, cost_usd numeric,
            given_cost_usd numeric, price_source text, unit_prices jsonb, errored boolean, measured boolean,
            idempotency_key text, details jsonb, touch boolean
        )
    ),
    session_change AS (
        SELECT i.user_id, i.session_id,
               min(i.moment) FILTER (WHERE i.touch) AS started_at,
               max(i.moment) FILTER (WHERE i.touch) AS last_activity_at,
               (array_agg(i.dataset_id ORDER BY i.position) FILTER (WHERE i.dataset_id IS NOT NULL))[1] AS dataset_id,
               (array_agg(i.agent_name ORDER BY i.position) FILTER (WHERE i.agent_name IS NOT NULL))[1] AS agent_name,
               (array_agg(i.title ORDER BY i.position) FILTER (WHERE i.title IS NOT NULL))[1] AS title,
               (array_agg(i.model ORDER BY i.moment DESC, i.position DESC) FILTER (WHERE i.model IS NOT NULL))[1]
                   AS last_model,
               max(i.moment) FILTER (WHERE i.model IS NOT NULL) AS last_model_at,
               sum(i.tokens_in)::bigint AS tokens_in,
               sum(i.tokens_out)::bigint AS tokens_out,
               sum(i.cache_read_tokens)::bigint AS cache_read_tokens,
               sum(i.cache_write_tokens)::bigint AS cache_write_tokens,
               sum(i.reasoning_tokens)::bigint AS reasoning_tokens,
               sum(coalesce(i.cost_usd, 0)) AS cost_usd,
               count(*) FILTER (WHERE i.errored) AS error_count,
               sum(i.unpriced) AS unpriced_events,
               count(*) FILTER (WHERE NOT i.measured) AS unmeasured_events
        FROM item i
        GROUP BY i.user_id, i.session_id
        ORDER BY i.user_id, i.session_id
    ),
    -- This takes the sessions' locks, in their order, before anything else is written (rule R10). ANY of an array leaves
    -- the planner one way only: to look the sessions up one after another, in the order in which they come.
    session AS (
        UPDATE {schema}.session_records s
        SET started_at = least(s.started_at, c.started_at),
            last_activity_at = greatest(s.last_activity_at, c.last_activity_at),
            own_started_at = CASE WHEN c.started_at <= s.started_at THEN NULL
                                  WHEN (s.derived OR c.started_at < s.own_started_at) THEN c.started_at
                                  ELSE s.own_started_at END,
            own_last_activity_at = CASE WHEN c.last_activity_at >= s.last_activity_at THEN NULL
                                        WHEN (s.derived OR c.last_activity_at > s.own_last_activity_at)
                                            THEN c.last_activity_at
                                        ELSE s.own_last_activity_at END,
            dataset_id = coalesce(s.dataset_id, c.dataset_id),
            agent_name = coalesce(s.agent_name, c.agent_name),
            title = coalesce(s.title, c.title),
            last_model = CASE WHEN c.last_model_at < s.last_model_at THEN s.last_model
                              ELSE coalesce(c.last_model, s.last_model) END,
            last_model_at = greatest(s.last_model_at, c.last_model_at),
            tokens_in = s.tokens_in + c.tokens_in,
            tokens_out = s.tokens_out + c.tokens_out,
            cache_read_tokens = s.cache_read_tokens + c.cache_read_tokens,
            cache_write_tokens = s.cache_write_tokens + c.cache_write_tokens,
            reasoning_tokens = s.reasoning_tokens + c.reasoning_tokens,
            cost_usd = s.cost_usd + c.cost_usd,
            error_count = s.error_count + c.error_count,
            unpriced_events = s.unpriced_events + c.unpriced_events,
            unmeasured_events = s.unmeasured_events + c.unmeasured_events,
            derived = false
        FROM session_change c
        WHERE s.user_id = ANY (ARRAY[c.user_id]) AND s.session_id = ANY (ARRAY[c.session_id]) AND s.status = 'running'
        RETURNING s.user_id, s.session_id, s.tokens_in - c.tokens_in AS tokens_in,
                  s.tokens_out - c.tokens_out AS tokens_out, s.cost_usd - c.cost_usd AS cost_usd
    ),
    locked AS MATERIALIZED (
        SELECT count(*) AS sessions FROM session
    ),
    -- Without ON CONFLICT, which would look each key up before it inserts and confirm each row afterwards.
    event AS (
        INSERT INTO {schema}.session_usage_events
            (user_id, session_id, event_id, at, recorded_at, model, provider, tokens_in, tokens_out,
             cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, given_cost_usd, price_source, unit_prices,
             errored, measured, idempotency_key, details)
        -- A microsecond for each item keeps the order of the items, as in `record_wave`.
        SELECT i.user_id, i.session_id, i.event_id, i.moment, now_at + i.position * interval '1 microsecond', i.model,
               i.provider, i.tokens_in, i.tokens_out, i.cache_read_tokens, i.cache_write_tokens, i.reasoning_tokens, i.cost_usd, i.given_cost_usd,
               i.price_source, i.unit_prices, i.errored, i.measured, i.idempotency_key, i.details
        FROM locked, item i
        WHERE locked.sessions > 0 AND i.kind = 'usage' AND (i.idempotency_key IS NOT NULL OR i.is_measurement)
    ),
    model_usage AS (
        INSERT INTO {schema}.session_model_usage AS m
            (user_id, session_id, model, tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens,
             cost_usd, events, unpriced_events, unmeasured_events)
        SELECT i.user_id, i.session_id, min(coalesce(i.model, '') COLLATE "C"), sum(i.tokens_in), sum(i.tokens_out),
               sum(i.cache_read_tokens), sum(i.cache_write_tokens), sum(i.reasoning_tokens), sum(coalesce(i.cost_usd, 0)),
               count(*), sum(i.unpriced), count(*) FILTER (WHERE NOT i.measured)
        FROM locked, item i
        WHERE locked.sessions > 0 AND i.is_measurement
        GROUP BY i.user_id, i.session_id, lower(coalesce(i.model, '') COLLATE "C")
        ON CONFLICT (user_id, session_id, model_key) DO UPDATE
        SET tokens_in = m.tokens_in + excluded.tokens_in,
            tokens_out = m.tokens_out + excluded.tokens_out,
            cache_read_tokens = m.cache_read_tokens + excluded.cache_read_tokens,
            cache_write_tokens = m.cache_write_tokens + excluded.cache_write_tokens,
            reasoning_tokens = m.reasoning_tokens + excluded.reasoning_tokens,
            cost_usd = m.cost_usd + excluded.cost_usd,
            events = m.events + excluded.events,
            unpriced_events = m.unpriced_events + excluded.unpriced_events,
            unmeasured_events = m.unmeasured_events + excluded.unmeasured_events
    )
    SELECT i.position,
           CASE WHEN i.kind = 'usage' THEN 'applied' ELSE 'touched' END,
           i.cost_usd,
           (s.tokens_in + sum(i.tokens_in) OVER earlier)::bigint,
           (s.tokens_out + sum(i.tokens_out) OVER earlier)::bigint,
           s.cost_usd + sum(coalesce(i.cost_usd, 0)) OVER earlier
    FROM session s
    JOIN item i ON i.user_id = s.user_id AND i.session_id = s.session_id
    WINDOW earlier AS (PARTITION BY i.user_id, i.session_id ORDER BY i.position);
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written < jsonb_array_length(items) THEN
        RAISE EXCEPTION USING ERRCODE = 'SL001', MESSAGE = 'a session is not there or has ended';
    END IF;
END
$body$;
