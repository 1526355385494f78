-- Any number of items in one transaction, as if they had come one after another; a row per item, and where an item has
-- several the last one holds. `waves` is an array of arrays with what is written to sessions, and `activity` one with the
-- runs, steps and messages: the items of one wave do not depend on each other, those of a later wave may on an earlier one.
-- `latest_at` is the latest time any of them says it happened: more than five minutes ahead of the database (rule R09)
-- nothing at all is written, and the only row is `future`. `is_plain` says that they are one wave of touches and uses
-- without a run, a revision, a key of the user's scope or metadata.
-- Locks are taken in one order everywhere (rule R10): keys of the user's scope, sessions, who links runs, runs; each sorted.
CREATE FUNCTION {schema}.record_v4(waves jsonb, activity jsonb, latest_at timestamptz, is_plain boolean) RETURNS TABLE (
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
    has_runs boolean;
    others jsonb := '[]';
    found_missing text;
BEGIN
    IF latest_at > now_at + interval '5 minutes' THEN
        outcome := 'future';
        RETURN NEXT;
        RETURN;
    END IF;
    IF is_plain AND waves -> 0 -> 1 IS NULL THEN
        single := waves -> 0 -> 0;
        IF single ->> 'kind' = 'usage' THEN
            RETURN QUERY SELECT 0, 'applied', u.* FROM {schema}.use_v2(single, now_at) u;
            IF FOUND THEN
                RETURN;
            END IF;
        ELSIF {schema}.touch_v2(single, now_at) THEN
            item_position := 0;
            outcome := 'touched';
            RETURN NEXT;
            RETURN;
        END IF;
    ELSIF is_plain THEN
        BEGIN
            RETURN QUERY SELECT * FROM {schema}.record_plain_v2(waves -> 0, now_at);
            RETURN;
        EXCEPTION WHEN SQLSTATE 'SL001' OR unique_violation THEN
            -- One of the items is otherwise. Nothing is left written or locked; what follows decides.
        END;
    END IF;
    -- An event with a revision may take the place of one of a run.
    has_runs := activity <> '[]' OR waves @? '$[*][*] ? (exists (@.run_id) || @.revision > 0 || exists (@.key_scope))';
    LOOP
        -- Locks are taken in their order or not at all: where one is missing, everything is undone and done again. The
        -- block must not hold another one, as who waits for a lock of that would wait for the whole transaction.
        BEGIN
            RETURN QUERY SELECT * FROM {schema}.record_locked_v1(waves, activity, others, has_runs, now_at);
            RETURN;
        EXCEPTION
            WHEN SQLSTATE 'SL002' THEN
                -- The items turned out to be about more sessions.
                GET STACKED DIAGNOSTICS found_missing = PG_EXCEPTION_DETAIL;
                others := others || jsonb_build_array(found_missing::jsonb);
            WHEN SQLSTATE 'SL003' THEN
                -- A session that was there is not any more.
        END;
    END LOOP;
END
$body$;
