-- Replaces fields of a session. `changes` has a key for each field that is replaced: `agent_name, dataset_id, metadata,
-- parent_session_id, tags, title`; null empties the field. It is no activity: no time of the session changes.
-- Answers the session's row, or no row where there is none. Lets through `SL005` of `refuse_parent_cycles`.
-- Locks: the session's row, then that of `refuse_parent_cycles` where the parent is replaced (rule R10).
CREATE FUNCTION {schema}.update_session_v1(of_user uuid, of_session text, changes jsonb)
RETURNS SETOF {schema}.session_records
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $body$
BEGIN
    -- Any update takes a session out of the roll-ups, so without changes there is none.
    UPDATE {schema}.session_records s
    SET agent_name = CASE WHEN changes ? 'agent_name' THEN changes ->> 'agent_name' ELSE s.agent_name END,
        dataset_id = CASE WHEN changes ? 'dataset_id' THEN (changes ->> 'dataset_id')::uuid ELSE s.dataset_id END,
        metadata = CASE WHEN changes ? 'metadata' THEN coalesce(nullif(changes -> 'metadata', 'null'), '{}')
                        ELSE s.metadata END,
        parent_session_id = CASE WHEN changes ? 'parent_session_id' THEN changes ->> 'parent_session_id'
                                 ELSE s.parent_session_id END,
        tags = CASE WHEN changes ? 'tags' THEN nullif(nullif(changes -> 'tags', 'null'), '{}') ELSE s.tags END,
        title = CASE WHEN changes ? 'title' THEN changes ->> 'title' ELSE s.title END,
        derived = false
    WHERE s.user_id = of_user AND s.session_id = of_session AND changes <> '{}';
    IF FOUND AND changes ->> 'parent_session_id' IS NOT NULL THEN
        PERFORM {schema}.refuse_parent_cycles(ARRAY[of_user], ARRAY[of_session]);
    END IF;
    RETURN QUERY
    SELECT s.* FROM {schema}.session_records s WHERE s.user_id = of_user AND s.session_id = of_session;
END
$body$;
