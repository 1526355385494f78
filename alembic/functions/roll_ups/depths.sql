-- Says how deep the buckets of a part of a family go, as `holds` bounds it: for each owner and day the depth of the shortest
-- buckets that are kept (`levels`), or 0 where none is. `afresh` decides it by the sessions that there are; otherwise it is
-- as the stored buckets are.
-- Answers a row for each owner and day that has sessions or changes. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.depths(of_family text, after uuid, up_to uuid, afresh boolean) RETURNS TABLE (
    user_id uuid, dataset_id uuid, day timestamptz, depth integer
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET work_mem = '64MB' SET jit = off
AS $body$
#variable_conflict use_column
DECLARE
    density numeric := {schema}.density();
BEGIN
    RETURN QUERY
    WITH counted AS (
        SELECT date_trunc('day', s.last_activity_at, 'UTC') AS day, s.user_id, s.dataset_id, 1 AS sessions
        FROM {schema}.rolled_up_sessions s
        WHERE {schema}.holds(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT date_trunc('day', c.starts_at, 'UTC'), c.user_id, c.dataset_id, -c.sessions::integer
        FROM {schema}.session_roll_up_changes c
        WHERE {schema}.holds(of_family, after, up_to, c.user_id, c.dataset_id)
    ),
    day AS (
        SELECT o.user_id, o.dataset_id, c.day, sum(c.sessions) AS sessions
        FROM counted c
        CROSS JOIN LATERAL (SELECT
            CASE WHEN of_family IN ('user', 'user_dataset') THEN c.user_id
                 ELSE '00000000-0000-0000-0000-000000000000' END,
            CASE WHEN of_family IN ('dataset', 'user_dataset') THEN c.dataset_id
                 ELSE '00000000-0000-0000-0000-000000000000' END
        ) o (user_id, dataset_id)
        WHERE o.dataset_id IS NOT NULL
        GROUP BY o.user_id, o.dataset_id, c.day
    ),
    of_owner AS (
        SELECT d.user_id, d.dataset_id, d.day, d.sessions,
               sum(d.sessions) OVER (PARTITION BY d.user_id, d.dataset_id) AS ever,
               sum(d.sessions) OVER (PARTITION BY d.user_id, d.dataset_id, date_trunc('year', d.day, 'UTC')) AS in_year,
               sum(d.sessions) OVER (
                   PARTITION BY d.user_id, d.dataset_id, date_trunc('year', d.day, 'UTC'), date_trunc('month', d.day, 'UTC')
               ) AS in_month
        FROM day d
        WHERE afresh
    ),
    kept AS (
        SELECT DISTINCT r.user_id, r.dataset_id, l.level, l.since
        FROM {schema}.session_roll_ups r
        CROSS JOIN LATERAL {schema}.levels(r.starts_at) l
        WHERE NOT afresh AND r.family = of_family AND l.level = r.level
            AND {schema}.holds(of_family, after, up_to, r.user_id, r.dataset_id)
    )
    SELECT o.user_id, o.dataset_id, o.day,
           CASE WHEN o.ever < density THEN 0 WHEN o.in_year < density * 12 THEN 1 WHEN o.in_month < density * 30 THEN 2
                WHEN o.sessions < density * 24 THEN 3 ELSE 4 END
    FROM of_owner o
    UNION ALL
    SELECT d.user_id, d.dataset_id, d.day, coalesce(max(l.depth) FILTER (WHERE k.level IS NOT NULL), 0)
    FROM day d
    CROSS JOIN LATERAL {schema}.levels(d.day) l
    LEFT JOIN kept k
        ON k.user_id = d.user_id AND k.dataset_id = d.dataset_id AND k.level = l.level AND k.since = l.since
    WHERE NOT afresh
    GROUP BY d.user_id, d.dataset_id, d.day;
END
$body$;
