-- Says from how many sessions on, on average, a bucket of time is better than its sessions' rows. The parts of a bucket have
-- buckets of their own only where the whole has so many sessions for each part (`levels`). The figures of a viewer read the
-- rows at both ends of a window for each user and data set, but for everybody once.
-- Answers the number. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.density(of_family text) RETURNS numeric
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN of_family = 'all' THEN 256::numeric ELSE 48::numeric END;
