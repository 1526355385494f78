-- Rolls up those sessions of `keys` that are ended, or were last active before `idle_before`, and are not rolled up yet;
-- returns how many. What a writer is at is passed by. Locks come first and what is added up is read after them, so a
-- session's totals and those by model are of one moment.
CREATE FUNCTION {schema}.roll_up_sessions_v2(keys jsonb, idle_before timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $body$
DECLARE
    users uuid[];
    sessions text[];
    added_users uuid[];
    added_sessions text[];
    added bigint;
    rolled_up_sessions bigint := 0;
    orphan {schema}.rolled_up_sessions;
BEGIN
    SELECT array_agg(l.user_id), array_agg(l.session_id) INTO users, sessions
    FROM (
        SELECT s.user_id, s.session_id
        FROM jsonb_to_recordset(keys) k (user_id uuid, session_id text)
        JOIN {schema}.session_records s ON s.user_id = k.user_id AND s.session_id = k.session_id
        WHERE (NOT s.rolled_up) IS NOT false AND (s.status <> 'running' OR s.last_activity_at < idle_before)
        ORDER BY s.user_id, s.session_id
        FOR NO KEY UPDATE OF s SKIP LOCKED
    ) l;
    UPDATE {schema}.session_records s
    SET rolled_up = true
    FROM unnest(users, sessions) l (user_id, session_id)
    WHERE s.user_id = l.user_id AND s.session_id = l.session_id;
    WHILE users IS NOT NULL LOOP
        -- Those whose row is there already are left. The conflict is found by the primary key, whatever is known of the
        -- table: looked for beforehand, while it is new, they were looked for by another index, in all of it.
        WITH rolled_up AS (
            INSERT INTO {schema}.rolled_up_sessions AS r
                (user_id, session_id, dataset_id, agent_name, status, started_at, last_activity_at, ended_at, tokens_in,
                 tokens_out, cost_usd, unpriced_events, unmeasured_events, late_events, late_cost_usd, models)
            SELECT s.user_id, s.session_id, s.dataset_id, s.agent_name, s.status, s.started_at, s.last_activity_at, s.ended_at,
                   s.tokens_in, s.tokens_out, s.cost_usd, s.unpriced_events, s.unmeasured_events, s.late_events,
                   s.late_cost_usd, m.models
            FROM unnest(users, sessions) l (user_id, session_id)
            JOIN {schema}.session_records s ON s.user_id = l.user_id AND s.session_id = l.session_id
            CROSS JOIN LATERAL (
                SELECT coalesce(jsonb_agg(m), '[]') AS models FROM {schema}.session_models_v1(s.user_id, s.session_id) m
            ) m
            ON CONFLICT (user_id, session_id) DO NOTHING
            RETURNING r
        )
        SELECT array_agg((a.r).user_id), array_agg((a.r).session_id), count({schema}.append_rollup_changes_v1(a.r, 1))
        INTO added_users, added_sessions, added
        FROM rolled_up a;
        rolled_up_sessions := rolled_up_sessions + added;
        SELECT array_agg(l.user_id), array_agg(l.session_id) INTO users, sessions
        FROM (
            SELECT * FROM unnest(users, sessions) l (user_id, session_id)
            EXCEPT
            SELECT * FROM unnest(added_users, added_sessions) a
        ) l;
        -- What was kept of a session that was not rolled up, since the trigger was disabled when it changed.
        FOR orphan IN
            DELETE FROM {schema}.rolled_up_sessions r
            USING unnest(users, sessions) l (user_id, session_id)
            WHERE r.user_id = l.user_id AND r.session_id = l.session_id
            RETURNING r.*
        LOOP
            PERFORM {schema}.append_rollup_changes_v1(orphan, -1);
        END LOOP;
    END LOOP;
    RETURN rolled_up_sessions;
END
$body$;
