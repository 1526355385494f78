-- Answers the oldest version of the library that this schema serves. A library that meets a newer schema calls this function,
-- and goes on as long as its own version is not older. A revision that takes something away replaces the answer.
CREATE FUNCTION {schema}.oldest_served_version_v1() RETURNS text
LANGUAGE sql IMMUTABLE
RETURN '0.1.0';
