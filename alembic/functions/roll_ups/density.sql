-- Says from how many sessions on, on average, a bucket of time is better than its sessions' rows. The parts of a bucket have
-- buckets of their own only where the whole has so many sessions for each part (`levels`).
-- Answers the number. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.density() RETURNS numeric
LANGUAGE sql IMMUTABLE
RETURN 64::numeric;
