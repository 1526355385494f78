-- Brings runs, their threads, their sessions and the ledger in line after something of them was recorded. `users` and `runs`
-- are the runs that may change, `linked` says of which the threads may, `was_in` in which sessions they were;
-- `locked_users` and `locked_sessions` are the sessions that are locked. The caller holds the locks of both.
-- Answers a row for each session whose cost changed, with the difference.
-- Raises `SL002` where further sessions have to be locked, with them as its detail: the caller begins again with those.
-- Takes no lock.
CREATE FUNCTION {schema}.settle_runs(
    users uuid[], runs text[], linked boolean[], was_in text[], locked_users uuid[], locked_sessions text[],
    now_at timestamptz
) RETURNS TABLE (user_id uuid, session_id text, difference_usd numeric)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- An array is written `(SELECT users)` so that the planner does not know its length: a plan for a known length looks
-- cheaper than the prepared one, so it would be made anew in every call.
-- Runs are looked up by their keys. Some conditions on `started_at` are written so that they do not imply the condition of
-- a partial index: the planner could otherwise use that index and read all runs of a user.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
#variable_conflict use_column
DECLARE
    family_users uuid[];
    family_runs text[];
    rooted_users uuid[];
    rooted_runs text[];
    left_users uuid[];
    left_sessions text[];
    left_first timestamptz[];
    left_last timestamptz[];
    touches jsonb;
    adjustments jsonb;
    missing jsonb;
