-- Locks a session's row; where there is none, makes that nobody else can create it before this transaction ends.
CREATE FUNCTION {schema}.lock_session_v2(of_user uuid, of_session text) RETURNS void
LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM 1 FROM {schema}.session_records
    WHERE user_id = of_user AND session_id = of_session FOR NO KEY UPDATE;
    IF FOUND THEN
        RETURN;
    END IF;
    -- A row that is not there cannot be locked. Whoever may create one takes this lock instead, in the same order
    -- as rows are locked; two creators of two sessions in opposite order would otherwise wait for each other.
    PERFORM pg_advisory_xact_lock(hashtextextended(of_user::text || of_session, 1));
    PERFORM 1 FROM {schema}.session_records
    WHERE user_id = of_user AND session_id = of_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM {schema}.refuse_erased_v1(of_user);
    END IF;
END
$body$;
