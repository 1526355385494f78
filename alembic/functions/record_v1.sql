-- Any number of items in one transaction, as if they had come one after another; one row per item, in order.
-- Each item has `kind`, `user_id`, `session_id`, `at`, and what its kind takes. An item more than five minutes ahead of
-- the database (rule R09) writes nothing at all: then the only row is `future` with that item's position.
-- Locks are taken in one order everywhere (rule R10): keys of the user's scope, then sessions, each sorted.
CREATE FUNCTION {schema}.record_v1(items jsonb) RETURNS TABLE (
    item_position int,
    outcome text,
    event_cost_usd numeric,
    session_tokens_in bigint,
    session_tokens_out bigint,
    session_cost_usd numeric
)
LANGUAGE plpgsql AS $body$
DECLARE
    -- Not now(), which stands still in a host's transaction.
    now_at timestamptz := statement_timestamp();
    item jsonb;
    target record;
    last_position int := jsonb_array_length(items) - 1;
BEGIN
    FOR at_position IN 0..last_position LOOP
        IF (items -> at_position ->> 'at')::timestamptz > now_at + interval '5 minutes' THEN
            item_position := at_position;
            outcome := 'future';
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;

    IF items @? '$[*] ? (@.key_scope == "user" && @.idempotency_key != null)' THEN
        PERFORM pg_advisory_xact_lock(lock_key)
        FROM (
            SELECT DISTINCT hashtextextended((i ->> 'user_id') || (i ->> 'event_id'), 2) AS lock_key
            FROM jsonb_array_elements(items) i
            WHERE i ->> 'key_scope' = 'user' AND i ->> 'idempotency_key' IS NOT NULL
            ORDER BY 1
        ) keys;
    END IF;

    IF last_position > 0 THEN
        FOR target IN
            SELECT DISTINCT (i ->> 'user_id')::uuid AS user_id,
                   coalesce(e.session_id, i ->> 'session_id') COLLATE "C" AS session_id
            FROM jsonb_array_elements(items) i
            LEFT JOIN {schema}.session_usage_events e
                ON i ->> 'key_scope' = 'user' AND e.user_id = (i ->> 'user_id')::uuid
                AND e.event_id = (i ->> 'event_id')::uuid
            ORDER BY 1, 2
        LOOP
            PERFORM {schema}.lock_session_v1(target.user_id, target.session_id);
        END LOOP;
    END IF;

    FOR at_position IN 0..last_position LOOP
        item := items -> at_position;
        item_position := at_position;
        event_cost_usd := NULL;
        CASE item ->> 'kind'
            WHEN 'usage' THEN
                SELECT u.outcome, u.event_cost_usd, u.session_tokens_in, u.session_tokens_out, u.session_cost_usd
                INTO outcome, event_cost_usd, session_tokens_in, session_tokens_out, session_cost_usd
                FROM {schema}.accumulate_usage_v1(item, now_at) u;
            WHEN 'nothing' THEN
                outcome := 'nothing';
                event_cost_usd := 0;
                SELECT coalesce(sum(s.tokens_in), 0), coalesce(sum(s.tokens_out), 0), coalesce(sum(s.cost_usd), 0)
                INTO session_tokens_in, session_tokens_out, session_cost_usd
                FROM {schema}.session_records s
                WHERE s.user_id = (item ->> 'user_id')::uuid AND s.session_id = item ->> 'session_id';
            WHEN 'touch' THEN
                outcome := {schema}.touch_session_v1(item, now_at);
            WHEN 'end' THEN
                outcome := {schema}.end_session_v1(item, now_at);
            WHEN 'reopen' THEN
                outcome := {schema}.reopen_session_v1(item, now_at);
        END CASE;
        RETURN NEXT;
    END LOOP;
END
$body$;
