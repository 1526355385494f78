-- Reserves an amount in every budget that counts the event to come, or in none. A reservation with the same key is replaced,
-- so that the call can be repeated. First the locks of all budgets are taken; what is spent and reserved is read by a later
-- statement, whose snapshot has what others committed while this one waited.
-- Answers one row with the outcome `reserved`, `recorded` where the ledger has the event already, or `unlimited` where no budget
-- counts it, and nothing is written; or `refused`, a row for each budget that refuses. Lets through `SL004` of `refuse_erased`.
-- Locks: the advisory locks with seed 8 on the budgets, in the order of their ids (rule R10), then that of `refuse_erased`, then
-- the row of the reservation. Of the rows that it cleans up it skips those that somebody else has locked.
CREATE FUNCTION {schema}.reserve_v1(
    of_user uuid, of_session text, of_event uuid, scope text, given_agent text, given_dataset uuid, asked_usd numeric,
    asked_tokens bigint, is_unpriced boolean, lease_us bigint
) RETURNS TABLE (
    outcome text,
    ends_at timestamptz,
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
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- For the reason in `budget_use_v1`.
SET plan_cache_mode = force_custom_plan
SET jit = off
AS $body$
#variable_conflict use_column
DECLARE
    ids text[];
    one record;
    now_at timestamptz := statement_timestamp();
BEGIN
    IF {schema}.is_settled(of_user, of_session, of_event, scope) THEN
        outcome := 'recorded';
        RETURN NEXT;
        RETURN;
    END IF;
    ids := {schema}.applying_budgets_v1(of_user, of_session, given_agent, given_dataset);
    IF ids = '{}' THEN
        outcome := 'unlimited';
        RETURN NEXT;
        RETURN;
    END IF;
    FOR place IN 1..cardinality(ids) LOOP
        -- The type of the table's rows stands for the schema: each schema has its own.
        PERFORM pg_advisory_xact_lock(
            hashtextextended(pg_typeof(NULL::{schema}.session_budgets)::oid::text || ids[place], 8)
        )
        FROM (SELECT count(*) FROM {schema}.session_buckets) here;
    END LOOP;

    -- Recording settles a reservation and writes nothing for it, so the settled rows are deleted here: those that these
    -- budgets count, and a hundred that expired. One call in sixteen does it, as its id has it, and the others save the time.
    IF get_byte(uuid_send(of_event), 15) < 16 THEN
        FOR one IN
            SELECT b.user_id, b.session_id, b.agent_name, b.dataset_id
            FROM unnest(ids) i (budget_id)
            JOIN {schema}.session_budgets b ON b.budget_id = i.budget_id
        LOOP
            DELETE FROM {schema}.session_reservations r
            USING (
                SELECT t.user_id, t.session_id, t.event_id
                FROM {schema}.session_reservations t
                LEFT JOIN {schema}.session_records s ON s.user_id = t.user_id AND s.session_id = t.session_id
                WHERE (one.user_id IS NULL OR t.user_id = one.user_id)
                    AND (one.session_id IS NULL OR t.session_id = one.session_id)
                    AND (one.agent_name IS NULL OR coalesce(s.agent_name, t.agent_name) = one.agent_name)
                    AND (one.dataset_id IS NULL OR coalesce(s.dataset_id, t.dataset_id) = one.dataset_id)
                    AND {schema}.is_settled(t.user_id, t.session_id, t.event_id, t.key_scope)
                FOR UPDATE OF t SKIP LOCKED
            ) gone
            WHERE r.user_id = gone.user_id AND r.session_id = gone.session_id AND r.event_id = gone.event_id;
        END LOOP;
        DELETE FROM {schema}.session_reservations r
        USING (
            SELECT t.user_id, t.session_id, t.event_id
            FROM {schema}.session_reservations t
            WHERE t.expires_at <= now_at
            ORDER BY t.expires_at
            LIMIT 100
            FOR UPDATE SKIP LOCKED
        ) gone
        WHERE r.user_id = gone.user_id AND r.session_id = gone.session_id AND r.event_id = gone.event_id;
    END IF;

    RETURN QUERY
    SELECT 'refused', NULL::timestamptz, u.*
    FROM {schema}.budget_use_v1(ids, of_user, of_session, of_event, asked_usd, asked_tokens, is_unpriced) u
    WHERE u.over_usd IS NOT NULL OR u.over_tokens IS NOT NULL OR u.over_unpriced;
    IF FOUND THEN
        RETURN;
    END IF;

    -- An erased user must not come back here either.
    PERFORM {schema}.refuse_erased(of_user);
    outcome := 'reserved';
    ends_at := now_at + lease_us * interval '1 microsecond';
    INSERT INTO {schema}.session_reservations AS r (
        user_id, session_id, event_id, key_scope, agent_name, dataset_id, cost_usd, tokens, reserved_at, expires_at
    )
    VALUES (
        of_user, of_session, of_event, scope, given_agent, given_dataset, coalesce(asked_usd, 0), coalesce(asked_tokens, 0),
        now_at, ends_at
    )
    ON CONFLICT (user_id, session_id, event_id) DO UPDATE
    SET agent_name = excluded.agent_name, dataset_id = excluded.dataset_id, cost_usd = excluded.cost_usd,
        tokens = excluded.tokens, reserved_at = excluded.reserved_at, expires_at = excluded.expires_at;
    RETURN NEXT;
END
$body$;
