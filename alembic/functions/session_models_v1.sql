-- What a session used by model, as it is reported: each name once, and nothing of what was revised away.
CREATE FUNCTION {schema}.session_models_v1(of_user uuid, of_session text) RETURNS TABLE (
    model text, cost_usd numeric, tokens_in numeric, tokens_out numeric, cache_read_tokens numeric,
    cache_write_tokens numeric, reasoning_tokens numeric, events numeric, unpriced_events numeric
)
LANGUAGE sql STABLE AS $body$
-- A model named "unknown" and no model are both reported as unknown; a session with both is one of it.
SELECT CASE m.model WHEN '' THEN 'unknown' ELSE m.model END, sum(m.cost_usd), sum(m.tokens_in), sum(m.tokens_out),
       sum(m.cache_read_tokens), sum(m.cache_write_tokens), sum(m.reasoning_tokens), sum(m.events),
       sum(m.unpriced_events)
FROM {schema}.session_model_usage m
WHERE m.user_id = of_user AND m.session_id = of_session
    -- Of a model whose every event was revised away there is nothing to report.
    AND (m.events > 0 OR m.tokens_in > 0 OR m.tokens_out > 0 OR m.cost_usd > 0)
GROUP BY 1
$body$;
