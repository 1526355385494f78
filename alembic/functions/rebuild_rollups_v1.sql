-- Makes that part of a family what it should be, as `in_rollups_v1` has it. Nobody puts changes into the roll-ups meanwhile,
-- and whoever appends one does not wait.
CREATE FUNCTION {schema}.rebuild_rollups_v1(of_family text, after uuid, up_to uuid) RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_custom_plan
AS $body$
BEGIN
    PERFORM {schema}.lock_rollups_v1();
    DELETE FROM {schema}.session_rollups r
    WHERE r.family = of_family AND {schema}.in_rollups_v1(of_family, after, up_to, r.user_id, r.dataset_id);
    INSERT INTO {schema}.session_rollups SELECT * FROM {schema}.expected_rollups_v1(of_family, after, up_to);
    DELETE FROM {schema}.session_model_rollups r
    WHERE r.family = of_family AND {schema}.in_rollups_v1(of_family, after, up_to, r.user_id, r.dataset_id);
    INSERT INTO {schema}.session_model_rollups SELECT * FROM {schema}.expected_model_rollups_v1(of_family, after, up_to);
END
$body$;
