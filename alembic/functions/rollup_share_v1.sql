-- What a session adds to the roll-ups, `sign` 1, or takes away from them, `sign` -1. This and the function that tells the
-- same by model are the one place that says it.
CREATE FUNCTION {schema}.rollup_share_v1(session {schema}.rolled_up_sessions, sign integer) RETURNS TABLE (
    user_id uuid, dataset_id uuid, status text, starts_at timestamptz, sessions bigint, cost_usd numeric,
    tokens_in numeric, tokens_out numeric, duration_us numeric, unpriced_events bigint, unmeasured_events bigint,
    late_events bigint, late_cost_usd numeric
)
LANGUAGE sql IMMUTABLE AS $body$
SELECT session.user_id, session.dataset_id, session.status,
       date_bin('15 minutes', session.last_activity_at, '2000-01-01 00:00:00+00'), sign::bigint, sign * session.cost_usd,
       sign * session.tokens_in::numeric, sign * session.tokens_out::numeric,
       sign * greatest(
           0, extract(epoch FROM coalesce(session.ended_at, session.last_activity_at) - session.started_at) * 1000000
       ),
       sign * session.unpriced_events, sign * session.unmeasured_events, sign * session.late_events,
       sign * session.late_cost_usd
$body$;
