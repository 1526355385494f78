-- Rule R08: the first end wins.
CREATE FUNCTION {schema}.end_session_v1(item jsonb, now_at timestamptz) RETURNS text
LANGUAGE plpgsql AS $body$
BEGIN
    UPDATE {schema}.session_records s
    SET status = item ->> 'status',
        ended_at = coalesce((item ->> 'at')::timestamptz, now_at)
    WHERE s.user_id = (item ->> 'user_id')::uuid AND s.session_id = item ->> 'session_id' AND s.status = 'running';
    IF FOUND THEN
        RETURN 'ended';
    END IF;
    PERFORM 1 FROM {schema}.session_records
    WHERE user_id = (item ->> 'user_id')::uuid AND session_id = item ->> 'session_id';
    RETURN CASE WHEN FOUND THEN 'already_ended' ELSE 'unknown' END;
END
$body$;
