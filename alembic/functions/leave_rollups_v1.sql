-- The trigger of `session_records`: a session that is rolled up and changes, or goes, leaves the roll-ups. Whoever changes
-- it, and in which statement: what is taken away is what was added, for that is kept.
CREATE FUNCTION {schema}.leave_rollups_v1() RETURNS trigger
LANGUAGE plpgsql AS $body$
DECLARE
    left_session {schema}.rolled_up_sessions;
BEGIN
    DELETE FROM {schema}.rolled_up_sessions
    WHERE user_id = OLD.user_id AND session_id = OLD.session_id
    RETURNING * INTO left_session;
    IF FOUND THEN
        PERFORM {schema}.append_rollup_changes_v1(left_session, -1);
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    NEW.rolled_up := false;
    RETURN NEW;
END
$body$;
