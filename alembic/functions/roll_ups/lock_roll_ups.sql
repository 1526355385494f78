-- Makes the transaction the only one that changes the roll-ups, until it ends. Appending changes needs no such lock.
-- Answers nothing and raises nothing.
-- Locks: the advisory lock with seed 6 on the roll-ups of this schema.
CREATE FUNCTION {schema}.lock_roll_ups() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    -- The type of the table's rows stands for the schema: each schema has its own.
    PERFORM pg_advisory_xact_lock(hashtextextended(pg_typeof(NULL::{schema}.session_roll_ups)::oid::text, 6))
    FROM (SELECT count(*) FROM {schema}.session_buckets) here;
END
$body$;
