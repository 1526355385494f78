-- Computes what one usage event adds to further totals (README.md, "Further totals").
-- Answers null where it adds nothing to them, as most events do. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.event_totals_v1(
    parts jsonb, billing text, is_partial boolean, is_measured boolean, tokens_in bigint, tokens_out bigint,
    plan_cost_usd numeric
) RETURNS jsonb
LANGUAGE sql STABLE
RETURN CASE
    WHEN parts IS NOT NULL OR billing = 'plan' OR is_partial THEN nullif(jsonb_strip_nulls(
        coalesce(parts, '{}'::jsonb)
        || CASE WHEN billing = 'plan' THEN jsonb_build_object(
               'plan_events', 1,
               'plan_tokens_in', nullif(tokens_in, 0),
               'plan_tokens_out', nullif(tokens_out, 0),
               'plan_cost_usd', nullif(plan_cost_usd, 0),
               'plan_unpriced_events', CASE WHEN is_measured AND plan_cost_usd IS NULL THEN 1 END
           ) ELSE '{}'::jsonb END
        || CASE WHEN is_partial THEN '{"partial_events": 1}'::jsonb ELSE '{}' END
    ), '{}')
END
