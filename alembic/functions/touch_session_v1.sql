-- Rule R01: creates a running session, or moves a running one's activity and fills what it does not have yet.
CREATE FUNCTION {schema}.touch_session_v1(item jsonb, now_at timestamptz) RETURNS text
LANGUAGE plpgsql AS $body$
DECLARE
    touch {schema}.session_records := jsonb_populate_record(NULL::{schema}.session_records, item);
    moment timestamptz := coalesce((item ->> 'at')::timestamptz, now_at);
    session {schema}.session_records;
BEGIN
    -- First what nearly every touch is: one more sign of life of a running session.
    UPDATE {schema}.session_records s
    SET last_activity_at = greatest(s.last_activity_at, moment),
        started_at = least(s.started_at, moment),
        dataset_id = coalesce(s.dataset_id, touch.dataset_id),
        agent_name = coalesce(s.agent_name, touch.agent_name),
        title = coalesce(s.title, touch.title),
        metadata = touch.metadata || s.metadata
    WHERE s.user_id = touch.user_id AND s.session_id = touch.session_id AND s.status = 'running';
    IF FOUND THEN
        RETURN 'touched';
    END IF;

    session := {schema}.lock_session_v1(touch.user_id, touch.session_id);
    IF session.user_id IS NULL THEN
        INSERT INTO {schema}.session_records
            (user_id, session_id, dataset_id, agent_name, title, metadata, started_at, last_activity_at)
        VALUES (touch.user_id, touch.session_id, touch.dataset_id, touch.agent_name, touch.title, touch.metadata,
                moment, moment);
        RETURN 'created';
    ELSIF session.status = 'running' THEN
        -- Created or reopened since the first look. It is locked now, so this is the second and last.
        RETURN {schema}.touch_session_v1(item, now_at);
    END IF;
    RETURN 'terminal';
END
$body$;
