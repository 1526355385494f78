-- Computes what one session adds to the roll-ups (`sign` 1) or takes out of them (`sign` -1). The rule is written here
-- and, by model, in `model_shares_v1`, and nowhere else.
-- Answers one row: the keys and figures of a change of `session_roll_ups`.
-- Raises nothing and takes no lock.
CREATE FUNCTION {schema}.share(
    of_user uuid, of_dataset uuid, of_status text, began_at timestamptz, active_at timestamptz, over_at timestamptz,
    used_tokens_in bigint, used_tokens_out bigint, spent_usd numeric, unpriced bigint, unmeasured bigint, late bigint,
    late_usd numeric, further jsonb, sign integer
) RETURNS TABLE (
    user_id uuid, dataset_id uuid, status text, starts_at timestamptz, sessions bigint, cost_usd numeric,
    tokens_in numeric, tokens_out numeric, duration_us numeric, unpriced_events bigint, unmeasured_events bigint,
    late_events bigint, late_cost_usd numeric, further_totals jsonb
)
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
SELECT of_user, of_dataset, of_status, date_bin('1 hour', active_at, '2000-01-01 00:00:00+00'), sign::bigint,
       sign * spent_usd, sign * used_tokens_in::numeric, sign * used_tokens_out::numeric,
       sign * greatest(0, extract(epoch FROM coalesce(over_at, active_at) - began_at) * 1000000),
       sign * coalesce(unpriced, 0), sign * coalesce(unmeasured, 0), sign * coalesce(late, 0), sign * coalesce(late_usd, 0),
       CASE WHEN sign = 1 OR further IS NULL THEN further ELSE {schema}.sum_totals_v1('{}', ARRAY[further]) END;
END
