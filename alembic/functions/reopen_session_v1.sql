-- Rule R08: makes an ended session running again; being reopened is a sign of life.
CREATE FUNCTION {schema}.reopen_session_v1(item jsonb, now_at timestamptz) RETURNS text
LANGUAGE plpgsql AS $body$
BEGIN
    UPDATE {schema}.session_records s
    SET status = 'running',
        ended_at = NULL,
        last_activity_at = greatest(s.last_activity_at, coalesce((item ->> 'at')::timestamptz, now_at))
    WHERE s.user_id = (item ->> 'user_id')::uuid AND s.session_id = item ->> 'session_id' AND s.status <> 'running';
    IF FOUND THEN
        RETURN 'reopened';
    END IF;
    PERFORM 1 FROM {schema}.session_records
    WHERE user_id = (item ->> 'user_id')::uuid AND session_id = item ->> 'session_id';
    RETURN CASE WHEN FOUND THEN 'already_running' ELSE 'unknown' END;
END
$body$;
