-- Any number of items in one transaction, as if they had come one after another; one row per item.
-- `waves` is an array of arrays: the items of one wave do not depend on each other, those of a later wave may on an
-- earlier one. `latest_at` is the latest time any of them says it happened: more than five minutes ahead of the database
-- (rule R09) nothing at all is written, and the only row is `future`.
-- Locks are taken in one order everywhere (rule R10): keys of the user's scope, then sessions, each sorted.
CREATE FUNCTION {schema}.record_v2(waves jsonb, latest_at timestamptz) RETURNS TABLE (
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
    single jsonb;
BEGIN
    IF latest_at > now_at + interval '5 minutes' THEN
        outcome := 'future';
        RETURN NEXT;
        RETURN;
    END IF;
    IF waves -> 1 IS NULL AND waves -> 0 -> 1 IS NULL THEN
        single := waves -> 0 -> 0;
        IF single ->> 'kind' = 'usage' THEN
            RETURN QUERY SELECT 0, 'applied', u.* FROM {schema}.use_v1(single, now_at) u;
            IF FOUND THEN
                RETURN;
            END IF;
        ELSIF single ->> 'kind' = 'touch' AND {schema}.touch_v1(single, now_at) THEN
            item_position := 0;
            outcome := 'touched';
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    PERFORM {schema}.lock_sessions_v1(waves);
    FOR wave IN 0..jsonb_array_length(waves) - 1 LOOP
        RETURN QUERY SELECT * FROM {schema}.record_wave_v1(waves -> wave, now_at);
    END LOOP;
END
$body$;
