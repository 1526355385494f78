-- Appends what a session adds to the roll-ups, `sign` 1, or takes away from them, `sign` -1; never a change of a row that
-- others may be at. This is the one place that says what a session adds.
CREATE FUNCTION {schema}.append_rollup_changes_v1(session {schema}.rolled_up_sessions, sign integer) RETURNS void
LANGUAGE plpgsql AS $body$
DECLARE
    quarter_hour timestamptz := date_bin('15 minutes', session.last_activity_at, '2000-01-01 00:00:00+00');
BEGIN
    INSERT INTO {schema}.session_rollup_changes
        (user_id, dataset_id, status, starts_at, sessions, cost_usd, tokens_in, tokens_out, duration_us, unpriced_events,
         unmeasured_events, late_events, late_cost_usd)
    VALUES (
        session.user_id, session.dataset_id, session.status, quarter_hour, sign, sign * session.cost_usd,
        sign * session.tokens_in, sign * session.tokens_out,
        sign * greatest(
            0, extract(epoch FROM coalesce(session.ended_at, session.last_activity_at) - session.started_at) * 1000000
        ),
        sign * session.unpriced_events, sign * session.unmeasured_events, sign * session.late_events,
        sign * session.late_cost_usd
    );
    INSERT INTO {schema}.session_model_rollup_changes
        (user_id, dataset_id, starts_at, model, sessions, cost_usd, tokens_in, tokens_out, cache_read_tokens,
         cache_write_tokens, reasoning_tokens, events, unpriced_events)
    SELECT session.user_id, session.dataset_id, quarter_hour, m.model, sign, sign * m.cost_usd, sign * m.tokens_in,
           sign * m.tokens_out, sign * m.cache_read_tokens, sign * m.cache_write_tokens, sign * m.reasoning_tokens,
           sign * m.events, sign * m.unpriced_events
    FROM jsonb_to_recordset(session.models) m (
        model text, cost_usd numeric, tokens_in numeric, tokens_out numeric, cache_read_tokens numeric,
        cache_write_tokens numeric, reasoning_tokens numeric, events bigint, unpriced_events bigint
    );
END
$body$;
