-- Says whether the ledger has the event that a reservation waits for, in the session that it names, or for a key of the user's
-- scope in any session of the user. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.is_settled(of_user uuid, of_session text, of_event uuid, scope text) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $body$
BEGIN
    IF scope = 'user' THEN
        RETURN EXISTS (
            SELECT FROM {schema}.session_usage_events e
            WHERE e.key_scope = 'user' AND e.user_id = of_user AND e.event_id = of_event
        );
    END IF;
    RETURN EXISTS (
        SELECT FROM {schema}.session_usage_events e
        WHERE e.user_id = of_user AND e.session_id = of_session AND e.event_id = of_event
    );
END
$body$;
