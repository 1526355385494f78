-- Lets Postgres gather its statistics after the first `roll_up`, which changes all sessions at once: with those of before,
-- or none, it would read whole tables. It leaves out, with a warning, the tables of which the caller is not the owner.
-- Answers nothing and raises nothing.
-- Locks: the tables against VACUUM, ANALYZE and changes of their definition, until the transaction ends.
CREATE FUNCTION {schema}.analyze_roll_ups_v1() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    ANALYZE {schema}.session_records, {schema}.session_model_usage, {schema}.rolled_up_sessions, {schema}.session_roll_ups,
        {schema}.session_model_roll_ups;
END
$body$;
