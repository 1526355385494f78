-- Refuses parents that make one of these sessions its own ancestor. The caller has written the parents already, so parents
-- that come together are seen together.
-- Answers nothing. Raises `SL005` with the parent as its detail.
-- Locks: an advisory lock with seed 7 on each user, in their order. One transaction at a time changes the parents of a user's
-- sessions: the second one waits here, and then sees what the first one wrote. It is the last lock of all (rule R10).
CREATE FUNCTION {schema}.refuse_parent_cycles(of_users uuid[], of_sessions text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
DECLARE
    found_parent text;
BEGIN
    PERFORM pg_advisory_xact_lock(users.lock_key)
    FROM (
        SELECT DISTINCT hashtextextended(t.user_id::text, 7) AS lock_key FROM unnest(of_users) t (user_id) ORDER BY 1
    ) users, (SELECT count(*) FROM {schema}.session_buckets) here;
    -- Parents are compared with NULL outside of the lookups. Inside, the planner could use the index of the sessions that have
    -- a parent, and read all those of the user.
    WITH RECURSIVE above AS (
        SELECT t.user_id, t.session_id COLLATE "C" AS session_id, s.parent_session_id AS first_parent,
               s.parent_session_id AS ancestor
        FROM unnest(of_users, of_sessions) t (user_id, session_id)
        JOIN LATERAL (
            SELECT s.parent_session_id FROM {schema}.session_records s
            WHERE s.user_id = t.user_id AND s.session_id = t.session_id
            LIMIT 1
        ) s ON s.parent_session_id IS NOT NULL
        UNION
        SELECT a.user_id, a.session_id, a.first_parent, s.parent_session_id
        FROM above a
        JOIN LATERAL (
            SELECT s.parent_session_id FROM {schema}.session_records s
            WHERE s.user_id = a.user_id AND s.session_id = a.ancestor
            LIMIT 1
        ) s ON s.parent_session_id IS NOT NULL
    )
    SELECT a.first_parent INTO found_parent FROM above a WHERE a.ancestor = a.session_id LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'SL005', MESSAGE = 'a session would descend from itself', DETAIL = found_parent;
    END IF;
END
$body$;
