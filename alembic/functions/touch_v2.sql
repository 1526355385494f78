-- What nearly every touch is: one more sign of life of a session that runs. True when it was that; else nothing was
-- written, and `record_wave_v2` decides.
CREATE FUNCTION {schema}.touch_v2(item jsonb, now_at timestamptz) RETURNS boolean
LANGUAGE plpgsql AS $body$
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
