-- Appends what a session adds to the roll-ups, `sign` 1, or takes away from them, `sign` -1; never a change of a row that
-- others may be at.
CREATE FUNCTION {schema}.append_rollup_changes_v1(session {schema}.rolled_up_sessions, sign integer) RETURNS void
LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO {schema}.session_rollup_changes
        (user_id, dataset_id, status, starts_at, sessions, cost_usd, tokens_in, tokens_out, duration_us, unpriced_events,
         unmeasured_events, late_events, late_cost_usd)
    SELECT * FROM {schema}.rollup_share_v1(session, sign);
    INSERT INTO {schema}.session_model_rollup_changes
        (user_id, dataset_id, starts_at, model, sessions, cost_usd, tokens_in, tokens_out, cache_read_tokens,
         cache_write_tokens, reasoning_tokens, events, unpriced_events)
    SELECT * FROM {schema}.rollup_model_shares_v1(session, sign);
END
$body$;
