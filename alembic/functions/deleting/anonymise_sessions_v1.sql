-- Gives the sessions of `keys` to `pseudonym`, each under a random id, in one transaction. What they used and cost stays, and
-- when. What was said and done goes, and all that names anybody. A session goes along where one of its runs has events here.
-- Answers one row: how many rows went or changed. Raises nothing; it catches the `SL002` that it raises itself.
-- Locks: those of `lock_idle_sessions`, then those of `delete_activity` (rule R10).
CREATE FUNCTION {schema}.anonymise_sessions_v1(
    keys jsonb, pseudonym uuid,
    OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint,
    OUT session_keys jsonb
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
DECLARE
    locked record;
    activity record;
    random_ids text[];
    -- Made once: a volatile function within an UPDATE is refused by a distributed Postgres. Nobody can make the old ids of
    -- events of the new ones, as the secret is kept nowhere.
    secret text := gen_random_uuid()::text;
    missing jsonb;
BEGIN
    LOOP
        -- Where a run of another session has events in these sessions, that session goes along: what the run reports beyond
        -- its events stays true only beside all of them. The block is undone with its locks and begins again.
        BEGIN
            SELECT l.users, l.sessions INTO locked FROM {schema}.lock_idle_sessions(keys, '[]', NULL) l;
            SELECT a.runs, a.steps, a.messages, a.left_users, a.left_runs INTO activity
            FROM {schema}.delete_activity(locked.users, locked.sessions) a;
            SELECT jsonb_agg(jsonb_build_object('user_id', r.user_id, 'session_id', r.session_id)) INTO missing
            FROM unnest(activity.left_users, activity.left_runs) n (user_id, run_id)
            JOIN {schema}.session_runs r ON r.user_id = n.user_id AND r.run_id = n.run_id;
            IF missing IS NOT NULL THEN
                RAISE EXCEPTION USING ERRCODE = 'SL002', MESSAGE = 'sessions have to be locked';
            END IF;
            EXIT;
        EXCEPTION WHEN SQLSTATE 'SL002' THEN
            keys := keys || missing;
        END;
    END LOOP;
    random_ids := ARRAY(SELECT gen_random_uuid()::text FROM unnest(locked.sessions));

    PERFORM {schema}.delete_settled(locked.users);
    UPDATE {schema}.session_usage_events e
    SET user_id = pseudonym, session_id = t.random_id, event_id = md5(secret || e.event_id::text)::uuid,
        idempotency_key = NULL, run_id = NULL,
        key_scope = CASE WHEN e.key_scope = 'run' THEN 'run' ELSE 'session' END, details = '{}'
    FROM unnest(locked.users, locked.sessions, random_ids) t (user_id, session_id, random_id)
    WHERE e.user_id = t.user_id AND e.session_id = t.session_id;
    GET DIAGNOSTICS events = ROW_COUNT;
    UPDATE {schema}.session_model_usage m
    SET user_id = pseudonym, session_id = t.random_id
    FROM unnest(locked.users, locked.sessions, random_ids) t (user_id, session_id, random_id)
    WHERE m.user_id = t.user_id AND m.session_id = t.session_id;
    GET DIAGNOSTICS model_rows = ROW_COUNT;
    DELETE FROM {schema}.session_annotations a
    USING unnest(locked.users, locked.sessions) t (user_id, session_id)
    WHERE a.user_id = t.user_id AND a.session_id = t.session_id;
    UPDATE {schema}.session_records s
    SET user_id = pseudonym, session_id = t.random_id, agent_name = NULL, title = NULL, metadata = '{}', tags = NULL,
        waiting_since = NULL, end_reason = NULL, parent_session_id = NULL
    FROM unnest(locked.users, locked.sessions, random_ids) t (user_id, session_id, random_id)
    WHERE s.user_id = t.user_id AND s.session_id = t.session_id;
    GET DIAGNOSTICS sessions = ROW_COUNT;

    runs := activity.runs;
    steps := activity.steps;
    messages := activity.messages;
END
$body$;
