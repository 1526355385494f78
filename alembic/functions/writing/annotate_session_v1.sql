-- Writes an annotation of a session. It replaces the one with the same name and annotator; `by_whom` is the empty text where
-- the annotator is not known. It is no activity of the session.
-- Answers the time of the annotation: `given_at`, or now where it is null. Answers null where there is no such session.
-- Raises `SL008` where `given_at` is more than five minutes ahead of the database's clock (rule R09).
-- Locks: the session's row. A session that is deleted at the same time takes the annotation along.
CREATE FUNCTION {schema}.annotate_session_v1(
    of_user uuid, of_session text, of_name text, by_whom text, given_score double precision, given_label text,
    given_comment text, given_at timestamptz
) RETURNS timestamptz
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $body$
DECLARE
    is_derived boolean;
    -- now() would stand still in a host's transaction.
    annotated_at timestamptz := coalesce(given_at, statement_timestamp());
BEGIN
    IF given_at > statement_timestamp() + interval '5 minutes' THEN
        RAISE EXCEPTION USING ERRCODE = 'SL008', MESSAGE = 'a time is too far ahead', DETAIL = given_at::text;
    END IF;
    SELECT s.derived INTO is_derived
    FROM {schema}.session_records s
    WHERE s.user_id = of_user AND s.session_id = of_session
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- A derived session is deleted with its last run. This one has been named now.
    IF is_derived THEN
        UPDATE {schema}.session_records s SET derived = false WHERE s.user_id = of_user AND s.session_id = of_session;
    END IF;
    INSERT INTO {schema}.session_annotations AS a (user_id, session_id, name, annotator, score, label, comment, at)
    VALUES (of_user, of_session, of_name, by_whom, given_score, given_label, given_comment, annotated_at)
    ON CONFLICT (user_id, session_id, name, annotator) DO UPDATE
    SET score = excluded.score, label = excluded.label, comment = excluded.comment, at = excluded.at;
    RETURN annotated_at;
END
$body$;
