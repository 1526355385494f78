-- Says how deep the buckets of a part of a family go, as `holds` bounds it: for each owner and six hours the depth of the shortest
-- buckets that are kept (`levels`). `afresh` decides it by the sessions that there are; otherwise it is
-- as the stored buckets are.
-- Answers a row for each owner and six hours that has buckets, and sessions or changes. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.depths(of_family text, after uuid, up_to uuid, afresh boolean) RETURNS TABLE (
    user_id uuid, dataset_id uuid, six_hours timestamptz, depth integer
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET work_mem = '64MB' SET jit = off
AS $body$
#variable_conflict use_column
DECLARE
    of_part numeric := greatest({schema}.density(of_family), 1);
    of_whole numeric := greatest({schema}.density(of_family) * 6, 1);
BEGIN
    RETURN QUERY
    WITH counted AS (
        SELECT date_bin('6 hours', s.last_activity_at, '2000-01-01 00:00:00+00') AS six_hours, s.user_id, s.dataset_id, 1 AS sessions
        FROM {schema}.rolled_up_sessions s
        WHERE {schema}.holds(of_family, after, up_to, s.user_id, s.dataset_id)
        UNION ALL
        SELECT date_bin('6 hours', c.starts_at, '2000-01-01 00:00:00+00'), c.user_id, c.dataset_id, -c.sessions::integer
        FROM {schema}.session_roll_up_changes c
        WHERE {schema}.holds(of_family, after, up_to, c.user_id, c.dataset_id)
        UNION ALL
        -- Changes by model may be left where those in all are put in. They need a depth, and count no session.
        SELECT date_bin('6 hours', c.starts_at, '2000-01-01 00:00:00+00'), c.user_id, c.dataset_id, 0
        FROM {schema}.session_model_roll_up_changes c
        WHERE {schema}.holds(of_family, after, up_to, c.user_id, c.dataset_id)
    ),
    six_hours AS (
        SELECT o.user_id, o.dataset_id, c.six_hours, sum(c.sessions) AS sessions
        FROM counted c
        CROSS JOIN LATERAL (SELECT
            CASE WHEN of_family IN ('user', 'user_dataset') THEN c.user_id
                 ELSE '00000000-0000-0000-0000-000000000000' END,
            CASE WHEN of_family IN ('dataset', 'user_dataset') THEN c.dataset_id
                 ELSE '00000000-0000-0000-0000-000000000000' END
        ) o (user_id, dataset_id)
        WHERE o.dataset_id IS NOT NULL
        GROUP BY o.user_id, o.dataset_id, c.six_hours
    ),
    of_owner AS (
        SELECT d.user_id, d.dataset_id, d.six_hours, d.sessions,
               sum(d.sessions) OVER (PARTITION BY d.user_id, d.dataset_id) AS ever,
               sum(d.sessions) OVER (PARTITION BY d.user_id, d.dataset_id, b.in_324) AS in_324,
               sum(d.sessions) OVER (PARTITION BY d.user_id, d.dataset_id, b.in_324, b.in_54) AS in_54,
               sum(d.sessions) OVER (PARTITION BY d.user_id, d.dataset_id, b.in_324, b.in_54, b.in_9) AS in_9,
               sum(d.sessions) OVER (
                   PARTITION BY d.user_id, d.dataset_id, b.in_324, b.in_54, b.in_9, b.in_36_hours
               ) AS in_36_hours
        FROM six_hours d
        CROSS JOIN LATERAL (SELECT
            date_bin('7776 hours', d.six_hours, '2000-01-01 00:00:00+00'),
            date_bin('1296 hours', d.six_hours, '2000-01-01 00:00:00+00'),
            date_bin('216 hours', d.six_hours, '2000-01-01 00:00:00+00'),
            date_bin('36 hours', d.six_hours, '2000-01-01 00:00:00+00')
        ) b (in_324, in_54, in_9, in_36_hours)
        WHERE afresh
    ),
    kept AS (
        SELECT DISTINCT r.user_id, r.dataset_id, l.level, l.since
        FROM {schema}.session_roll_ups r
        CROSS JOIN LATERAL {schema}.levels(r.starts_at) l
        WHERE NOT afresh AND r.family = of_family AND l.level = r.level
            AND {schema}.holds(of_family, after, up_to, r.user_id, r.dataset_id)
    )
    SELECT o.user_id, o.dataset_id, o.six_hours,
           CASE WHEN o.in_324 < of_whole THEN 1 WHEN o.in_54 < of_whole THEN 2
                WHEN o.in_9 < of_whole THEN 3 WHEN o.in_36_hours < of_whole THEN 4
                WHEN o.sessions < of_whole THEN 5 ELSE 6 END
    FROM of_owner o
    WHERE o.ever >= of_part
    UNION ALL
    SELECT d.user_id, d.dataset_id, d.six_hours, max(l.depth)
    FROM six_hours d
    CROSS JOIN LATERAL {schema}.levels(d.six_hours) l
    JOIN kept k
        ON k.user_id = d.user_id AND k.dataset_id = d.dataset_id AND k.level = l.level AND k.since = l.since
    WHERE NOT afresh
    GROUP BY d.user_id, d.dataset_id, d.six_hours;
END
$body$;
