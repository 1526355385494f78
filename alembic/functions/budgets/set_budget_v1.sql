-- Sets a budget: creates it, or replaces the one with its id.
-- Answers whether it is new. Raises `SL006` where Postgres does not know the time zone, and `SL007` where twenty other budgets
-- have the same user, session, agent and dataset: the answer of a reservation has a bound. Lets through `SL004` of
-- `refuse_erased`.
-- Locks: the advisory lock with seed 8 on the empty id, which no budget has; then that of `refuse_erased`, then the budget's row.
CREATE FUNCTION {schema}.set_budget_v1(
    of_budget text, of_user uuid, of_session text, of_agent text, of_dataset uuid, most_usd numeric, most_tokens bigint,
    of_calendar text, of_rolling_us bigint, zone text, with_unpriced text
) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $body$
DECLARE
    is_new boolean;
BEGIN
    BEGIN
        PERFORM {schema}.window_begin('day', NULL, zone, statement_timestamp());
    EXCEPTION WHEN invalid_parameter_value THEN
        RAISE EXCEPTION USING ERRCODE = 'SL006', MESSAGE = 'the time zone is not known', DETAIL = zone;
    END;
    PERFORM pg_advisory_xact_lock(hashtextextended(pg_typeof(NULL::{schema}.session_budgets)::oid::text, 8))
    FROM (SELECT count(*) FROM {schema}.session_buckets) here;
    IF of_user IS NOT NULL THEN
        PERFORM {schema}.refuse_erased(of_user);
    END IF;
    IF 20 <= (
        SELECT count(*)
        FROM {schema}.session_budgets b
        WHERE b.budget_id <> of_budget
            AND (b.user_id, b.session_id, b.agent_name, b.dataset_id)
                IS NOT DISTINCT FROM (of_user, of_session, of_agent, of_dataset)
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'SL007', MESSAGE = 'too many budgets of one kind', DETAIL = of_budget;
    END IF;
    is_new := NOT EXISTS (SELECT FROM {schema}.session_budgets b WHERE b.budget_id = of_budget);
    INSERT INTO {schema}.session_budgets AS b (
        budget_id, user_id, session_id, agent_name, dataset_id, limit_usd, limit_tokens, calendar, rolling_us, timezone,
        on_unpriced
    )
    VALUES (
        of_budget, of_user, of_session, of_agent, of_dataset, most_usd, most_tokens, of_calendar, of_rolling_us, zone,
        with_unpriced
    )
    ON CONFLICT (budget_id) DO UPDATE
    SET user_id = excluded.user_id, session_id = excluded.session_id, agent_name = excluded.agent_name,
        dataset_id = excluded.dataset_id, limit_usd = excluded.limit_usd, limit_tokens = excluded.limit_tokens,
        calendar = excluded.calendar, rolling_us = excluded.rolling_us, timezone = excluded.timezone,
        on_unpriced = excluded.on_unpriced;
    RETURN is_new;
END
$body$;
