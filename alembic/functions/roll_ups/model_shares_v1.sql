-- Computes what one session adds to the roll-ups by model (`sign` 1) or takes out of them (`sign` -1). `models` is what
-- `session_models_v1` answers of the session.
-- Answers a row for each model: the keys and figures of a change of `session_model_roll_ups`.
-- Raises nothing and takes no lock.
CREATE FUNCTION {schema}.model_shares_v1(
    of_user uuid, of_dataset uuid, active_at timestamptz, models json, sign integer
) RETURNS TABLE (
    user_id uuid, dataset_id uuid, starts_at timestamptz, model text, sessions bigint, cost_usd numeric,
    tokens_in numeric, tokens_out numeric, cache_read_tokens numeric, cache_write_tokens numeric,
    reasoning_tokens numeric, events bigint, unpriced_events bigint, further_totals jsonb
)
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT of_user, of_dataset, date_bin('1 hour', active_at, '2000-01-01 00:00:00+00'), m.m, sign::bigint,
       sign * coalesce(m.c, 0), sign * coalesce(m.i, 0), sign * coalesce(m.o, 0), sign * coalesce(m.r, 0),
       sign * coalesce(m.w, 0), sign * coalesce(m.z, 0), sign * coalesce(m.e, 0), sign * coalesce(m.u, 0),
       CASE WHEN sign = 1 OR m.f IS NULL THEN m.f ELSE {schema}.sum_totals_v1('{}', ARRAY[m.f]) END
FROM json_to_recordset(models) m (
    m text, c numeric, i numeric, o numeric, r numeric, w numeric, z numeric, e bigint, u bigint, f jsonb
);
END
