-- Says whether an owner in a family has at least so many rolled-up sessions. Counts no further.
-- Raises nothing and takes no lock.
CREATE FUNCTION {schema}.is_dense(of_family text, of_user uuid, of_dataset uuid, enough numeric) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    most bigint := ceil(enough);
    found bigint;
BEGIN
    IF of_family = 'user' THEN
        SELECT count(*) INTO found FROM (
            SELECT FROM {schema}.rolled_up_sessions s WHERE s.user_id = of_user LIMIT most
        ) s;
    ELSIF of_family = 'dataset' THEN
        SELECT count(*) INTO found FROM (
            SELECT FROM {schema}.rolled_up_sessions s WHERE s.dataset_id = of_dataset LIMIT most
        ) s;
    ELSIF of_family = 'user_dataset' THEN
        SELECT count(*) INTO found FROM (
            SELECT FROM {schema}.rolled_up_sessions s
            WHERE s.user_id = of_user AND s.dataset_id = of_dataset LIMIT most
        ) s;
    ELSE
        SELECT count(*) INTO found FROM (SELECT FROM {schema}.rolled_up_sessions s LIMIT most) s;
    END IF;
    RETURN found >= most;
END
$body$;
