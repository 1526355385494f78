-- The function of the triggers `notify_of_insert`, `notify_of_update` and `notify_of_delete` of `session_records`. A host
-- creates the triggers where it wants notes. The function sends a note to all listeners: the name of the schema, and in a
-- second line the owners and the datasets of the changed sessions, or `*` where they are too many. A note has no content and
-- no id of a session. Postgres sends it at the commit, and sends equal notes of one transaction once, so the ids are sorted.
-- Answers null, as a trigger after a statement does. Raises nothing.
-- Locks: none here. At the commit, Postgres lets one transaction that notifies commit at a time, in the whole cluster.
CREATE FUNCTION {schema}.notify_of_changes_v1() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    ids text;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        SELECT string_agg(i.id::text, ' ' ORDER BY i.id) INTO ids
        FROM (
            SELECT c.user_id AS id FROM changed c
            UNION SELECT c.dataset_id FROM changed c
            -- Who saw the session through the dataset that it had sees it no more.
            UNION SELECT b.dataset_id FROM before b
        ) i;
    ELSE
        SELECT string_agg(i.id::text, ' ' ORDER BY i.id) INTO ids
        FROM (SELECT c.user_id AS id FROM changed c UNION SELECT c.dataset_id FROM changed c) i;
    END IF;
    IF ids IS NOT NULL THEN
        -- A note has less than 8,000 bytes.
        PERFORM pg_notify('session_lifecycle', concat(TG_TABLE_SCHEMA, E'\n', CASE WHEN length(ids) > 7000 THEN '*' ELSE ids END));
    END IF;
    RETURN NULL;
END
$body$;
