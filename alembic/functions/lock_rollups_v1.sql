-- Lets one transaction at a time change the roll-ups; until it ends.
CREATE FUNCTION {schema}.lock_rollups_v1() RETURNS void
LANGUAGE sql AS $body$
-- The type of the table's rows stands for the schema we are in.
SELECT pg_advisory_xact_lock(hashtextextended(pg_typeof(NULL::{schema}.session_rollups)::oid::text, 6))
$body$;
