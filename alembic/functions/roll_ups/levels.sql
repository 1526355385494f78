-- Names the buckets of time that a moment belongs to, by UTC, from the longest to the shortest.
-- A bucket is kept together with its siblings, the other buckets of its level in the bucket above, or none of them is. They
-- are kept from the moment on when the bucket above has `enough` sessions. A year's siblings are all years of its owner.
-- Answers a row for each level: its name, its depth, the bucket's begin, the level above, and the time `[since, until)` of
-- the bucket above. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.levels(moment timestamptz) RETURNS TABLE (
    level text, depth integer, starts_at timestamptz, above text, since timestamptz, until timestamptz, enough numeric
)
LANGUAGE sql STABLE
BEGIN ATOMIC
-- The lengths are in hours, because a day in the connection's time zone may have 23 or 25 hours.
SELECT l.level, l.depth, l.starts_at, l.above, l.since, l.until, {schema}.density() * l.parts
FROM (
    VALUES
        ('year', 1, date_trunc('year', moment, 'UTC'), NULL, '-infinity'::timestamptz, 'infinity'::timestamptz, 1),
        ('month', 2, date_trunc('month', moment, 'UTC'), 'year', date_trunc('year', moment, 'UTC'),
         date_trunc('year', date_trunc('year', moment, 'UTC') + interval '9000 hours', 'UTC'), 12),
        ('day', 3, date_trunc('day', moment, 'UTC'), 'month', date_trunc('month', moment, 'UTC'),
         date_trunc('month', date_trunc('month', moment, 'UTC') + interval '768 hours', 'UTC'), 30),
        ('hour', 4, date_trunc('hour', moment, 'UTC'), 'day', date_trunc('day', moment, 'UTC'),
         date_trunc('day', moment, 'UTC') + interval '24 hours', 24)
) l (level, depth, starts_at, above, since, until, parts);
END
