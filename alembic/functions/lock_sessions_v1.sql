-- Locks all that the items are about, so that nobody changes it before this transaction ends: keys of the user's scope,
-- then sessions, each sorted (rule R10).
CREATE FUNCTION {schema}.lock_sessions_v1(waves jsonb) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $body$
DECLARE
    users uuid[];
    sessions text[];
    existing int;
    locked int;
BEGIN
    IF waves @? '$[*][*] ? (@.key_scope == "user")' THEN
        PERFORM pg_advisory_xact_lock(keys.lock_key)
        FROM (
            SELECT DISTINCT hashtextextended(i.user_id || i.event_id, 2) AS lock_key
            FROM jsonb_array_elements(waves) wave, jsonb_to_recordset(wave) i (user_id text, event_id text, key_scope text)
            WHERE i.key_scope = 'user'
            ORDER BY 1
        ) keys;
    END IF;

    SELECT array_agg(t.user_id ORDER BY t.user_id, t.session_id), array_agg(t.session_id ORDER BY t.user_id, t.session_id)
    INTO users, sessions
    FROM (
        SELECT DISTINCT i.user_id, coalesce(held.session_id, i.session_id) COLLATE "C" AS session_id
        FROM jsonb_array_elements(waves) wave,
             jsonb_to_recordset(wave) i (user_id uuid, session_id text, event_id uuid, key_scope text)
        LEFT JOIN {schema}.session_usage_events held
            ON i.key_scope = 'user' AND held.key_scope = 'user'
            AND held.user_id = i.user_id AND held.event_id = i.event_id
    ) t;

    SELECT count(*) INTO existing
    FROM unnest(users, sessions) t (user_id, session_id)
    JOIN {schema}.session_records s ON s.user_id = t.user_id AND s.session_id = t.session_id;
    IF existing < cardinality(users) THEN
        FOR place IN 1..cardinality(users) LOOP
            PERFORM {schema}.lock_session_v1(users[place], sessions[place]);
        END LOOP;
        RETURN;
    END IF;

    -- Nearly always all of them are there, and can be locked at once.
    PERFORM 1
    FROM unnest(users, sessions) t (user_id, session_id)
    JOIN {schema}.session_records s ON s.user_id = t.user_id AND s.session_id = t.session_id
    ORDER BY s.user_id, s.session_id
    FOR NO KEY UPDATE OF s;
    GET DIAGNOSTICS locked = ROW_COUNT;
    IF locked < existing THEN
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'a session was deleted meanwhile';
    END IF;
END
$body$;
