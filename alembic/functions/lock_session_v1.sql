-- The session's row, locked; null when there is none, and then nobody else can create it before this transaction ends.
CREATE FUNCTION {schema}.lock_session_v1(of_user uuid, of_session text) RETURNS {schema}.session_records
LANGUAGE plpgsql AS $body$
DECLARE
    session {schema}.session_records;
BEGIN
    SELECT * INTO session FROM {schema}.session_records
    WHERE user_id = of_user AND session_id = of_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        -- A row that is not there cannot be locked. Whoever may create one takes this lock instead, in the same order
        -- as rows are locked; two creators of two sessions in opposite order would otherwise wait for each other.
        PERFORM pg_advisory_xact_lock(hashtextextended(of_user::text || of_session, 1));
        SELECT * INTO session FROM {schema}.session_records
        WHERE user_id = of_user AND session_id = of_session FOR NO KEY UPDATE;
    END IF;
    RETURN session;
END
$body$;
