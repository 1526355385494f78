-- Writes what runs report beyond their events: one row of the ledger for each run, and the totals by the difference. An
-- adjustment has in `held_…` what the row is now, and in the rest what it becomes; `due_usd` 0 removes the row. The caller
-- holds the locks of the sessions.
-- Answers a row for each session, with the difference of its cost. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.adjust_run(adjustments jsonb, now_at timestamptz) RETURNS TABLE (
    user_id uuid, session_id text, difference_usd numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
#variable_conflict use_column
BEGIN
    INSERT INTO {schema}.session_model_usage (user_id, session_id, model)
    SELECT DISTINCT a.user_id, a.session_id, a.model
    FROM jsonb_to_recordset(adjustments) a (user_id uuid, session_id text, model text, due_usd numeric)
    WHERE a.due_usd > 0
    ON CONFLICT DO NOTHING;

    RETURN QUERY
    WITH adjustment AS MATERIALIZED (
        SELECT a.*, a.held_usd IS NOT NULL AS is_held,
               -- A row keeps whether it is late: a change of its amount does not change when it happened.
               CASE WHEN a.due_usd > 0 AND a.held_session_id IS DISTINCT FROM a.session_id
                    THEN s.status <> 'running' AND a.at > s.ended_at ELSE a.held_late END AS is_late
        FROM jsonb_to_recordset(adjustments) a (
            user_id uuid, run_id text, session_id text, model text, provider text, due_usd numeric, at timestamptz,
            held_session_id text, held_model text, held_usd numeric, held_late boolean
        )
        LEFT JOIN {schema}.session_records s
            ON s.user_id = a.user_id AND s.session_id = a.session_id
    ),
    gone AS (
        DELETE FROM {schema}.session_usage_events e
        USING adjustment a
        WHERE a.is_held AND a.due_usd = 0
            AND e.key_scope = 'run' AND e.user_id = a.user_id AND e.run_id = a.run_id
    ),
    changed AS (
        UPDATE {schema}.session_usage_events e
        SET session_id = a.session_id, at = a.at, recorded_at = now_at, model = nullif(a.model, ''),
            provider = a.provider, cost_usd = a.due_usd, given_cost_usd = a.due_usd, late = a.is_late
        FROM adjustment a
        WHERE a.is_held AND a.due_usd > 0
            AND e.key_scope = 'run' AND e.user_id = a.user_id AND e.run_id = a.run_id
    ),
    added AS (
        INSERT INTO {schema}.session_usage_events
            (user_id, session_id, event_id, at, recorded_at, model, provider, cost_usd, given_cost_usd, price_source, late,
             key_scope, run_id)
        SELECT a.user_id, a.session_id, md5('run:' || a.run_id)::uuid, a.at, now_at, nullif(a.model, ''), a.provider,
               a.due_usd, a.due_usd, 'reported', a.is_late, 'run', a.run_id
        FROM adjustment a
        WHERE NOT a.is_held AND a.due_usd > 0
    ),
    difference AS MATERIALIZED (
        SELECT a.user_id, a.session_id, a.model, a.due_usd AS cost_usd, 1 AS events, a.is_late
        FROM adjustment a
        WHERE a.due_usd > 0
        UNION ALL
        SELECT a.user_id, a.held_session_id, a.held_model, -a.held_usd, -1, a.held_late
        FROM adjustment a
        WHERE a.is_held
    ),
    session_difference AS MATERIALIZED (
        SELECT d.user_id, d.session_id,
               coalesce(sum(d.cost_usd) FILTER (WHERE NOT d.is_late), 0) AS cost_usd,
               coalesce(sum(d.cost_usd) FILTER (WHERE d.is_late), 0) AS late_cost_usd,
               coalesce(sum(d.events) FILTER (WHERE d.is_late), 0) AS late_events
        FROM difference d
        GROUP BY d.user_id, d.session_id
    ),
    session AS (
        UPDATE {schema}.session_records s
        SET cost_usd = s.cost_usd + d.cost_usd,
            late_cost_usd = s.late_cost_usd + d.late_cost_usd,
            late_events = s.late_events + d.late_events
        FROM session_difference d
        WHERE s.user_id = d.user_id AND s.session_id = d.session_id
    ),
    model_usage AS (
        UPDATE {schema}.session_model_usage m
        SET cost_usd = m.cost_usd + d.cost_usd, events = m.events + d.events
        FROM (
            SELECT d.user_id, d.session_id, lower(d.model COLLATE "C") AS model_key, sum(d.cost_usd) AS cost_usd, sum(d.events) AS events
            FROM difference d
            WHERE NOT d.is_late
            GROUP BY d.user_id, d.session_id, lower(d.model COLLATE "C")
        ) d
        WHERE m.user_id = d.user_id AND m.session_id = d.session_id
            AND m.model_key = d.model_key
    )
    SELECT d.user_id, d.session_id, d.cost_usd FROM session_difference d;

    -- A model goes when the only row under it was an adjustment that went elsewhere.
    -- They are looked up first: a deletion with these conditions may begin at them, and read the table for those that hold.
    DELETE FROM {schema}.session_model_usage m
    USING (
        SELECT k.user_id, k.session_id, k.model_key
        FROM (
            SELECT DISTINCT a.user_id, t.session_id, t.model
            FROM jsonb_to_recordset(adjustments) a (
                user_id uuid, session_id text, model text, held_session_id text, held_model text
            ), LATERAL (VALUES (a.session_id, a.model), (a.held_session_id, a.held_model)) t (session_id, model)
        ) t
        JOIN LATERAL (
            SELECT k.* FROM {schema}.session_model_usage k
            WHERE k.user_id = t.user_id AND k.session_id = t.session_id AND k.model_key = lower(t.model COLLATE "C")
            LIMIT 1
        ) k ON k.events = 0 AND k.cost_usd = 0 AND k.tokens_in = 0 AND k.tokens_out = 0 AND k.further_totals IS NULL
    ) k
    WHERE m.user_id = k.user_id AND m.session_id = k.session_id AND m.model_key = k.model_key;
END
$body$;
