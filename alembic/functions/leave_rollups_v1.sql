-- The trigger of `session_records`: a session that is rolled up and changes, or goes, leaves the roll-ups. Whoever changes
-- it, and in which statement, what is taken away is what the row was before.
CREATE FUNCTION {schema}.leave_rollups_v1() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM {schema}.append_rollup_changes_v1(OLD, -1);
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    NEW.rolled_up := NULL;
    RETURN NEW;
END
$body$;
