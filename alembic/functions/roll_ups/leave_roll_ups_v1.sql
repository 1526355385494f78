-- The trigger `leave_roll_ups` of `session_records`: takes a rolled-up session that changes or goes out of the roll-ups.
-- Any change counts, by any statement of anybody. The row of `rolled_up_sessions` says what the roll-ups have of the
-- session, so exactly that is taken out.
-- Answers the row to be written, no longer marked as rolled up. Raises nothing.
-- Locks: the session's row is locked by the statement that fires the trigger; the row of `rolled_up_sessions` is deleted.
CREATE FUNCTION {schema}.leave_roll_ups_v1() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    kept record;
BEGIN
    DELETE FROM {schema}.rolled_up_sessions r
    WHERE r.user_id = OLD.user_id AND r.session_id = OLD.session_id
    RETURNING r.user_id, r.dataset_id, r.status, r.started_at, r.last_activity_at, r.ended_at, r.tokens_in, r.tokens_out,
              r.cost_usd, r.unpriced_events, r.unmeasured_events, r.late_events, r.late_cost_usd, r.further_totals, r.models
    INTO kept;
    IF FOUND THEN
        PERFORM {schema}.append_changes(
            kept.user_id, kept.dataset_id, kept.status, kept.started_at, kept.last_activity_at, kept.ended_at,
            kept.tokens_in, kept.tokens_out, kept.cost_usd, kept.unpriced_events, kept.unmeasured_events,
            kept.late_events, kept.late_cost_usd, kept.further_totals, kept.models, -1
        );
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    NEW.rolled_up := false;
    RETURN NEW;
END
$body$;
