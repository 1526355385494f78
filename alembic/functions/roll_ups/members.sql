-- Finds the rolled-up sessions of one owner in a family that were last active in `[since, until)`, by the family's index.
-- Answers their rows, in any order. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.members(
    of_family text, of_user uuid, of_dataset uuid, since timestamptz, until timestamptz
) RETURNS SETOF {schema}.rolled_up_sessions
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF of_family = 'user' THEN
        RETURN QUERY SELECT s.* FROM {schema}.rolled_up_sessions s
        WHERE s.user_id = of_user AND left(s.status, 1) IN ('c', 'f', 'r')
            AND s.last_activity_at >= since AND s.last_activity_at < until;
    ELSIF of_family = 'dataset' THEN
        RETURN QUERY SELECT s.* FROM {schema}.rolled_up_sessions s
        WHERE s.dataset_id = of_dataset AND left(s.status, 1) IN ('c', 'f', 'r')
            AND s.last_activity_at >= since AND s.last_activity_at < until;
    ELSIF of_family = 'user_dataset' THEN
        RETURN QUERY SELECT s.* FROM {schema}.rolled_up_sessions s
        WHERE s.user_id = of_user AND s.dataset_id = of_dataset AND left(s.status, 1) IN ('c', 'f', 'r')
            AND s.last_activity_at >= since AND s.last_activity_at < until;
    ELSE
        RETURN QUERY SELECT s.* FROM {schema}.rolled_up_sessions s
        WHERE s.session_id <> '' AND left(s.status, 1) IN ('c', 'f', 'r')
            AND s.last_activity_at >= since AND s.last_activity_at < until;
    END IF;
END
$body$;
