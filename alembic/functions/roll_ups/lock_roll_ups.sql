-- Keeps others from the roll-ups until the transaction ends. Who changes buckets is alone. Who rolls up sessions shares the
-- roll-ups with others who do: each session is locked by one of them, and buckets neither come nor go beside them. Appending
-- changes needs no such lock.
-- Answers nothing and raises nothing.
-- Locks: the advisory lock with seed 6 on the roll-ups of this schema, alone or shared.
CREATE FUNCTION {schema}.lock_roll_ups(is_alone boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    -- The type of the table's rows stands for the schema: each schema has its own.
    IF is_alone THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(pg_typeof(NULL::{schema}.session_roll_ups)::oid::text, 6))
        FROM (SELECT count(*) FROM {schema}.session_buckets) here;
    ELSE
        PERFORM pg_advisory_xact_lock_shared(hashtextextended(pg_typeof(NULL::{schema}.session_roll_ups)::oid::text, 6))
        FROM (SELECT count(*) FROM {schema}.session_buckets) here;
    END IF;
END
$body$;
