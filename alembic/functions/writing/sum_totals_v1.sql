-- Adds up further totals (README.md, "Further totals") and takes others away from the sum.
-- Answers the sum, without what is zero; null where nothing is left. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.sum_totals_v1(added jsonb[], taken jsonb[]) RETURNS jsonb
-- Every figure calls it, and none would be read by parallel workers otherwise.
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT jsonb_object_agg(t.name, t.total)
FROM (
    SELECT p.name, sum(p.amount) AS total
    FROM (
        SELECT e.key AS name, e.value::numeric AS amount
        FROM unnest(added) a (totals) CROSS JOIN LATERAL jsonb_each(a.totals) e
        UNION ALL
        SELECT e.key, -e.value::numeric
        FROM unnest(taken) a (totals) CROSS JOIN LATERAL jsonb_each(a.totals) e
    ) p
    GROUP BY p.name
    HAVING sum(p.amount) <> 0
) t;
END
