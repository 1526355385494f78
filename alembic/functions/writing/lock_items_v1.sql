-- Takes the locks of all items of a batch that several calls of `record_v1` write in one transaction. So none of these calls
-- waits for a lock while the calls before it hold theirs. `waves` and `activity` are as in `record_v1`; fields with content
-- may be left out, `latest_at` is the latest time of the whole batch.
-- Answers false, and takes no lock, where `latest_at` is more than five minutes ahead of the database's clock (rule R09).
-- Raises `SL004` where the user was erased.
-- Locks: those of `lock_sessions`, then those of `lock_runs` (rule R10).
CREATE FUNCTION {schema}.lock_items_v1(waves jsonb, activity jsonb, latest_at timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF latest_at > statement_timestamp() + interval '5 minutes' THEN
        RETURN false;
    END IF;
    LOOP
        BEGIN
            PERFORM {schema}.lock_sessions(waves, activity, '[]');
            PERFORM {schema}.lock_runs(waves, activity);
            RETURN true;
        EXCEPTION WHEN SQLSTATE 'SL003' THEN
            -- A session was deleted between the look and the lock. The next round sees that.
        END;
    END LOOP;
END
$body$;
