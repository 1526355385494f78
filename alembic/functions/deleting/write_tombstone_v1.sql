-- Writes the tombstone of an erased user, once every transaction that is creating a row of theirs has ended. A transaction
-- that begins later finds the tombstone, so no session can appear behind the search for the user's sessions.
-- Answers whether the tombstone is new. Raises nothing.
-- Locks: an advisory lock with seed 5 on the user; `refuse_erased` takes the same lock shared.
CREATE FUNCTION {schema}.write_tombstone_v1(of_user uuid) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(of_user::text, 5)) FROM (SELECT count(*) FROM {schema}.session_buckets) here;
    INSERT INTO {schema}.session_tombstones (user_id) VALUES (of_user) ON CONFLICT DO NOTHING;
    RETURN FOUND;
END
$body$;
