-- Takes one session out of the roll-ups, with all they have of it. A session that was rolled up rightly only leaves them:
-- reads count its row, and the next `roll_up` puts it in again.
-- Answers whether the roll-ups had anything of the session. Raises nothing.
-- Locks: the session's row, then its row of `rolled_up_sessions`.
CREATE FUNCTION {schema}.take_out_of_roll_ups_v1(of_user uuid, of_session text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    was_rolled_up boolean;
    kept record;
BEGIN
    -- The trigger takes the session out. A transaction that rolls it up or changes it at the same time is waited for.
    UPDATE {schema}.session_records s
    SET rolled_up = false
    WHERE s.user_id = of_user AND s.session_id = of_session AND s.rolled_up;
    was_rolled_up := FOUND;
    -- A row may be left of a session that is gone, that is not rolled up, or whose trigger is disabled. Where the session
    -- is rolled up at this moment, the snapshot has both rows or neither.
    DELETE FROM {schema}.rolled_up_sessions r
    WHERE r.user_id = of_user AND r.session_id = of_session
        AND NOT EXISTS (
            SELECT FROM {schema}.session_records s
            WHERE s.user_id = of_user AND s.session_id = of_session AND s.rolled_up
        )
    RETURNING r.user_id, r.dataset_id, r.status, r.started_at, r.last_activity_at, r.ended_at, r.tokens_in, r.tokens_out,
              r.cost_usd, r.unpriced_events, r.unmeasured_events, r.late_events, r.late_cost_usd, r.further_totals, r.models
    INTO kept;
    IF FOUND THEN
        PERFORM {schema}.append_changes(
            kept.user_id, kept.dataset_id, kept.status, kept.started_at, kept.last_activity_at, kept.ended_at,
            kept.tokens_in, kept.tokens_out, kept.cost_usd, kept.unpriced_events, kept.unmeasured_events,
            kept.late_events, kept.late_cost_usd, kept.further_totals, kept.models, -1
        );
        RETURN true;
    END IF;
    RETURN was_rolled_up;
END
$body$;
