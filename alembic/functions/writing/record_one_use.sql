-- Writes the usual use: one plain event, new, of a session that is running. Two short statements write it.
-- Answers one row for the outcome `applied`. Answers none where anything is different; then nothing was written, and
-- `record_wave` decides.
-- Raises nothing.
-- Locks: the session's row, before it writes to the ledger (rule R10).
CREATE FUNCTION {schema}.record_one_use(item jsonb, now_at timestamptz) RETURNS TABLE (
    event_cost_usd numeric,
    session_tokens_in bigint,
    session_tokens_out bigint,
    session_cost_usd numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
BEGIN
    -- In every function a session is locked before its events (rule R10).
    PERFORM 1 FROM {schema}.session_records s
    WHERE s.user_id = (item ->> 'user_id')::uuid AND s.session_id = item ->> 'session_id' AND s.status = 'running'
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH used AS MATERIALIZED (
        SELECT i.user_id, i.session_id, i.event_id, i.dataset_id, i.model, i.provider, i.cost_usd, i.given_cost_usd,
               i.price_source, i.unit_prices, i.idempotency_key,
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
               (i.cost_usd IS NULL AND coalesce(i.measured, true))::int AS unpriced
        FROM jsonb_to_record(item) AS i (
            user_id uuid, session_id text, at timestamptz, dataset_id uuid, event_id uuid, model text, provider text,
            tokens_in bigint, tokens_out bigint, cache_read_tokens bigint, cache_write_tokens bigint,
            reasoning_tokens bigint, cost_usd numeric, given_cost_usd numeric, price_source text, unit_prices jsonb,
            errored boolean, measured boolean, idempotency_key text, details jsonb, touch boolean
        )
        WHERE i.tokens_in > 0 OR i.tokens_out > 0 OR i.cost_usd > 0 OR NOT i.measured
    ),
    event AS (
        INSERT INTO {schema}.session_usage_events
            (user_id, session_id, event_id, at, recorded_at, model, provider, tokens_in, tokens_out,
             cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, given_cost_usd, price_source, unit_prices,
             errored, measured, idempotency_key, details)
        SELECT u.user_id, u.session_id, u.event_id, u.moment, now_at, u.model, u.provider, u.tokens_in, u.tokens_out,
               u.cache_read_tokens, u.cache_write_tokens, u.reasoning_tokens, u.cost_usd, u.given_cost_usd,
               u.price_source, u.unit_prices, u.errored, u.measured, u.idempotency_key, u.details
        FROM used u
        ON CONFLICT DO NOTHING
        RETURNING true AS is_new
    ),
    model_usage AS (
        INSERT INTO {schema}.session_model_usage AS m
            (user_id, session_id, model, tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens,
             cost_usd, events, unpriced_events, unmeasured_events)
        SELECT u.user_id, u.session_id, coalesce(u.model, ''), u.tokens_in, u.tokens_out, u.cache_read_tokens,
               u.cache_write_tokens, u.reasoning_tokens, coalesce(u.cost_usd, 0), 1, u.unpriced, (NOT u.measured)::int
        FROM used u, event
        ON CONFLICT (user_id, session_id, model) DO UPDATE
        SET tokens_in = m.tokens_in + excluded.tokens_in,
            tokens_out = m.tokens_out + excluded.tokens_out,
            cache_read_tokens = m.cache_read_tokens + excluded.cache_read_tokens,
            cache_write_tokens = m.cache_write_tokens + excluded.cache_write_tokens,
            reasoning_tokens = m.reasoning_tokens + excluded.reasoning_tokens,
            cost_usd = m.cost_usd + excluded.cost_usd,
            events = m.events + 1,
            unpriced_events = m.unpriced_events + excluded.unpriced_events,
            unmeasured_events = m.unmeasured_events + excluded.unmeasured_events
    )
    UPDATE {schema}.session_records s
    SET tokens_in = s.tokens_in + u.tokens_in,
        tokens_out = s.tokens_out + u.tokens_out,
        cache_read_tokens = s.cache_read_tokens + u.cache_read_tokens,
        cache_write_tokens = s.cache_write_tokens + u.cache_write_tokens,
        reasoning_tokens = s.reasoning_tokens + u.reasoning_tokens,
        cost_usd = s.cost_usd + coalesce(u.cost_usd, 0),
        error_count = s.error_count + u.errored::int,
        unpriced_events = s.unpriced_events + u.unpriced,
        unmeasured_events = s.unmeasured_events + (NOT u.measured)::int,
        last_model = CASE WHEN u.model IS NULL OR u.moment < s.last_model_at THEN s.last_model ELSE u.model END,
        last_model_at = CASE WHEN u.model IS NULL THEN s.last_model_at ELSE greatest(s.last_model_at, u.moment) END,
        last_activity_at = CASE WHEN u.touch THEN greatest(s.last_activity_at, u.moment) ELSE s.last_activity_at END,
        started_at = CASE WHEN u.touch THEN least(s.started_at, u.moment) ELSE s.started_at END,
        dataset_id = coalesce(s.dataset_id, u.dataset_id),
        derived = false
    FROM used u, event
    WHERE s.user_id = u.user_id AND s.session_id = u.session_id
    RETURNING u.cost_usd, s.tokens_in, s.tokens_out, s.cost_usd;
END
$body$;
