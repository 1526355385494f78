-- Computes what one session adds to the roll-ups by model (`sign` 1) or takes out of them (`sign` -1). `models` is what
-- `session_models_v1` answers of the session.
-- Answers a row for each model: the keys and figures of a change of `session_model_roll_ups`.
-- Raises nothing and takes no lock.
CREATE FUNCTION {schema}.model_shares_v1(
    of_user uuid, of_dataset uuid, active_at timestamptz, models jsonb, sign integer
) RETURNS TABLE (
    user_id uuid, dataset_id uuid, starts_at timestamptz, model text, sessions bigint, cost_usd numeric,
    tokens_in numeric, tokens_out numeric, cache_read_tokens numeric, cache_write_tokens numeric,
    reasoning_tokens numeric, events bigint, unpriced_events bigint, further_totals jsonb
)
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT of_user, of_dataset, date_bin('15 minutes', active_at, '2000-01-01 00:00:00+00'), m.model, sign::bigint,
       sign * m.cost_usd, sign * m.tokens_in, sign * m.tokens_out, sign * m.cache_read_tokens,
       sign * m.cache_write_tokens, sign * m.reasoning_tokens, sign * m.events, sign * m.unpriced_events,
       CASE WHEN sign = 1 OR m.further_totals IS NULL THEN m.further_totals
            ELSE {schema}.sum_totals_v1('{}', ARRAY[m.further_totals]) END
FROM jsonb_to_recordset(models) m (
    model text, cost_usd numeric, tokens_in numeric, tokens_out numeric, cache_read_tokens numeric,
    cache_write_tokens numeric, reasoning_tokens numeric, events bigint, unpriced_events bigint, further_totals jsonb
);
END
