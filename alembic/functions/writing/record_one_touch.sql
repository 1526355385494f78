-- Writes the usual touch: one more sign of life of a session that is running.
-- Answers whether the touch was that. If not, nothing was written, and `record_wave` decides.
-- Raises nothing.
-- Locks: the session's row.
CREATE FUNCTION {schema}.record_one_touch(item jsonb, now_at timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    moment timestamptz := coalesce((item ->> 'at')::timestamptz, now_at);
BEGIN
    UPDATE {schema}.session_records s
    SET last_activity_at = greatest(s.last_activity_at, moment),
        started_at = least(s.started_at, moment),
        dataset_id = coalesce(s.dataset_id, (item ->> 'dataset_id')::uuid),
        agent_name = coalesce(s.agent_name, item ->> 'agent_name'),
        title = coalesce(s.title, item ->> 'title'),
        derived = false
    WHERE s.user_id = (item ->> 'user_id')::uuid AND s.session_id = item ->> 'session_id' AND s.status = 'running';
    RETURN FOUND;
END
$body$;
