-- Any number of items in one transaction, as if they had come one after another; one row per item.
-- `waves` is an array of arrays: the items of one wave do not depend on each other, those of a later wave may on an
-- earlier one. `latest_at` is the latest time any of them says it happened: more than five minutes ahead of the database
-- (rule R09) nothing at all is written, and the only row is `future`. `is_plain` says that they are one wave of touches and
-- uses without a revision, a key of the user's scope or metadata.
-- Locks are taken in one order everywhere (rule R10): keys of the user's scope, then sessions, each sorted.
CREATE FUNCTION {schema}.record_v3(waves jsonb, latest_at timestamptz, is_plain boolean) RETURNS TABLE (
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
    IF is_plain AND waves -> 0 -> 1 IS NULL THEN
        single := waves -> 0 -> 0;
        IF single ->> 'kind' = 'usage' THEN
            RETURN QUERY SELECT 0, 'applied', u.* FROM {schema}.use_v1(single, now_at) u;
            IF FOUND THEN
                RETURN;
            END IF;
        ELSIF {schema}.touch_v1(single, now_at) THEN
            item_position := 0;
            outcome := 'touched';
            RETURN NEXT;
            RETURN;
        END IF;
    ELSIF is_plain THEN
        BEGIN
            RETURN QUERY SELECT * FROM {schema}.record_plain_v1(waves -> 0, now_at);
            RETURN;
        EXCEPTION WHEN SQLSTATE 'SL001' THEN
            -- One of the items is otherwise. Nothing is left written or locked; what follows decides.
        END;
    END IF;
    PERFORM {schema}.lock_sessions_v1(waves);
    FOR wave IN 0..jsonb_array_length(waves) - 1 LOOP
        RETURN QUERY SELECT * FROM {schema}.record_wave_v1(waves -> wave, now_at);
    END LOOP;
END
$body$;
