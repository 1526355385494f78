-- Deletes the reservations of these users whose events are in the ledger. A function that deletes events calls it first: a
-- reservation whose event is gone would count again until its lease ends.
-- Answers nothing and raises nothing.
-- Locks: the rows that it deletes; it skips those that somebody else has locked, so it never waits.
CREATE FUNCTION {schema}.delete_settled(users uuid[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
BEGIN
    DELETE FROM {schema}.session_reservations r
    USING (
        SELECT t.user_id, t.session_id, t.event_id
        FROM (SELECT DISTINCT u.user_id FROM unnest((SELECT users)) u (user_id)) u
        JOIN {schema}.session_reservations t ON t.user_id = u.user_id
        WHERE {schema}.is_settled(t.user_id, t.session_id, t.event_id, t.key_scope)
        FOR UPDATE OF t SKIP LOCKED
    ) gone
    WHERE r.user_id = gone.user_id AND r.session_id = gone.session_id AND r.event_id = gone.event_id;
END
$body$;
