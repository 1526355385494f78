-- Writes the items of one wave: at most one for each key, and for each session either usage and touches, or a single end, or
-- a single reopening. One statement decides by rules R01 to R08 what becomes of each item, and writes it.
-- Answers a row for each item. Raises nothing.
-- Locks: none. `record_locked` holds the locks of all sessions, keys and runs, so the rows that the statement reads are those
-- that it changes.
CREATE FUNCTION {schema}.record_wave(wave jsonb, now_at timestamptz) RETURNS TABLE (
    item_position int,
    outcome text,
    event_cost_usd numeric,
    session_tokens_in bigint,
    session_tokens_out bigint,
    session_cost_usd numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- The statement may be planned while the tables are small and run when they are large. Lookups by key fit both.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS (
        SELECT i.position, i.kind, i.user_id, i.session_id AS named_session_id, i.dataset_id, i.agent_name, i.title,
               i.metadata, i.tags, i.parent_session_id, i.status, i.reason, i.event_id, i.model,
               i.provider, i.given_cost_usd, i.price_source, i.unit_prices, i.idempotency_key, i.run_id, i.cost_usd, i.at, i.began_at,
               coalesce(i.at, now_at) AS moment,
               -- A call takes longer than a microsecond an item, so what was used at one moment can be ordered by this.
               -- It is computed here because Citus refuses an UPDATE that adds an interval to a column.
               now_at + i.position * interval '1 microsecond' AS recorded_at,
               coalesce(i.tokens_in, 0) AS tokens_in,
               coalesce(i.tokens_out, 0) AS tokens_out,
               coalesce(i.cache_read_tokens, 0) AS cache_read_tokens,
               coalesce(i.cache_write_tokens, 0) AS cache_write_tokens,
               coalesce(i.reasoning_tokens, 0) AS reasoning_tokens,
               coalesce(i.errored, false) AS errored,
               coalesce(i.measured, true) AS measured,
               coalesce(i.key_scope, 'session') AS key_scope,
               coalesce(i.revision, 0) AS revision,
               coalesce(i.details, '{}') AS details,
               coalesce(i.touch, true) AS touch,
               coalesce(i.waiting, false) AS waiting,
               i.parts, i.plan_cost_usd,
               coalesce(i.billing, 'api') AS billing,
               coalesce(i.usage_kind, 'llm') AS usage_kind,
               coalesce(i.service_tier, 'standard') AS service_tier,
               coalesce(i.partial, false) AS partial
        FROM jsonb_to_recordset(wave) AS i (
            position int, kind text, user_id uuid, session_id text, at timestamptz, dataset_id uuid, agent_name text,
            title text, metadata jsonb, status text, event_id uuid, model text, provider text, tokens_in bigint,
            tokens_out bigint, cache_read_tokens bigint, cache_write_tokens bigint, reasoning_tokens bigint,
            cost_usd numeric, given_cost_usd numeric, price_source text, unit_prices jsonb, errored boolean,
            measured boolean, idempotency_key text, key_scope text, revision int, run_id text, details jsonb, touch boolean,
            began_at timestamptz, parts jsonb, billing text, plan_cost_usd numeric, usage_kind text, service_tier text,
            partial boolean, tags jsonb, parent_session_id text, waiting boolean, reason text
        )
    ),
    -- Each item beside the event that its key holds, and the session that the item goes to. An event with a key of the
    -- user's scope belongs to the session that names the earliest time of its use: the copies in forks of a conversation
    -- are later. Of equal times the first recorded stays. A late event also goes to a session where it is not late. An event
    -- of a run stays with its run.
    found AS (
        SELECT i.*,
               held.session_id AS held_session_id,
               held.event_id IS NOT NULL AS is_held,
               coalesce(held.late, false) AS held_late,
               held.model AS held_model,
               coalesce(held.tokens_in, 0) AS held_tokens_in,
               coalesce(held.tokens_out, 0) AS held_tokens_out,
               coalesce(held.cache_read_tokens, 0) AS held_cache_read_tokens,
               coalesce(held.cache_write_tokens, 0) AS held_cache_write_tokens,
               coalesce(held.reasoning_tokens, 0) AS held_reasoning_tokens,
               held.cost_usd AS held_cost_usd,
               held.given_cost_usd AS held_given_cost_usd,
               coalesce(held.errored, false) AS held_errored,
               coalesce(held.measured, true) AS held_measured,
               held.revision AS held_revision,
               held.run_id AS held_run_id,
               held.parts AS held_parts,
               coalesce(held.billing, 'api') AS held_billing,
               held.plan_cost_usd AS held_plan_cost_usd,
               coalesce(held.kind, 'llm') AS held_usage_kind,
               coalesce(held.service_tier, 'standard') AS held_service_tier,
               coalesce(held.partial, false) AS held_partial,
               -- Of the copies with one key the one with the highest rank counts, whatever comes first. Figures that are a
               -- lower bound give way to larger ones and to final ones.
               ARRAY[i.revision, (NOT i.partial)::int, i.partial::int * i.tokens_in, i.partial::int * i.tokens_out] AS rank,
               ARRAY[held.revision, (NOT held.partial)::int, held.partial::int * held.tokens_in,
                     held.partial::int * held.tokens_out] AS held_rank,
               held.moves,
               CASE WHEN held.moves THEN i.named_session_id ELSE coalesce(held.session_id, i.named_session_id) END
                   AS goes_to,
               s.user_id IS NOT NULL AS session_exists,
               s.status AS session_status,
               s.tokens_in AS total_tokens_in,
               s.tokens_out AS total_tokens_out,
               s.cost_usd AS total_cost_usd,
               -- An item without a time happens now, and now is after an end that is stored, even if the clock jumped back.
               coalesce(s.status <> 'running' AND (i.at IS NULL OR i.moment > s.ended_at), false) AS is_late,
               i.kind = 'usage'
                   AND (i.tokens_in > 0 OR i.tokens_out > 0 OR i.cost_usd > 0 OR NOT i.measured
                        OR i.parts IS NOT NULL OR coalesce(i.plan_cost_usd > 0, false)) AS is_measurement,
               held.tokens_in > 0 OR held.tokens_out > 0 OR held.cost_usd > 0 OR NOT held.measured
                   OR held.parts IS NOT NULL OR coalesce(held.plan_cost_usd > 0, false) AS held_is_measurement
        FROM item i
        LEFT JOIN LATERAL (
            SELECT e.*, false AS moves FROM {schema}.session_usage_events e
            WHERE i.idempotency_key IS NOT NULL AND i.key_scope = 'session'
                AND e.user_id = i.user_id AND e.session_id = i.named_session_id AND e.event_id = i.event_id
            UNION ALL
            SELECT e.*,
                   e.session_id <> i.named_session_id AND coalesce(i.run_id, e.run_id) IS NULL
                       AND (i.moment < e.at OR e.late AND NOT EXISTS (
                           SELECT FROM {schema}.session_records n
                           WHERE n.user_id = i.user_id AND n.session_id = i.named_session_id AND n.status <> 'running'
                               AND (i.at IS NULL OR i.moment > n.ended_at)
                       ))
            FROM {schema}.session_usage_events e
            WHERE i.key_scope = 'user' AND e.key_scope = 'user' AND e.user_id = i.user_id AND e.event_id = i.event_id
        ) held ON true
        LEFT JOIN LATERAL (
            SELECT r.* FROM {schema}.session_records r
            WHERE r.user_id = i.user_id
                AND r.session_id = CASE WHEN held.moves THEN i.named_session_id
                                        ELSE coalesce(held.session_id, i.named_session_id) END
            LIMIT 1  -- there is one at most; the planner then looks it up by its key
        ) s ON true
    ),
    decided AS (
        SELECT f.*,
               CASE
                   WHEN f.kind = 'nothing' THEN 'nothing'
                   WHEN f.kind = 'touch' THEN CASE
                       WHEN f.session_status <> 'running' THEN 'terminal'
                       WHEN f.session_exists OR f.position > min(f.position) FILTER (WHERE f.kind <> 'nothing') OVER session
                           THEN 'touched'
                       ELSE 'created'
                   END
                   WHEN f.kind = 'end' THEN CASE
                       WHEN NOT f.session_exists THEN 'unknown'
                       WHEN f.session_status <> 'running' THEN 'already_ended'
                       ELSE 'ended'
                   END
                   WHEN f.kind = 'reopen' THEN CASE
                       WHEN NOT f.session_exists THEN 'unknown'
                       WHEN f.session_status = 'running' THEN 'already_running'
                       ELSE 'reopened'
                   END
                   WHEN f.kind = 'usage' THEN CASE
                       WHEN NOT f.is_held AND f.is_late THEN 'frozen'
                       WHEN NOT f.is_held THEN 'applied'
                       -- An event in time replaces a late one: else the order of arrival would decide the totals.
                       WHEN f.held_late AND NOT f.is_late AND f.rank <> f.held_rank THEN 'replaced'
                       WHEN f.rank < f.held_rank THEN 'superseded'
                       WHEN f.rank > f.held_rank THEN CASE WHEN f.is_late THEN 'frozen' ELSE 'replaced' END
                       WHEN (lower(f.model), f.tokens_in, f.tokens_out, f.cache_read_tokens, f.cache_write_tokens,
                             f.reasoning_tokens, f.given_cost_usd, f.errored, f.measured, f.parts, f.billing,
                             f.usage_kind, f.service_tier)
                            IS NOT DISTINCT FROM
                            (lower(f.held_model), f.held_tokens_in, f.held_tokens_out, f.held_cache_read_tokens,
                             f.held_cache_write_tokens, f.held_reasoning_tokens, f.held_given_cost_usd, f.held_errored,
                             f.held_measured, f.held_parts, f.held_billing, f.held_usage_kind, f.held_service_tier)
                           THEN CASE WHEN NOT f.moves THEN 'duplicate' WHEN f.is_late THEN 'frozen' ELSE 'replaced' END
                       ELSE 'conflict'
                   END
               END AS outcome
        FROM found f
        WINDOW session AS (PARTITION BY f.user_id, f.goes_to)
    ),
    -- How often (once or never) the item is added to the totals, and the event its key held is taken out of them. A late
    -- item takes the place of a late event only. An event that moves to another session has a second row, which takes it
    -- out of the session that held it.
    change AS MATERIALIZED (
        SELECT d.*, v.session_id, v.departs,
               (d.outcome IN ('applied', 'replaced') AND NOT v.departs)::int AS comes,
               (d.outcome = 'replaced' AND NOT d.held_late AND v.takes)::int AS goes,
               (d.outcome = 'frozen' AND (d.held_late OR NOT d.is_held) AND NOT v.departs)::int AS comes_late,
               (d.outcome IN ('replaced', 'frozen') AND d.held_late AND v.takes)::int AS goes_late,
               (d.cost_usd IS NULL AND d.measured AND d.kind = 'usage')::int AS unpriced,
               (d.held_cost_usd IS NULL AND d.held_measured)::int AS held_unpriced,
               CASE WHEN d.is_measurement THEN {schema}.event_totals_v1(
                   d.parts, d.billing, d.partial, d.measured, d.tokens_in, d.tokens_out, d.plan_cost_usd
               ) END AS further_totals,
               CASE WHEN d.held_is_measurement THEN {schema}.event_totals_v1(
                   d.held_parts, d.held_billing, d.held_partial, d.held_measured, d.held_tokens_in, d.held_tokens_out,
                   d.held_plan_cost_usd
               ) END AS held_further_totals
        FROM decided d
        CROSS JOIN LATERAL (
            SELECT d.goes_to AS session_id, false AS departs, d.moves IS NOT true AS takes
            UNION ALL
            SELECT d.held_session_id, true, true
            WHERE d.moves AND (d.outcome = 'replaced' OR d.outcome = 'frozen' AND d.held_late)
        ) v
    ),
    -- A row for each session that changes, with what is added to it.
    session_change AS MATERIALIZED (
        SELECT c.user_id, c.session_id, bool_and(c.session_exists OR c.departs) AS session_exists,
               (array_agg(c.moment ORDER BY c.position))[1] AS first_moment,
               min(coalesce(c.began_at, c.moment)) FILTER (WHERE c.is_activity) AS started_at,
               max(c.moment) FILTER (WHERE c.is_activity OR c.outcome = 'reopened') AS last_activity_at,
               max(c.status) FILTER (WHERE c.outcome = 'ended') AS ended_as,
               max(c.moment) FILTER (WHERE c.outcome = 'ended') AS ended_at,
               max(c.reason) FILTER (WHERE c.outcome = 'ended') AS end_reason,
               -- The waiting that holds, of this wave, and the last activity of this moment, by their places among the items.
               max(c.moment) FILTER (WHERE c.is_activity AND c.waiting) AS waiting_since,
               (array_agg(c.position ORDER BY c.moment DESC, c.position DESC)
                   FILTER (WHERE c.is_activity AND c.waiting))[1] AS waiting_position,
               max(c.position) FILTER (WHERE c.is_activity AND NOT c.waiting AND c.at IS NULL) AS now_position,
               bool_or(c.outcome = 'reopened') AS is_reopened,
               (array_agg(c.dataset_id ORDER BY c.position) FILTER (WHERE c.names AND c.dataset_id IS NOT NULL))[1]
                   AS dataset_id,
               (array_agg(c.agent_name ORDER BY c.position) FILTER (WHERE c.names AND c.agent_name IS NOT NULL))[1]
                   AS agent_name,
               (array_agg(c.title ORDER BY c.position) FILTER (WHERE c.names AND c.title IS NOT NULL))[1] AS title,
               (array_agg(c.metadata) FILTER (WHERE c.names AND c.metadata IS NOT NULL))[1] AS metadata,
               (array_agg(c.tags) FILTER (WHERE c.names AND c.tags IS NOT NULL))[1] AS tags,
               (array_agg(c.parent_session_id ORDER BY c.position)
                   FILTER (WHERE c.names AND c.parent_session_id IS NOT NULL))[1] AS parent_session_id,
               (array_agg(c.model ORDER BY c.moment DESC, c.position DESC)
                   FILTER (WHERE c.comes = 1 AND c.model IS NOT NULL))[1] AS last_model,
               max(c.moment) FILTER (WHERE c.comes = 1 AND c.model IS NOT NULL) AS last_model_at,
               sum(c.comes * c.tokens_in - c.goes * c.held_tokens_in)::bigint AS tokens_in,
               sum(c.comes * c.tokens_out - c.goes * c.held_tokens_out)::bigint AS tokens_out,
               sum(c.comes * c.cache_read_tokens - c.goes * c.held_cache_read_tokens)::bigint AS cache_read_tokens,
               sum(c.comes * c.cache_write_tokens - c.goes * c.held_cache_write_tokens)::bigint AS cache_write_tokens,
               sum(c.comes * c.reasoning_tokens - c.goes * c.held_reasoning_tokens)::bigint AS reasoning_tokens,
               sum(c.comes * coalesce(c.cost_usd, 0) - c.goes * coalesce(c.held_cost_usd, 0)) AS cost_usd,
               sum(c.comes * c.errored::int - c.goes * c.held_errored::int) AS error_count,
               sum(c.comes * c.unpriced - c.goes * c.held_unpriced) AS unpriced_events,
               sum(c.comes * (NOT c.measured)::int - c.goes * (NOT c.held_measured)::int) AS unmeasured_events,
               sum(c.comes_late - c.goes_late) AS late_events,
               sum(c.comes_late * coalesce(c.cost_usd, 0) - c.goes_late * coalesce(c.held_cost_usd, 0)) AS late_cost_usd,
               CASE WHEN bool_or(c.comes = 1 AND c.further_totals IS NOT NULL OR c.goes = 1 AND c.held_further_totals IS NOT NULL)
                   THEN {schema}.sum_totals_v1(
                       array_agg(c.further_totals) FILTER (WHERE c.comes = 1),
                       array_agg(c.held_further_totals) FILTER (WHERE c.goes = 1)
                   ) END AS further_totals
        FROM (
            SELECT c.*,
                   c.outcome IN ('created', 'touched') OR c.comes = 1 AND c.touch AS is_activity,
                   -- Whether it fills the session's blanks. An event that names another session does not.
                   c.outcome IN ('created', 'touched') OR c.comes = 1 AND c.named_session_id = c.session_id AS names
            FROM change c
            WHERE c.outcome IN ('applied', 'replaced', 'created', 'touched', 'ended', 'reopened')
                OR c.comes_late = 1 OR c.goes_late = 1
        ) c
        GROUP BY c.user_id, c.session_id
    ),
    model_change AS MATERIALIZED (
        SELECT t.*, m.user_id IS NOT NULL AS row_exists
        FROM (
            SELECT e.user_id, e.session_id, lower(e.model) AS model_key, min(e.model) AS model,
                   sum(e.tokens_in)::bigint AS tokens_in,
                   sum(e.tokens_out)::bigint AS tokens_out,
                   sum(e.cache_read_tokens)::bigint AS cache_read_tokens,
                   sum(e.cache_write_tokens)::bigint AS cache_write_tokens,
                   sum(e.reasoning_tokens)::bigint AS reasoning_tokens,
                   sum(e.cost_usd) AS cost_usd,
                   sum(e.events) AS events,
                   sum(e.unpriced_events) AS unpriced_events,
                   sum(e.unmeasured_events) AS unmeasured_events,
                   CASE WHEN bool_or(e.further_totals IS NOT NULL) THEN {schema}.sum_totals_v1(
                       array_agg(e.further_totals) FILTER (WHERE e.events > 0),
                       array_agg(e.further_totals) FILTER (WHERE e.events < 0)
                   ) END AS further_totals
            FROM (
                SELECT c.user_id, c.session_id, coalesce(c.model, '') COLLATE "C" AS model, c.tokens_in, c.tokens_out,
                       c.cache_read_tokens, c.cache_write_tokens, c.reasoning_tokens, coalesce(c.cost_usd, 0) AS cost_usd,
                       1 AS events, c.unpriced AS unpriced_events, (NOT c.measured)::int AS unmeasured_events,
                       c.further_totals
                FROM change c
                WHERE c.comes = 1 AND c.is_measurement
                UNION ALL
                SELECT c.user_id, c.session_id, coalesce(c.held_model, '') COLLATE "C", -c.held_tokens_in,
                       -c.held_tokens_out, -c.held_cache_read_tokens, -c.held_cache_write_tokens,
                       -c.held_reasoning_tokens, -coalesce(c.held_cost_usd, 0), -1, -c.held_unpriced,
                       -(NOT c.held_measured)::int, c.held_further_totals
                FROM change c
                WHERE c.goes = 1 AND c.held_is_measurement
            ) e
            GROUP BY e.user_id, e.session_id, lower(e.model)
        ) t
        LEFT JOIN {schema}.session_model_usage m
            ON m.user_id = t.user_id AND m.session_id = t.session_id AND m.model_key = t.model_key
    ),
    ledger_insert AS (
        INSERT INTO {schema}.session_usage_events
            (user_id, event_id, session_id, at, recorded_at, model, provider, tokens_in, tokens_out,
             cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, given_cost_usd, price_source, unit_prices,
             errored, measured, late, idempotency_key, key_scope, revision, run_id, details, parts, billing,
             plan_cost_usd, kind, service_tier, partial)
        SELECT c.user_id, c.event_id, c.session_id, c.moment, c.recorded_at, c.model,
               c.provider, c.tokens_in, c.tokens_out, c.cache_read_tokens, c.cache_write_tokens, c.reasoning_tokens, c.cost_usd, c.given_cost_usd, c.price_source,
               c.unit_prices, c.errored, c.measured, c.is_late, c.idempotency_key, c.key_scope, c.revision, c.run_id,
               c.details, c.parts, c.billing, c.plan_cost_usd, c.usage_kind, c.service_tier, c.partial
        FROM change c
        WHERE c.kind = 'usage' AND NOT c.is_held AND (c.idempotency_key IS NOT NULL OR c.is_measurement OR c.is_late)
    ),
    ledger_update AS (
        UPDATE {schema}.session_usage_events e
        SET session_id = c.session_id,
            -- The earliest time of its use decides where an event with a key of the user's scope belongs.
            at = CASE WHEN c.key_scope = 'user' THEN least(e.at, c.moment) ELSE c.moment END,
            recorded_at = c.recorded_at, model = c.model, provider = c.provider,
            tokens_in = c.tokens_in, tokens_out = c.tokens_out, cache_read_tokens = c.cache_read_tokens,
            cache_write_tokens = c.cache_write_tokens, reasoning_tokens = c.reasoning_tokens, cost_usd = c.cost_usd,
            given_cost_usd = c.given_cost_usd, price_source = c.price_source, unit_prices = c.unit_prices,
            errored = c.errored, measured = c.measured, late = c.is_late, revision = c.revision,
            run_id = coalesce(c.run_id, e.run_id), details = c.details, parts = c.parts, billing = c.billing,
            plan_cost_usd = c.plan_cost_usd, kind = c.usage_kind, service_tier = c.service_tier, partial = c.partial
        FROM change c
        WHERE (c.outcome = 'replaced' OR c.is_held AND c.comes_late = 1) AND NOT c.departs
            AND e.user_id = c.user_id AND e.session_id = c.held_session_id AND e.event_id = c.event_id
    ),
    session_insert AS (
        INSERT INTO {schema}.session_records
            (user_id, session_id, dataset_id, agent_name, title, metadata, started_at, last_activity_at, last_model,
             last_model_at, tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd,
             error_count, unpriced_events, unmeasured_events, further_totals, tags, parent_session_id, waiting_since)
        SELECT c.user_id, c.session_id, c.dataset_id, c.agent_name, c.title, coalesce(c.metadata, '{}'),
               least(c.first_moment, c.started_at), greatest(c.first_moment, c.last_activity_at), c.last_model,
               c.last_model_at, c.tokens_in, c.tokens_out, c.cache_read_tokens, c.cache_write_tokens, c.reasoning_tokens,
               c.cost_usd, c.error_count, c.unpriced_events, c.unmeasured_events, c.further_totals, c.tags,
               c.parent_session_id,
               CASE WHEN c.waiting_since = now_at AND c.now_position > c.waiting_position THEN NULL ELSE c.waiting_since END
        FROM session_change c
        WHERE NOT c.session_exists
    ),
    session_update AS (
        UPDATE {schema}.session_records s
        SET status = CASE WHEN c.is_reopened THEN 'running' ELSE coalesce(c.ended_as, s.status) END,
            ended_at = CASE WHEN c.is_reopened THEN NULL ELSE coalesce(c.ended_at, s.ended_at) END,
            started_at = least(s.started_at, c.started_at),
            last_activity_at = greatest(s.last_activity_at, c.last_activity_at),
            own_started_at = CASE WHEN c.started_at <= s.started_at THEN NULL
                                  WHEN (s.derived OR c.started_at < s.own_started_at) THEN c.started_at
                                  ELSE s.own_started_at END,
            own_last_activity_at = CASE WHEN c.last_activity_at >= s.last_activity_at THEN NULL
                                        WHEN (s.derived OR c.last_activity_at > s.own_last_activity_at)
                                            THEN c.last_activity_at
                                        ELSE s.own_last_activity_at END,
            dataset_id = coalesce(s.dataset_id, c.dataset_id),
            agent_name = coalesce(s.agent_name, c.agent_name),
            title = coalesce(s.title, c.title),
            metadata = CASE WHEN c.metadata IS NULL THEN s.metadata ELSE c.metadata || s.metadata END,
            tags = CASE WHEN c.tags IS NULL THEN s.tags ELSE c.tags || coalesce(s.tags, '{}') END,
            parent_session_id = coalesce(s.parent_session_id, c.parent_session_id),
            end_reason = CASE WHEN c.is_reopened THEN NULL ELSE coalesce(c.end_reason, s.end_reason) END,
            -- An activity later than this moment ends the waiting by itself. An activity without a time happens now, and now
            -- is after a waiting that is there already, even one of this moment.
            waiting_since = CASE
                WHEN c.is_reopened OR c.ended_as IS NOT NULL THEN NULL
                WHEN c.waiting_since IS NULL
                    THEN CASE WHEN c.now_position IS NOT NULL AND s.waiting_since <= now_at THEN NULL ELSE s.waiting_since END
                WHEN c.waiting_since = now_at AND c.now_position > c.waiting_position THEN NULL
                ELSE greatest(s.waiting_since, c.waiting_since)
            END,
            -- The model of the latest use, not of the latest arrival. Of two uses at one moment the later arrival wins.
            last_model = CASE WHEN c.last_model_at < s.last_model_at THEN s.last_model
                              ELSE coalesce(c.last_model, s.last_model) END,
            last_model_at = greatest(s.last_model_at, c.last_model_at),
            tokens_in = s.tokens_in + c.tokens_in,
            tokens_out = s.tokens_out + c.tokens_out,
            cache_read_tokens = s.cache_read_tokens + c.cache_read_tokens,
            cache_write_tokens = s.cache_write_tokens + c.cache_write_tokens,
            reasoning_tokens = s.reasoning_tokens + c.reasoning_tokens,
            cost_usd = s.cost_usd + c.cost_usd,
            error_count = s.error_count + c.error_count,
            unpriced_events = s.unpriced_events + c.unpriced_events,
            unmeasured_events = s.unmeasured_events + c.unmeasured_events,
            late_events = s.late_events + c.late_events,
            late_cost_usd = s.late_cost_usd + c.late_cost_usd,
            further_totals = CASE WHEN c.further_totals IS NULL THEN s.further_totals
                                  ELSE {schema}.sum_totals_v1(ARRAY[s.further_totals, c.further_totals], '{}') END,
            derived = false
        FROM session_change c
        WHERE c.session_exists AND s.user_id = c.user_id AND s.session_id = c.session_id
    ),
    model_insert AS (
        INSERT INTO {schema}.session_model_usage
            (user_id, session_id, model, tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens,
             cost_usd, events, unpriced_events, unmeasured_events, further_totals)
        SELECT c.user_id, c.session_id, c.model, c.tokens_in, c.tokens_out, c.cache_read_tokens, c.cache_write_tokens,
               c.reasoning_tokens, c.cost_usd, c.events, c.unpriced_events, c.unmeasured_events, c.further_totals
        FROM model_change c
        WHERE NOT c.row_exists
    ),
    model_update AS (
        UPDATE {schema}.session_model_usage m
        SET tokens_in = m.tokens_in + c.tokens_in,
            tokens_out = m.tokens_out + c.tokens_out,
            cache_read_tokens = m.cache_read_tokens + c.cache_read_tokens,
            cache_write_tokens = m.cache_write_tokens + c.cache_write_tokens,
            reasoning_tokens = m.reasoning_tokens + c.reasoning_tokens,
            cost_usd = m.cost_usd + c.cost_usd,
            events = m.events + c.events,
            unpriced_events = m.unpriced_events + c.unpriced_events,
            unmeasured_events = m.unmeasured_events + c.unmeasured_events,
            further_totals = CASE WHEN c.further_totals IS NULL THEN m.further_totals
                                  ELSE {schema}.sum_totals_v1(ARRAY[m.further_totals, c.further_totals], '{}') END
        FROM model_change c
        WHERE c.row_exists AND m.user_id = c.user_id AND m.session_id = c.session_id AND m.model_key = c.model_key
    ),
    -- Each run keeps the sums of its events. `lock_runs` made the run's row and holds its lock.
    run_change AS (
        UPDATE {schema}.session_runs r
        SET events_cost_usd = r.events_cost_usd + c.cost_usd,
            events_tokens_in = r.events_tokens_in + c.tokens_in,
            events_tokens_out = r.events_tokens_out + c.tokens_out,
            events_cache_read_tokens = r.events_cache_read_tokens + c.cache_read_tokens,
            events_cache_write_tokens = r.events_cache_write_tokens + c.cache_write_tokens,
            events_plan_cost_usd = CASE WHEN c.plan_cost_usd IS NULL THEN r.events_plan_cost_usd
                                        ELSE coalesce(r.events_plan_cost_usd, 0) + c.plan_cost_usd END
        FROM (
            SELECT e.user_id, e.run_id,
                   sum(e.times * e.cost_usd) AS cost_usd,
                   sum(e.times * e.tokens_in)::bigint AS tokens_in,
                   sum(e.times * e.tokens_out)::bigint AS tokens_out,
                   sum(e.times * e.cache_read_tokens)::bigint AS cache_read_tokens,
                   sum(e.times * e.cache_write_tokens)::bigint AS cache_write_tokens,
                   sum(e.times * e.plan_cost_usd) AS plan_cost_usd
            FROM (
                SELECT c.user_id, coalesce(c.run_id, c.held_run_id) AS run_id, 1 AS times, coalesce(c.cost_usd, 0) AS cost_usd,
                       c.tokens_in, c.tokens_out, c.cache_read_tokens, c.cache_write_tokens, c.plan_cost_usd
                FROM change c
                WHERE c.comes = 1
                UNION ALL
                SELECT c.user_id, c.held_run_id, -1, coalesce(c.held_cost_usd, 0), c.held_tokens_in, c.held_tokens_out,
                       c.held_cache_read_tokens, c.held_cache_write_tokens, c.held_plan_cost_usd
                FROM change c
                WHERE c.goes = 1
            ) e
            WHERE e.run_id IS NOT NULL
            GROUP BY e.user_id, e.run_id
        ) c
        WHERE r.user_id = c.user_id AND r.run_id = c.run_id
    )
    SELECT c.position,
           c.outcome,
           CASE WHEN c.is_held AND c.comes + c.comes_late = 0
                    THEN CASE WHEN c.held_billing = 'plan' THEN c.held_plan_cost_usd ELSE c.held_cost_usd END
                WHEN c.billing = 'plan' THEN c.plan_cost_usd
                ELSE c.cost_usd END,
           (coalesce(c.total_tokens_in, 0) + sum(c.comes * c.tokens_in - c.goes * c.held_tokens_in) OVER earlier)::bigint,
           (coalesce(c.total_tokens_out, 0) + sum(c.comes * c.tokens_out - c.goes * c.held_tokens_out) OVER earlier)::bigint,
           coalesce(c.total_cost_usd, 0)
               + sum(c.comes * coalesce(c.cost_usd, 0) - c.goes * coalesce(c.held_cost_usd, 0)) OVER earlier
    FROM change c
    WHERE NOT c.departs
    WINDOW earlier AS (PARTITION BY c.user_id, c.session_id ORDER BY c.position);
END
$body$;
