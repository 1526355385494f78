-- Deletes the runs, steps and messages of sessions. The caller holds the locks of the sessions.
-- Answers how many rows went; and in `named_users` and `named_runs` all runs that the sessions named, in the order of their
-- keys. Such a run may be of another session, or of none. Raises nothing.
-- Locks: the rows of all runs that the sessions name, in the order of their keys (rule R10).
CREATE FUNCTION {schema}.delete_activity(
    of_users uuid[], of_sessions text[],
    OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT named_users uuid[], OUT named_runs text[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
BEGIN
    SELECT array_agg(l.user_id), array_agg(l.run_id)
    INTO named_users, named_runs
    FROM (
        SELECT r.user_id, r.run_id
        FROM (
            SELECT e.user_id, e.run_id
            FROM unnest(of_users, of_sessions) t (user_id, session_id)
            JOIN {schema}.session_usage_events e ON e.user_id = t.user_id AND e.session_id = t.session_id
            UNION
            SELECT o.user_id, named.run_id
            FROM unnest(of_users, of_sessions) t (user_id, session_id)
            JOIN {schema}.session_runs o
                ON o.user_id = t.user_id AND o.session_id = t.session_id AND o.started_at IS NOT NULL,
            LATERAL (VALUES (o.run_id), (o.parent_run_id), (o.root_run_id)) named (run_id)
        ) n
        JOIN {schema}.session_runs r ON r.user_id = n.user_id AND r.run_id = n.run_id
        ORDER BY r.user_id, r.run_id
        FOR UPDATE OF r
    ) l;

    WITH gone AS (
        DELETE FROM {schema}.session_runs r
        USING unnest(of_users, of_sessions) t (user_id, session_id)
        WHERE r.user_id = t.user_id AND r.session_id = t.session_id AND r.started_at IS NOT NULL
        RETURNING r.user_id, r.run_id
    ),
    gone_steps AS (
        DELETE FROM {schema}.session_steps s USING gone g WHERE s.user_id = g.user_id AND s.run_id = g.run_id
        RETURNING true
    )
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM gone_steps) INTO runs, steps;

    DELETE FROM {schema}.session_messages m
    USING unnest(of_users, of_sessions) t (user_id, session_id)
    WHERE m.user_id = t.user_id AND m.session_id = t.session_id;
    GET DIAGNOSTICS messages = ROW_COUNT;
END
$body$;
