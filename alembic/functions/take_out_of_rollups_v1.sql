-- Takes a session out of the roll-ups, with whatever they have of it; whether they had anything. Harmless to one that is
-- there as it should be: it is read as a row then, and rolled up again by the next `roll_up`.
CREATE FUNCTION {schema}.take_out_of_rollups_v1(of_user uuid, of_session text) RETURNS boolean
LANGUAGE plpgsql AS $body$
DECLARE
    was_rolled_up boolean;
    orphan {schema}.rolled_up_sessions;
BEGIN
    -- The trigger takes it out. Who rolls it up, or changes it, waits for us, or we for them and look again.
    UPDATE {schema}.session_records s
    SET rolled_up = false
    WHERE s.user_id = of_user AND s.session_id = of_session AND s.rolled_up;
    was_rolled_up := FOUND;
    -- What is kept of a session that is gone, or not rolled up, or whose trigger is disabled. Should the session be rolled
    -- up just now, one snapshot has both, or neither.
    DELETE FROM {schema}.rolled_up_sessions r
    WHERE r.user_id = of_user AND r.session_id = of_session
        AND NOT EXISTS (
            SELECT FROM {schema}.session_records s
            WHERE s.user_id = of_user AND s.session_id = of_session AND s.rolled_up
        )
    RETURNING * INTO orphan;
    IF FOUND THEN
        PERFORM {schema}.append_rollup_changes_v1(orphan, -1);
        RETURN true;
    END IF;
    RETURN was_rolled_up;
END
$body$;
