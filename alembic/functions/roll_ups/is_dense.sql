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
    CASE of_family
    WHEN 'user' THEN
        SELECT count(*) INTO found FROM (
            SELECT FROM {schema}.rolled_up_sessions s WHERE s.user_id = of_user LIMIT most
        ) s;
    WHEN 'dataset' THEN
        SELECT count(*) INTO found FROM (
            SELECT FROM {schema}.rolled_up_sessions s WHERE s.dataset_id = of_dataset LIMIT most
        ) s;
    WHEN 'user_dataset' THEN
        SELECT count(*) INTO found FROM (
            SELECT FROM {schema}.rolled_up_sessions s
            WHERE s.user_id = of_user AND s.dataset_id = of_dataset LIMIT most
        ) s;
    ELSE
        SELECT count(*) INTO found FROM (SELECT FROM {schema}.rolled_up_sessions s LIMIT most) s;
    END CASE;
    RETURN found >= most;
END
$body$;
