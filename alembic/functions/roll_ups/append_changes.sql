-- Appends to the roll-ups what one session adds to them (`sign` 1) or takes out of them (`sign` -1), given by its row of
-- `rolled_up_sessions`. It only inserts, so nobody waits for it and it waits for nobody.
-- Answers nothing, raises nothing and takes no lock.
CREATE FUNCTION {schema}.append_changes(
    of_user uuid, of_dataset uuid, of_status text, began_at timestamptz, active_at timestamptz, over_at timestamptz,
    used_tokens_in bigint, used_tokens_out bigint, spent_usd numeric, unpriced bigint, unmeasured bigint, late bigint,
    late_usd numeric, further jsonb, models json, sign integer
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    INSERT INTO {schema}.session_roll_up_changes
        (user_id, dataset_id, status, starts_at, sessions, cost_usd, tokens_in, tokens_out, duration_us, unpriced_events,
         unmeasured_events, late_events, late_cost_usd, further_totals)
    SELECT c.user_id, c.dataset_id, c.status, c.starts_at, c.sessions, c.cost_usd, c.tokens_in, c.tokens_out,
           c.duration_us, c.unpriced_events, c.unmeasured_events, c.late_events, c.late_cost_usd, c.further_totals
    FROM {schema}.share(
        of_user, of_dataset, of_status, began_at, active_at, over_at, used_tokens_in, used_tokens_out, spent_usd,
        unpriced, unmeasured, late, late_usd, further, sign
    ) c;
    INSERT INTO {schema}.session_model_roll_up_changes
        (user_id, dataset_id, starts_at, model, sessions, cost_usd, tokens_in, tokens_out, cache_read_tokens,
         cache_write_tokens, reasoning_tokens, events, unpriced_events, further_totals)
    SELECT c.user_id, c.dataset_id, c.starts_at, c.model, c.sessions, c.cost_usd, c.tokens_in, c.tokens_out,
           c.cache_read_tokens, c.cache_write_tokens, c.reasoning_tokens, c.events, c.unpriced_events,
           c.further_totals
    FROM {schema}.model_shares_v1(of_user, of_dataset, active_at, models, sign) c;
END
$body$;
