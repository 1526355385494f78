-- Locks a session's row. Where there is none, keeps everybody else from creating it until the transaction ends.
-- Answers nothing. Lets through `SL004` of `refuse_erased`.
-- Locks: the session's row, or an advisory lock with seed 1 on the session's key, and then that of `refuse_erased`.
CREATE FUNCTION {schema}.lock_session(of_user uuid, of_session text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM 1 FROM {schema}.session_records
    WHERE user_id = of_user AND session_id = of_session FOR NO KEY UPDATE;
    IF FOUND THEN
        RETURN;
    END IF;
    -- A row that does not exist cannot be locked. A transaction that may create it takes this lock instead, in the order
    -- of the rows' locks: two creators of two sessions in opposite order would otherwise wait for each other.
    PERFORM pg_advisory_xact_lock(hashtextextended(of_user::text || of_session, 1))
    FROM (SELECT count(*) FROM {schema}.session_buckets) here;
    PERFORM 1 FROM {schema}.session_records
    WHERE user_id = of_user AND session_id = of_session FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM {schema}.refuse_erased(of_user);
    END IF;
END
$body$;
