-- Rolls up those sessions of `keys` that have ended or were last active before `idle_before`, and are not rolled up yet. A
-- session that waits is not rolled up: the roll-ups do not know who waits.
-- Answers how many sessions it rolled up. Raises nothing.
-- Locks: the roll-ups, shared (`lock_roll_ups`), then the sessions' rows, in the order of their keys (rule R10). A session that is
-- locked by a writer is skipped. The sums are read after the locks are held, so a session's totals and those by model are of
-- one moment.
CREATE FUNCTION {schema}.roll_up_sessions_v1(keys jsonb, idle_before timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
DECLARE
    users uuid[];
    sessions text[];
    added_users uuid[];
    added_sessions text[];
    rolled_up_sessions bigint := 0;
    has_roll_ups boolean;
    orphan record;
BEGIN
    -- Before any session is locked: a writer never waits for this lock.
    PERFORM {schema}.lock_roll_ups(false);
    -- While there are no buckets, reads count the sessions themselves, and there is nothing to be changed.
    SELECT EXISTS (SELECT FROM {schema}.session_roll_ups r WHERE r.family IN ('all', 'user', 'dataset', 'user_dataset'))
    INTO has_roll_ups;
    SELECT array_agg(l.user_id), array_agg(l.session_id) INTO users, sessions
    FROM (
        SELECT s.user_id, s.session_id
        FROM jsonb_to_recordset(keys) k (user_id uuid, session_id text)
        JOIN {schema}.session_records s ON s.user_id = k.user_id AND s.session_id = k.session_id
        WHERE (NOT s.rolled_up) IS NOT false
            AND (s.status <> 'running'
                 OR s.last_activity_at < idle_before AND (s.waiting_since >= s.last_activity_at) IS NOT true)
        ORDER BY s.user_id, s.session_id
        FOR NO KEY UPDATE OF s SKIP LOCKED
    ) l;
    UPDATE {schema}.session_records s
    SET rolled_up = true
    FROM unnest(users, sessions) l (user_id, session_id)
    WHERE s.user_id = l.user_id AND s.session_id = l.session_id;
    WHILE users IS NOT NULL LOOP
        -- A session whose row is there already is left out. ON CONFLICT finds it by the primary key, whatever the
        -- statistics say: a look beforehand was planned with another index and read all of it while the table was new.
        -- What is inserted is read apart from the insertions: Citus sends one whose SELECT reads tables to the node in a wrong form.
        WITH found AS MATERIALIZED (
            SELECT s.user_id, s.session_id, s.dataset_id, s.agent_name, s.status, s.started_at, s.last_activity_at, s.ended_at,
                   s.tokens_in, s.tokens_out, s.cost_usd, nullif(s.unpriced_events, 0) AS unpriced_events,
                   nullif(s.unmeasured_events, 0) AS unmeasured_events, nullif(s.late_events, 0) AS late_events,
                   nullif(s.late_cost_usd, 0) AS late_cost_usd, s.further_totals, m.models
            FROM {schema}.session_models_v1(users, sessions) m
            JOIN {schema}.session_records s ON s.user_id = m.user_id AND s.session_id = m.session_id
        ),
        added AS (
            INSERT INTO {schema}.rolled_up_sessions AS r
                (user_id, session_id, dataset_id, agent_name, status, started_at, last_activity_at, ended_at, tokens_in,
                 tokens_out, cost_usd, unpriced_events, unmeasured_events, late_events, late_cost_usd, further_totals,
                 models)
            SELECT f.user_id, f.session_id, f.dataset_id, f.agent_name, f.status, f.started_at, f.last_activity_at, f.ended_at,
                   f.tokens_in, f.tokens_out, f.cost_usd, f.unpriced_events, f.unmeasured_events, f.late_events,
                   f.late_cost_usd, f.further_totals, f.models
            FROM found f
            -- In the order of an index, whose pages are then full.
            ORDER BY f.user_id, f.status, f.last_activity_at
            ON CONFLICT (user_id, session_id) DO NOTHING
            RETURNING r.user_id, r.session_id, r.dataset_id, r.status, r.started_at, r.last_activity_at, r.ended_at,
                      r.tokens_in, r.tokens_out, r.cost_usd, r.unpriced_events, r.unmeasured_events, r.late_events,
                      r.late_cost_usd, r.further_totals, r.models
        ),
        -- What is appended is computed apart from the insertions, as in `compact_roll_ups_v1`.
        part AS MATERIALIZED (
            SELECT c.*
            FROM added a
            CROSS JOIN LATERAL {schema}.share(
                a.user_id, a.dataset_id, a.status, a.started_at, a.last_activity_at, a.ended_at, a.tokens_in,
                a.tokens_out, a.cost_usd, a.unpriced_events, a.unmeasured_events, a.late_events, a.late_cost_usd,
                a.further_totals, 1
            ) c
            WHERE has_roll_ups
        ),
        model_part AS MATERIALIZED (
            SELECT c.*
            FROM added a
            CROSS JOIN LATERAL {schema}.model_shares_v1(a.user_id, a.dataset_id, a.last_activity_at, a.models, 1) c
            WHERE has_roll_ups
        ),
        change AS (
            INSERT INTO {schema}.session_roll_up_changes
                (user_id, dataset_id, status, starts_at, sessions, cost_usd, tokens_in, tokens_out, duration_us,
                 unpriced_events, unmeasured_events, late_events, late_cost_usd, further_totals)
            SELECT c.user_id, c.dataset_id, c.status, c.starts_at, c.sessions, c.cost_usd, c.tokens_in, c.tokens_out,
                   c.duration_us, c.unpriced_events, c.unmeasured_events, c.late_events, c.late_cost_usd, c.further_totals
            FROM part c
        ),
        model_change AS (
            INSERT INTO {schema}.session_model_roll_up_changes
                (user_id, dataset_id, starts_at, model, sessions, cost_usd, tokens_in, tokens_out, cache_read_tokens,
                 cache_write_tokens, reasoning_tokens, events, unpriced_events, further_totals)
            SELECT c.user_id, c.dataset_id, c.starts_at, c.model, c.sessions, c.cost_usd, c.tokens_in, c.tokens_out,
                   c.cache_read_tokens, c.cache_write_tokens, c.reasoning_tokens, c.events, c.unpriced_events,
                   c.further_totals
            FROM model_part c
        )
        SELECT array_agg(a.user_id), array_agg(a.session_id), rolled_up_sessions + count(*)
        INTO added_users, added_sessions, rolled_up_sessions
        FROM added a;
        EXIT WHEN cardinality(added_users) = cardinality(users);
        SELECT array_agg(l.user_id), array_agg(l.session_id) INTO users, sessions
        FROM (
            SELECT l.user_id, l.session_id FROM unnest(users, sessions) l (user_id, session_id)
            EXCEPT
            SELECT a.user_id, a.session_id FROM unnest(added_users, added_sessions) a (user_id, session_id)
        ) l;
        -- The rest have a row although they are not rolled up: the trigger was disabled when they changed.
        FOR orphan IN
            DELETE FROM {schema}.rolled_up_sessions r
            USING unnest(users, sessions) l (user_id, session_id)
            WHERE r.user_id = l.user_id AND r.session_id = l.session_id
            RETURNING r.user_id, r.dataset_id, r.status, r.started_at, r.last_activity_at, r.ended_at, r.tokens_in,
                      r.tokens_out, r.cost_usd, r.unpriced_events, r.unmeasured_events, r.late_events, r.late_cost_usd,
                      r.further_totals, r.models
        LOOP
            PERFORM {schema}.append_changes(
                orphan.user_id, orphan.dataset_id, orphan.status, orphan.started_at, orphan.last_activity_at,
                orphan.ended_at, orphan.tokens_in, orphan.tokens_out, orphan.cost_usd, orphan.unpriced_events,
                orphan.unmeasured_events, orphan.late_events, orphan.late_cost_usd, orphan.further_totals,
                orphan.models, -1
            );
        END LOOP;
    END LOOP;
    RETURN rolled_up_sessions;
END
$body$;
