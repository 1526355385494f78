-- Names the buckets of time that this quarter of an hour belongs to, by UTC.
-- Answers a row for each level. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.levels(quarter_hour timestamptz) RETURNS TABLE (level text, starts_at timestamptz)
LANGUAGE sql STABLE
BEGIN ATOMIC
SELECT l.level, l.starts_at
FROM (
    VALUES
        ('quarter_hour', quarter_hour),
        ('day', date_trunc('day', quarter_hour, 'UTC')),
        ('month', date_trunc('month', quarter_hour, 'UTC')),
        ('year', date_trunc('year', quarter_hour, 'UTC'))
) l (level, starts_at);
END
