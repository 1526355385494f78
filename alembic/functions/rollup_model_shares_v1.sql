-- What a session adds to the roll-ups by model, or takes away from them: a row for each model.
CREATE FUNCTION {schema}.rollup_model_shares_v1(session {schema}.rolled_up_sessions, sign integer) RETURNS TABLE (
    user_id uuid, dataset_id uuid, starts_at timestamptz, model text, sessions bigint, cost_usd numeric,
    tokens_in numeric, tokens_out numeric, cache_read_tokens numeric, cache_write_tokens numeric,
    reasoning_tokens numeric, events bigint, unpriced_events bigint
)
LANGUAGE sql STABLE AS $body$
SELECT session.user_id, session.dataset_id,
       date_bin('15 minutes', session.last_activity_at, '2000-01-01 00:00:00+00'), m.model, sign::bigint,
       sign * m.cost_usd, sign * m.tokens_in, sign * m.tokens_out, sign * m.cache_read_tokens,
       sign * m.cache_write_tokens, sign * m.reasoning_tokens, sign * m.events, sign * m.unpriced_events
FROM jsonb_to_recordset(session.models) m (
    model text, cost_usd numeric, tokens_in numeric, tokens_out numeric, cache_read_tokens numeric,
    cache_write_tokens numeric, reasoning_tokens numeric, events bigint, unpriced_events bigint
)
$body$;
