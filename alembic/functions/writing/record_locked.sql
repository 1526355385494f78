-- Takes all locks that the items need, then writes one wave after another. `others` are further sessions and runs to lock,
-- `has_runs` says whether any item names a run, or has a key that may hold an event of a run in any session.
-- Answers a row for each item; where an item has several rows, the last one holds.
-- Raises `SL002` where further sessions or runs have to be locked, with them as its detail: `record_v1` calls again. Lets through
-- `SL003` and `SL004` of `lock_sessions`, `SL002` of `settle_runs`, and `SL005` of `refuse_parent_cycles`.
-- Locks: those of `lock_sessions`, then those of `lock_runs`, then that of `refuse_parent_cycles` (rule R10).
CREATE FUNCTION {schema}.record_locked(
    waves jsonb, activity jsonb, others jsonb, has_runs boolean, now_at timestamptz
) RETURNS TABLE (
    item_position int,
    outcome text,
    event_cost_usd numeric,
    session_tokens_in bigint,
    session_tokens_out bigint,
    session_cost_usd numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- An array is written `(SELECT users)` so that the planner does not know its length: a plan for a known length looks
-- cheaper than the prepared one, so it would be made anew in every call.
AS $body$
#variable_conflict use_column
DECLARE
    locked record;
    named record;
    followed record;
    missing jsonb;
    -- The receipts of each wave. An array grows in place; one JSON list would be copied with every wave.
    of_waves jsonb[] := '{}';
    receipts jsonb;
    last_wave int := jsonb_array_length(waves) - 1;
    differences jsonb;
    -- The users whose sessions the next wave ends or reopens; null after the last wave. And their runs.
    ending uuid[];
    settled record;
BEGIN
    locked := {schema}.lock_sessions(waves, activity, others);
    IF NOT (has_runs OR {schema}.replaces_run_events(waves)) THEN
        FOR wave IN 0..last_wave LOOP
            RETURN QUERY SELECT w.* FROM {schema}.record_wave(waves -> wave, now_at) w;
        END LOOP;
        IF waves @? '$[*][*].parent_session_id' THEN
            PERFORM {schema}.refuse_parent_cycles(locked.users, locked.sessions);
        END IF;
        RETURN;
    END IF;

    named := {schema}.lock_runs(waves || others, activity);
    followed := {schema}.follow_runs(waves, activity);
    IF followed.waves IS NOT NULL THEN
        waves := followed.waves;
        activity := followed.activity;
        last_wave := jsonb_array_length(waves) - 1;
        SELECT jsonb_agg(jsonb_build_object('user_id', t.user_id, 'session_id', t.session_id, 'run_id', t.run_id))
        INTO missing
        FROM (
            (
                SELECT i.user_id, i.session_id COLLATE "C" AS session_id, NULL AS run_id
                FROM jsonb_array_elements(waves) wave, jsonb_to_recordset(wave) i (user_id uuid, session_id text)
                EXCEPT
                SELECT l.user_id, l.session_id, NULL
                FROM unnest((SELECT locked.users), (SELECT locked.sessions)) l (user_id, session_id)
            )
            UNION ALL
            -- In the session that an event moved to, its key may hold an event of another run.
            SELECT i.user_id, i.session_id, held.run_id
            FROM jsonb_array_elements(waves) wave,
                 jsonb_to_recordset(wave) i (user_id uuid, session_id text, event_id uuid)
            JOIN LATERAL (
                SELECT e.run_id FROM {schema}.session_usage_events e
                WHERE e.user_id = i.user_id AND e.session_id = i.session_id AND e.event_id = i.event_id
                LIMIT 1
            ) held ON held.run_id IS NOT NULL
            WHERE NOT EXISTS (
                SELECT FROM unnest((SELECT named.users), (SELECT named.runs)) n (user_id, run_id)
                WHERE n.user_id = i.user_id AND n.run_id = held.run_id
            )
        ) t;
        IF missing IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'SL002', MESSAGE = 'sessions or runs have to be locked', DETAIL = missing::text;
        END IF;
    END IF;
    FOR wave IN 0..last_wave LOOP
        receipts := '[]';
        -- Steps, and runs that name no session, write nothing to a session.
        IF waves -> wave <> '[]' THEN
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                       'item_position', w.item_position, 'outcome', w.outcome, 'event_cost_usd', w.event_cost_usd,
                       'session_tokens_in', w.session_tokens_in, 'session_tokens_out', w.session_tokens_out,
                       'session_cost_usd', w.session_cost_usd
                   )), '[]')
            INTO receipts
            FROM {schema}.record_wave(waves -> wave, now_at) w;
        END IF;
        of_waves := array_append(of_waves, receipts);
        RETURN QUERY
        SELECT a.item_position, a.outcome, NULL::numeric, 0::bigint, 0::bigint, 0::numeric
        FROM {schema}.record_activity(activity -> wave) a;
        -- Runs are settled after the last wave, and before sessions end: those of the users whose sessions do, so nobody's
        -- receipts depend on what else is in the batch.
        IF wave < last_wave THEN
            SELECT array_agg(DISTINCT e.user_id) INTO ending
            FROM jsonb_to_recordset(waves -> (wave + 1)) e (user_id uuid, kind text)
            WHERE e.kind IN ('end', 'reopen');
            CONTINUE WHEN ending IS NULL;
            SELECT array_agg(n.user_id) AS users, array_agg(n.run_id) AS runs, array_agg(n.is_linked) AS linked,
                   array_agg(n.session_id) AS sessions
            INTO settled
            FROM unnest(named.users, named.runs, named.linked, named.sessions) n (user_id, run_id, is_linked, session_id)
            WHERE n.user_id IN (SELECT e.user_id FROM unnest((SELECT ending)) e (user_id));
            CONTINUE WHEN settled.users IS NULL;
        ELSE
            ending := NULL;
            settled := named;
        END IF;

        SELECT jsonb_agg(jsonb_build_object(
                   'user_id', d.user_id, 'session_id', d.session_id, 'difference_usd', d.difference_usd
               ))
        INTO differences
        FROM {schema}.settle_runs(
            settled.users, settled.runs, settled.linked, settled.sessions, locked.users, locked.sessions, now_at
        ) d;
        receipts := to_jsonb(of_waves);
        -- Settling changed the cost of sessions: what a run reports beyond its events shrinks when events arrive.
        RETURN QUERY
        SELECT w.item_position, w.outcome, w.event_cost_usd, w.session_tokens_in, w.session_tokens_out,
               w.session_cost_usd + coalesce(d.difference_usd, 0)
        FROM jsonb_array_elements(receipts) of_wave,
             jsonb_to_recordset(of_wave) w (
                 item_position int, outcome text, event_cost_usd numeric, session_tokens_in bigint,
                 session_tokens_out bigint, session_cost_usd numeric
             )
        JOIN (
            SELECT i.position, i.user_id, i.session_id, i.answers
            FROM jsonb_array_elements(waves) wave,
                 jsonb_to_recordset(wave) i (position int, user_id uuid, session_id text, answers boolean)
        ) i ON i.position = w.item_position
        LEFT JOIN jsonb_to_recordset(differences) d (user_id uuid, session_id text, difference_usd numeric)
            ON d.user_id = i.user_id AND d.session_id = i.session_id
        WHERE i.answers IS NOT false
            AND (ending IS NULL OR i.user_id IN (SELECT e.user_id FROM unnest((SELECT ending)) e (user_id)));
        EXIT WHEN ending IS NULL;
        -- The receipts of the other users wait until their runs are settled.
        SELECT ARRAY[coalesce(jsonb_agg(w.receipt), '[]')] INTO of_waves
        FROM jsonb_array_elements(receipts) of_wave, jsonb_array_elements(of_wave) w (receipt)
        JOIN (
            SELECT i.position, i.user_id
            FROM jsonb_array_elements(waves) wave, jsonb_to_recordset(wave) i (position int, user_id uuid)
        ) i ON i.position = (w.receipt ->> 'item_position')::int
        WHERE NOT EXISTS (SELECT FROM unnest((SELECT ending)) e (user_id) WHERE e.user_id = i.user_id);
    END LOOP;
    IF waves @? '$[*][*].parent_session_id' THEN
        PERFORM {schema}.refuse_parent_cycles(locked.users, locked.sessions);
    END IF;
END
$body$;
