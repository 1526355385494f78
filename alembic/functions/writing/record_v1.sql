-- Records any number of items in one transaction, as if they had come one after another. The first of these ways that fits
-- writes them: `record_one_use` and `record_one_touch` one plain item, `record_plain` a plain batch, `record_locked` all
-- else. `waves` is an array of arrays with what is written to sessions, `activity` one with the runs, steps and messages:
-- the items of one wave do not depend on each other, those of a later wave may depend on an earlier one. `latest_at` is the
-- latest time that any item names. `is_plain` says that the items are one wave of touches and uses without a run, a
-- revision, a key of the user's scope or metadata. README.md has the shape of an item.
-- Answers a row for each item; where an item has several rows, the last one holds. Where `latest_at` is more than five
-- minutes ahead of the database's clock (rule R09), the only row is `future` and nothing is written.
-- Raises `SL004` where the user was erased.
-- Locks, in the one order of all functions (rule R10): keys of the user's scope, sessions, the linking of runs, runs; each
-- sorted.
CREATE FUNCTION {schema}.record_v1(waves jsonb, activity jsonb, latest_at timestamptz, is_plain boolean) RETURNS TABLE (
    item_position int,
    outcome text,
    event_cost_usd numeric,
    session_tokens_in bigint,
    session_tokens_out bigint,
    session_cost_usd numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    -- now() would stand still in a host's transaction.
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
            RETURN QUERY SELECT 0, 'applied', u.* FROM {schema}.record_one_use(single, now_at) u;
            IF FOUND THEN
                RETURN;
            END IF;
        ELSIF {schema}.record_one_touch(single, now_at) THEN
            item_position := 0;
            outcome := 'touched';
            RETURN NEXT;
            RETURN;
        END IF;
    ELSIF is_plain THEN
        BEGIN
            RETURN QUERY SELECT p.* FROM {schema}.record_plain(waves -> 0, now_at) p;
            RETURN;
        EXCEPTION WHEN SQLSTATE 'SL001' OR unique_violation THEN
            -- One of the items is not plain in the database's eyes. The block is undone, with its locks.
        END;
    END IF;
    -- An event with a revision may replace an event of a run.
    has_runs := activity <> '[]' OR waves @? '$[*][*] ? (exists (@.run_id) || @.revision > 0 || exists (@.key_scope))';
    LOOP
        -- Where a lock is missing, the block is undone and begins again, so that all locks are taken in their order. The
        -- block may not contain another one: the locks of an inner block that was undone would be held to the end.
        BEGIN
            RETURN QUERY SELECT l.* FROM {schema}.record_locked(waves, activity, others, has_runs, now_at) l;
            RETURN;
        EXCEPTION
            WHEN SQLSTATE 'SL002' THEN
                -- The items concern further sessions.
                GET STACKED DIAGNOSTICS found_missing = PG_EXCEPTION_DETAIL;
                others := others || jsonb_build_array(found_missing::jsonb);
            WHEN SQLSTATE 'SL003' THEN
                -- A session was deleted between the look and the lock. The next round sees that.
        END;
    END LOOP;
END
$body$;