BEGIN
    SELECT array_agg(n.user_id), array_agg(n.run_id) INTO family_users, family_runs
    FROM unnest((SELECT users), (SELECT runs), (SELECT linked)) n (user_id, run_id, is_linked)
    WHERE n.is_linked;
    IF family_users IS NOT NULL THEN
        -- The parent of a run that a tool call began: the run with the newest such call before it.
        UPDATE {schema}.session_runs r
        SET parent_run_id = c.caller_run_id
        FROM (
            SELECT k.user_id, k.run_id, (
                SELECT s.run_id FROM {schema}.session_steps s
                WHERE s.user_id = k.user_id AND s.tool_call_id = k.parent_tool_call_id AND s.started_at <= k.started_at
                    AND s.run_id <> k.run_id
                ORDER BY s.started_at DESC, s.record_no DESC
                LIMIT 1
            ) AS caller_run_id
            FROM unnest((SELECT family_users), (SELECT family_runs)) n (user_id, run_id)
            JOIN LATERAL (
                SELECT k.* FROM {schema}.session_runs k WHERE k.user_id = n.user_id AND k.run_id = n.run_id LIMIT 1
            ) k ON k.parent_tool_call_id IS NOT NULL AND NOT k.parent_given
        ) c
        WHERE r.user_id = c.user_id AND r.run_id = c.run_id
            AND r.parent_run_id IS DISTINCT FROM c.caller_run_id;

        -- The root of each run, from the top of its thread down.
        -- Its top are the runs whose parent is not in the family: a sort finds them. A comparison of each with each would
        -- take seconds for the runs of a large thread.
        WITH RECURSIVE member AS (
            SELECT k.user_id, k.run_id, k.parent_run_id
            FROM unnest((SELECT family_users), (SELECT family_runs)) n (user_id, run_id)
            JOIN {schema}.session_runs k ON k.user_id = n.user_id AND k.run_id = n.run_id
        ),
        top AS (
            SELECT t.user_id, t.run_id
            FROM (
                SELECT m.user_id, m.child_run_id AS run_id,
                       bool_or(m.child_run_id IS NULL) OVER (PARTITION BY m.user_id, m.run_id) AS is_below
                FROM (
                    SELECT m.user_id, m.run_id, NULL AS child_run_id FROM member m
                    UNION ALL
                    SELECT m.user_id, m.parent_run_id, m.run_id FROM member m
                ) m
            ) t
            WHERE t.run_id IS NOT NULL AND NOT t.is_below
        ),
        thread AS (
            SELECT k.user_id, k.run_id,
                   CASE WHEN k.root_given THEN k.root_run_id WHEN k.parent_run_id IS NULL THEN k.run_id
                        ELSE parent.root_run_id END AS root_run_id
            FROM (
                SELECT t.user_id, t.run_id FROM top t
                UNION
                SELECT k.user_id, k.run_id
                FROM unnest((SELECT family_users), (SELECT family_runs)) n (user_id, run_id)
                JOIN {schema}.session_runs k ON k.user_id = n.user_id AND k.run_id = n.run_id
                WHERE k.root_given
            ) n
            JOIN {schema}.session_runs k ON k.user_id = n.user_id AND k.run_id = n.run_id
            LEFT JOIN {schema}.session_runs parent ON parent.user_id = k.user_id AND parent.run_id = k.parent_run_id
            WHERE k.root_given OR (k.started_at IS NULL) IS NOT true
            UNION ALL
            SELECT c.user_id, c.run_id, t.root_run_id
            FROM thread t
            -- The limit, which never cuts, makes the planner look the children up run by run.
            JOIN LATERAL (
                SELECT c.user_id, c.run_id FROM {schema}.session_runs c
                WHERE c.user_id = t.user_id AND c.parent_run_id = t.run_id
                    AND NOT c.root_given AND (c.started_at IS NULL) IS NOT true
                LIMIT 1000000000
            ) c ON true
        ),
        changed AS (
            UPDATE {schema}.session_runs r
            SET root_run_id = t.root_run_id
            FROM thread t
            WHERE r.user_id = t.user_id AND r.run_id = t.run_id AND r.root_run_id IS DISTINCT FROM t.root_run_id
        )
        SELECT coalesce(array_agg(t.user_id), '{}'), coalesce(array_agg(t.run_id), '{}') INTO rooted_users, rooted_runs
        FROM thread t;
        -- Runs that are each other's ancestors have no root.
        IF cardinality(rooted_runs) < cardinality(family_runs) THEN
            UPDATE {schema}.session_runs r
            SET root_run_id = NULL
            FROM (
                SELECT n.user_id, n.run_id FROM unnest((SELECT family_users), (SELECT family_runs)) n (user_id, run_id)
                EXCEPT
                SELECT t.user_id, t.run_id FROM unnest((SELECT rooted_users), (SELECT rooted_runs)) t (user_id, run_id)
            ) n
            WHERE r.user_id = n.user_id AND r.run_id = n.run_id AND r.root_run_id IS NOT NULL;
        END IF;

        -- The session of each run: the one given, else the root's. A root without a session is in one named like itself.
        UPDATE {schema}.session_runs r
        SET session_id = c.session_id
        FROM (
            SELECT k.user_id, k.run_id,
                   CASE WHEN root.session_given THEN root.session_id
                        WHEN root.started_at IS NOT NULL THEN root.run_id END AS session_id
            FROM unnest((SELECT family_users), (SELECT family_runs)) n (user_id, run_id)
            JOIN {schema}.session_runs k ON k.user_id = n.user_id AND k.run_id = n.run_id
            LEFT JOIN {schema}.session_runs root
                ON root.user_id = k.user_id AND root.run_id = k.root_run_id
            WHERE (k.started_at IS NULL) IS NOT true AND NOT k.session_given
        ) c
        WHERE r.user_id = c.user_id AND r.run_id = c.run_id
            AND r.session_id IS DISTINCT FROM c.session_id;
    END IF;

    -- Some runs moved to another session. This finds the sessions they moved out of, and the times of these runs.
    SELECT array_agg(l.user_id), array_agg(l.session_id), array_agg(l.first_seen), array_agg(l.last_seen)
    INTO left_users, left_sessions, left_first, left_last
    FROM (
        SELECT n.user_id, n.session_id, min(r.first_seen) AS first_seen, max(r.last_seen) AS last_seen
        FROM unnest((SELECT users), (SELECT runs), (SELECT was_in)) n (user_id, run_id, session_id)
        JOIN {schema}.session_runs r ON r.user_id = n.user_id AND r.run_id = n.run_id
        WHERE r.session_id IS DISTINCT FROM n.session_id AND n.session_id IS NOT NULL
        GROUP BY n.user_id, n.session_id
    ) l;

    -- What the runs say of their sessions, where the sessions do not have it yet.
    SELECT jsonb_agg(jsonb_build_object(
               'user_id', t.user_id, 'session_id', t.session_id, 'dataset_id', t.dataset_id, 'agent_name', t.agent_name,
               'first_seen', t.first_seen, 'last_seen', t.last_seen, 'is_new', t.is_new
           ))
    INTO touches
    FROM (
        SELECT t.*, s.user_id IS NULL AS is_new
        FROM (
            SELECT r.user_id, r.session_id,
                   min(r.first_seen) AS first_seen,
                   max(r.last_seen) AS last_seen,
                   (array_agg(r.dataset_id ORDER BY r.started_at, r.record_no)
                       FILTER (WHERE r.dataset_id IS NOT NULL))[1] AS dataset_id,
                   (array_agg(r.agent_name ORDER BY r.started_at, r.record_no)
                       FILTER (WHERE r.agent_name IS NOT NULL))[1] AS agent_name
            FROM unnest((SELECT users), (SELECT runs)) n (user_id, run_id)
            JOIN {schema}.session_runs r ON r.user_id = n.user_id AND r.run_id = n.run_id
            WHERE r.session_id IS NOT NULL
            GROUP BY r.user_id, r.session_id
        ) t
        LEFT JOIN {schema}.session_records s
            ON s.user_id = t.user_id AND s.session_id = t.session_id
        WHERE s.user_id IS NULL
            OR s.status = 'running' AND (
                t.first_seen < s.started_at OR t.last_seen > s.last_activity_at
                OR s.dataset_id IS NULL AND t.dataset_id IS NOT NULL OR s.agent_name IS NULL AND t.agent_name IS NOT NULL
            )
    ) t;

    -- What each run reports beyond its events, beside what the ledger holds of that.
    SELECT jsonb_agg(jsonb_build_object(
               'user_id', a.user_id, 'run_id', a.run_id, 'session_id', a.session_id, 'model', a.model,
               'provider', a.provider, 'due_usd', a.due_usd, 'at', a.at, 'held_session_id', a.held_session_id,
               'held_model', a.held_model, 'held_usd', a.held_usd, 'held_late', a.held_late
           ))
    INTO adjustments
    FROM (
        SELECT r.user_id, r.run_id, r.session_id, coalesce(r.model, '') AS model, r.provider, r.due_usd,
               coalesce(r.ended_at, r.started_at) AS at, e.session_id AS held_session_id,
               coalesce(e.model, '') AS held_model, e.cost_usd AS held_usd, e.late AS held_late
        FROM (
            SELECT r.*, CASE WHEN r.session_id IS NULL OR r.started_at IS NULL THEN 0
                             ELSE greatest(r.reported_cost_usd - r.events_cost_usd - coalesce(r.events_plan_cost_usd, 0), 0)
                        END AS due_usd
            FROM unnest((SELECT users), (SELECT runs)) n (user_id, run_id)
            JOIN {schema}.session_runs r ON r.user_id = n.user_id AND r.run_id = n.run_id
        ) r
        LEFT JOIN {schema}.session_usage_events e
            ON e.key_scope = 'run' AND e.user_id = r.user_id AND e.run_id = r.run_id
        WHERE coalesce(e.cost_usd, 0) <> r.due_usd
            OR r.due_usd > 0 AND (e.session_id <> r.session_id OR coalesce(e.model, '') <> coalesce(r.model, ''))
    ) a;

    -- Mostly nothing is left to settle.
    IF touches IS NULL AND adjustments IS NULL AND left_users IS NULL THEN
        RETURN;
    END IF;
    SELECT jsonb_agg(jsonb_build_object('user_id', t.user_id, 'session_id', t.session_id)) INTO missing
    FROM (
        SELECT t.user_id, t.session_id FROM jsonb_to_recordset(touches) t (user_id uuid, session_id text)
        UNION
        SELECT a.user_id, a.session_id FROM jsonb_to_recordset(adjustments) a (user_id uuid, session_id text)
        WHERE a.session_id IS NOT NULL
        UNION
        SELECT a.user_id, a.held_session_id
        FROM jsonb_to_recordset(adjustments) a (user_id uuid, held_session_id text)
        WHERE a.held_session_id IS NOT NULL
        UNION
        SELECT l.user_id, l.session_id FROM unnest((SELECT left_users), (SELECT left_sessions)) l (user_id, session_id)
        EXCEPT
        SELECT l.user_id, l.session_id FROM unnest((SELECT locked_users), (SELECT locked_sessions)) l (user_id, session_id)
    ) t;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SL002', MESSAGE = 'sessions have to be locked', DETAIL = missing::text;
    END IF;

    IF touches IS NOT NULL THEN
        INSERT INTO {schema}.session_records
            (user_id, session_id, dataset_id, agent_name, started_at, last_activity_at, derived)
        SELECT t.user_id, t.session_id, t.dataset_id, t.agent_name, t.first_seen, t.last_seen, true
        FROM jsonb_to_recordset(touches) t (
            user_id uuid, session_id text, dataset_id uuid, agent_name text, first_seen timestamptz,
            last_seen timestamptz, is_new boolean
        )
        WHERE t.is_new;
        UPDATE {schema}.session_records s
        SET started_at = least(s.started_at, t.first_seen),
            last_activity_at = greatest(s.last_activity_at, t.last_seen),
            dataset_id = coalesce(s.dataset_id, t.dataset_id),
            agent_name = coalesce(s.agent_name, t.agent_name),
            own_started_at = CASE WHEN NOT s.derived AND t.first_seen < s.started_at
                                  THEN coalesce(s.own_started_at, s.started_at) ELSE s.own_started_at END,
            own_last_activity_at = CASE WHEN NOT s.derived AND t.last_seen > s.last_activity_at
                                        THEN coalesce(s.own_last_activity_at, s.last_activity_at)
                                        ELSE s.own_last_activity_at END
        FROM jsonb_to_recordset(touches) t (
            user_id uuid, session_id text, dataset_id uuid, agent_name text, first_seen timestamptz,
            last_seen timestamptz, is_new boolean
        )
        WHERE NOT t.is_new AND s.user_id = t.user_id AND s.session_id = t.session_id;
    END IF;
    IF adjustments IS NOT NULL THEN
        RETURN QUERY SELECT d.* FROM {schema}.adjust_run(adjustments, now_at) d;
    END IF;

    -- A session that only stands for a thread goes when its last run leaves it.
    IF left_users IS NOT NULL THEN
        WITH empty AS (
            DELETE FROM {schema}.session_records s
            USING unnest((SELECT left_users), (SELECT left_sessions)) l (user_id, session_id)
            WHERE s.user_id = l.user_id AND s.session_id = l.session_id AND s.derived
                AND NOT EXISTS (
                    SELECT FROM {schema}.session_runs r
                    WHERE r.user_id = s.user_id AND r.session_id = s.session_id AND r.started_at IS NOT NULL
                )
                AND NOT EXISTS (
                    SELECT FROM {schema}.session_usage_events e
                    WHERE e.user_id = s.user_id AND e.session_id = s.session_id
                )
            RETURNING s.user_id, s.session_id
        )
        DELETE FROM {schema}.session_model_usage m
        USING empty e
        WHERE m.user_id = e.user_id AND m.session_id = e.session_id;
        -- A session that stays loses the times of the runs that left, and keeps its own.
        UPDATE {schema}.session_records s
        SET started_at = coalesce(least(t.own_started_at, t.first_seen), s.started_at),
            last_activity_at = coalesce(greatest(t.own_last_activity_at, t.last_seen), s.last_activity_at),
            own_started_at = CASE WHEN t.first_seen < t.own_started_at THEN t.own_started_at END,
            own_last_activity_at = CASE WHEN t.last_seen > t.own_last_activity_at THEN t.own_last_activity_at END
        FROM (
            SELECT k.user_id, k.session_id, r.first_seen, r.last_seen,
                   CASE WHEN NOT k.derived THEN coalesce(k.own_started_at, k.started_at) END AS own_started_at,
                   CASE WHEN NOT k.derived THEN coalesce(k.own_last_activity_at, k.last_activity_at) END
                       AS own_last_activity_at
            FROM unnest((SELECT left_users), (SELECT left_sessions), (SELECT left_first), (SELECT left_last))
                l (user_id, session_id, first_seen, last_seen)
            JOIN {schema}.session_records k ON k.user_id = l.user_id AND k.session_id = l.session_id
            CROSS JOIN LATERAL (
                SELECT min(r.first_seen) AS first_seen, max(r.last_seen) AS last_seen FROM {schema}.session_runs r
                WHERE r.user_id = l.user_id AND r.session_id = l.session_id AND r.started_at IS NOT NULL
            ) r
            -- Reads the session's runs only where one that left may have given the session a time.
            WHERE k.status = 'running' AND (l.first_seen <= k.started_at OR l.last_seen >= k.last_activity_at)
        ) t
        WHERE s.user_id = t.user_id AND s.session_id = t.session_id;
    END IF;
END
$body$;
