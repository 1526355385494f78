-- Computes for each budget of `ids` what is spent in its window and what is reserved, and by how much a call that asks for
-- `asked_usd` and `asked_tokens` would pass its limits. An amount that is null is not known: it passes a limit that is used up.
-- The reservation of the call itself (`own_user, own_session, own_event`) is left out. There is no end of the window: an event
-- from after the clock of this statement counts. So a caller who waited for a lock over midnight counts too much, never too little.
-- Answers a row for each budget, in the order of `ids`. `over_usd` and `over_tokens` are null where the limit holds;
-- `over_unpriced` says that the budget refuses a call whose price is not known. Raises nothing and takes no lock.
-- All budgets are read in the snapshot of the calling statement: a reservation whose event is in it is settled.
CREATE FUNCTION {schema}.budget_use_v1(
    ids text[], own_user uuid, own_session text, own_event uuid, asked_usd numeric, asked_tokens bigint, is_unpriced boolean
) RETURNS TABLE (
    budget_id text,
    user_id uuid,
    session_id text,
    agent_name text,
    dataset_id uuid,
    limit_usd numeric,
    limit_tokens bigint,
    calendar text,
    rolling_us bigint,
    timezone text,
    on_unpriced text,
    since timestamptz,
    spent_usd numeric,
    spent_tokens numeric,
    reserved_usd numeric,
    reserved_tokens numeric,
    unpriced_events bigint,
    unmeasured_events bigint,
    over_usd numeric,
    over_tokens numeric,
    over_unpriced boolean
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
-- A plan for the values at hand: a condition on something that the budget does not name falls away, and with it the join, and
-- the planner knows how much of the ledger the window holds.
SET plan_cache_mode = force_custom_plan
SET jit = off
AS $body$
#variable_conflict use_column
DECLARE
    one record;
    now_at timestamptz := statement_timestamp();
BEGIN
    FOR one IN
        SELECT b.budget_id, b.user_id, b.session_id, b.agent_name, b.dataset_id, b.limit_usd, b.limit_tokens, b.calendar,
               b.rolling_us, b.timezone, b.on_unpriced
        FROM unnest(ids) WITH ORDINALITY i (budget_id, place)
        JOIN {schema}.session_budgets b ON b.budget_id = i.budget_id
        ORDER BY i.place
    LOOP
        budget_id := one.budget_id;
        user_id := one.user_id;
        session_id := one.session_id;
        agent_name := one.agent_name;
        dataset_id := one.dataset_id;
        limit_usd := one.limit_usd;
        limit_tokens := one.limit_tokens;
        calendar := one.calendar;
        rolling_us := one.rolling_us;
        timezone := one.timezone;
        on_unpriced := one.on_unpriced;
        since := {schema}.window_begin(one.calendar, one.rolling_us, one.timezone, now_at);
        IF since IS NULL THEN
            -- Over all time the totals of the sessions are the ledger's. The tokens of late events are in the ledger only.
            SELECT coalesce(sum(s.cost_usd + s.late_cost_usd), 0),
                   coalesce(sum(s.tokens_in::numeric + s.tokens_out + coalesce(l.tokens, 0)), 0),
                   coalesce(sum(s.unpriced_events + l.unpriced), 0), coalesce(sum(s.unmeasured_events + l.unmeasured), 0)
            INTO spent_usd, spent_tokens, unpriced_events, unmeasured_events
            FROM {schema}.session_records s
            CROSS JOIN LATERAL (
                SELECT sum(e.tokens_in + e.tokens_out) AS tokens,
                       count(*) FILTER (WHERE e.measured AND e.cost_usd IS NULL) AS unpriced,
                       count(*) FILTER (WHERE NOT e.measured) AS unmeasured
                FROM {schema}.session_usage_events e
                WHERE s.late_events > 0 AND e.user_id = s.user_id AND e.session_id = s.session_id AND e.late
            ) l
            WHERE (one.user_id IS NULL OR s.user_id = one.user_id)
                AND (one.session_id IS NULL OR s.session_id = one.session_id)
                AND (one.agent_name IS NULL OR s.agent_name = one.agent_name)
                AND (one.dataset_id IS NULL OR s.dataset_id = one.dataset_id);
        ELSE
            SELECT coalesce(sum(e.cost_usd), 0), coalesce(sum(e.tokens_in + e.tokens_out), 0),
                   count(*) FILTER (WHERE e.measured AND e.cost_usd IS NULL), count(*) FILTER (WHERE NOT e.measured)
            INTO spent_usd, spent_tokens, unpriced_events, unmeasured_events
            FROM {schema}.session_usage_events e
            LEFT JOIN {schema}.session_records s ON s.user_id = e.user_id AND s.session_id = e.session_id
            WHERE e.at >= since
                AND (one.user_id IS NULL OR e.user_id = one.user_id)
                AND (one.session_id IS NULL OR e.session_id = one.session_id)
                AND (one.agent_name IS NULL OR s.agent_name = one.agent_name)
                AND (one.dataset_id IS NULL OR s.dataset_id = one.dataset_id);
        END IF;
        -- Whenever it was reserved, a call in flight may be used in this window.
        SELECT coalesce(sum(r.cost_usd), 0), coalesce(sum(r.tokens), 0)
        INTO reserved_usd, reserved_tokens
        FROM {schema}.session_reservations r
        LEFT JOIN {schema}.session_records s ON s.user_id = r.user_id AND s.session_id = r.session_id
        WHERE r.expires_at > now_at
            AND (r.user_id, r.session_id, r.event_id) IS DISTINCT FROM (own_user, own_session, own_event)
            AND (one.user_id IS NULL OR r.user_id = one.user_id)
            AND (one.session_id IS NULL OR r.session_id = one.session_id)
            AND (one.agent_name IS NULL OR coalesce(s.agent_name, r.agent_name) = one.agent_name)
            AND (one.dataset_id IS NULL OR coalesce(s.dataset_id, r.dataset_id) = one.dataset_id)
            AND NOT {schema}.is_settled(r.user_id, r.session_id, r.event_id, r.key_scope);
        over_usd := spent_usd + reserved_usd + coalesce(asked_usd, 0) - one.limit_usd;
        IF over_usd < 0 OR over_usd = 0 AND asked_usd IS NOT NULL THEN
            over_usd := NULL;
        END IF;
        over_tokens := spent_tokens + reserved_tokens + coalesce(asked_tokens, 0) - one.limit_tokens;
        IF over_tokens < 0 OR over_tokens = 0 AND asked_tokens IS NOT NULL THEN
            over_tokens := NULL;
        END IF;
        over_unpriced := is_unpriced AND one.limit_usd IS NOT NULL AND one.on_unpriced = 'refuse';
        RETURN NEXT;
    END LOOP;
END
$body$;
