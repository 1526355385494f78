-- The buckets of time that this quarter of an hour is in, by UTC; in the place of the function that did not know years.
CREATE OR REPLACE FUNCTION {schema}.rollup_levels_v1(quarter_hour timestamptz) RETURNS TABLE (level text, starts_at timestamptz)
LANGUAGE sql STABLE AS $body$
SELECT l.level, l.starts_at
FROM (
    VALUES
        ('quarter_hour', quarter_hour),
        ('day', date_trunc('day', quarter_hour, 'UTC')),
        ('month', date_trunc('month', quarter_hour, 'UTC')),
        ('year', date_trunc('year', quarter_hour, 'UTC'))
) l (level, starts_at)
$body$;
