-- Refuses a user who was erased and must not come back.
-- Answers nothing. Raises `SL004` where the user has a tombstone.
-- Locks: an advisory lock with seed 5 on the user, shared. `write_tombstone_v1` takes the same lock alone, so it waits for
-- this transaction, or this function finds the tombstone.
CREATE FUNCTION {schema}.refuse_erased(of_user uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(of_user::text, 5)) FROM (SELECT count(*) FROM {schema}.session_buckets) here;
    IF EXISTS (SELECT FROM {schema}.session_tombstones t WHERE t.user_id = of_user) THEN
        RAISE EXCEPTION USING ERRCODE = 'SL004', MESSAGE = 'the user was erased', DETAIL = of_user::text;
    END IF;
END
$body$;
