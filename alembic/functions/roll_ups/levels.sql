-- Names the buckets of time that a moment belongs to, from the longest to the shortest. Each is divided into six.
-- A bucket is kept together with its siblings, the other buckets of its level in the bucket above, or none of them is. They
-- are kept from the moment on when the bucket above has `density` sessions for each of its `parts`. The siblings of the
-- longest ones are all those of their owner, which has to have as many as one part.
-- Answers a row for each level: its name, which is the length; its depth; the bucket's begin; the level above, and the time
-- `[since, until)` of the bucket above. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.levels(moment timestamptz) RETURNS TABLE (
    level text, depth integer, starts_at timestamptz, above text, since timestamptz, until timestamptz, parts integer
)
LANGUAGE sql STABLE
BEGIN ATOMIC
-- The lengths are in hours, because a day in the connection's time zone may have 23 or 25 hours.
SELECT l.level, l.depth, date_bin(l.length, moment, '2000-01-01 00:00:00+00'), l.above,
       CASE WHEN l.above IS NULL THEN '-infinity' ELSE date_bin(l.length * 6, moment, '2000-01-01 00:00:00+00') END,
       CASE WHEN l.above IS NULL THEN 'infinity'
            ELSE date_bin(l.length * 6, moment, '2000-01-01 00:00:00+00') + l.length * 6 END,
       CASE WHEN l.above IS NULL THEN 1 ELSE 6 END
FROM (
    VALUES
        ('324 days', 1, interval '7776 hours', NULL),
        ('54 days', 2, interval '1296 hours', '324 days'),
        ('9 days', 3, interval '216 hours', '54 days'),
        ('36 hours', 4, interval '36 hours', '9 days'),
        ('6 hours', 5, interval '6 hours', '36 hours'),
        ('hour', 6, interval '1 hour', '6 hours')
) l (level, depth, length, above);
END
