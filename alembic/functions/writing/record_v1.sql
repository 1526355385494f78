-- Records any number of items in one transaction, as if they had come one after another. The first of these ways that fits
-- writes them: one plain item is written here by short statements, a plain batch by `record_plain`, all else by
-- `record_locked`. `waves` is an array of arrays with what is written to sessions, `activity` one with the runs, steps and messages:
-- the items of one wave do not depend on each other, those of a later wave may depend on an earlier one. `latest_at` is the
-- latest time that any item names. `is_plain` says that the items are one wave of touches and uses without a run, a
-- revision, a key of the user's scope or metadata. README.md has the shape of an item.
-- Answers a row for each item; where an item has several rows, the last one holds. Where `latest_at` is more than five
-- minutes ahead of the database's clock (rule R09), the only row is `future` and nothing is written.
-- Raises `SL004` where the user was erased, and `SL005` where a session would descend from itself.
-- Locks, in the one order of all functions (rule R10): keys of the user's scope, sessions, the linking of runs, runs; each
-- sorted; then parents of sessions.
CREATE FUNCTION {schema}.record_v1(waves jsonb, activity jsonb, latest_at timestamptz, is_plain boolean) RETURNS TABLE (
    item_position int,
    outcome text,
    event_cost_usd numeric,
    session_tokens_in bigint,
    session_tokens_out bigint,
    session_cost_usd numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    -- now() would stand still in a host's transaction.
    now_at timestamptz := statement_timestamp();
    single jsonb := waves -> 0 -> 0;
    is_alone boolean := waves -> 0 -> 1 IS NULL;
    touched_at timestamptz;
    is_running boolean;
    is_session_missing boolean := false;
    creating int[];
    has_runs boolean;
    others jsonb := '[]';
    found_missing text;
BEGIN
    IF latest_at > now_at + interval '5 minutes' THEN
        outcome := 'future';
        RETURN NEXT;
        RETURN;
    END IF;
    -- A plain item that is alone is written here and not in a function of its own: each call of a function that sets its
    -- search path costs as much as a lookup. Where the session has ended, the key is held, or there is no usage, the long
    -- way decides.
    IF is_plain AND is_alone AND single ->> 'kind' = 'usage' THEN
        -- In every function a session is locked before its events (rule R10).
        PERFORM 1 FROM {schema}.session_records s
        WHERE s.user_id = (single ->> 'user_id')::uuid AND s.session_id = single ->> 'session_id' AND s.status = 'running'
        FOR NO KEY UPDATE;
        is_running := FOUND;
        IF NOT is_running THEN
            -- The session's row first, without any total: the statement below adds to it, as to that of any session. With
            -- VALUES, as Citus counts the rows of a SELECT also where they are there already.
            PERFORM {schema}.lock_session((single ->> 'user_id')::uuid, single ->> 'session_id');
            IF (
                SELECT i.tokens_in > 0 OR i.tokens_out > 0 OR i.cost_usd > 0 OR NOT i.measured
                FROM jsonb_to_record(single) AS i (tokens_in bigint, tokens_out bigint, cost_usd numeric, measured boolean)
            ) THEN
                touched_at := coalesce((single ->> 'at')::timestamptz, now_at);
                INSERT INTO {schema}.session_records (user_id, session_id, started_at, last_activity_at)
                VALUES ((single ->> 'user_id')::uuid, single ->> 'session_id', touched_at, touched_at)
                ON CONFLICT DO NOTHING;
                is_running := FOUND;
            END IF;
        END IF;
        IF is_running THEN
            RETURN QUERY
            WITH used AS MATERIALIZED (
                SELECT i.user_id, i.session_id, i.event_id, i.dataset_id, i.model, i.provider, i.cost_usd, i.given_cost_usd,
                       i.price_source, i.unit_prices, i.idempotency_key,
                       coalesce(i.at, now_at) AS moment,
                       coalesce(i.tokens_in, 0) AS tokens_in,
                       coalesce(i.tokens_out, 0) AS tokens_out,
                       coalesce(i.cache_read_tokens, 0) AS cache_read_tokens,
                       coalesce(i.cache_write_tokens, 0) AS cache_write_tokens,
                       coalesce(i.reasoning_tokens, 0) AS reasoning_tokens,
                       coalesce(i.errored, false) AS errored,
                       coalesce(i.measured, true) AS measured,
                       coalesce(i.details, '{}') AS details,
                       coalesce(i.touch, true) AS touch,
                       (i.cost_usd IS NULL AND coalesce(i.measured, true))::int AS unpriced
                FROM jsonb_to_record(single) AS i (
                    user_id uuid, session_id text, at timestamptz, dataset_id uuid, event_id uuid, model text, provider text,
                    tokens_in bigint, tokens_out bigint, cache_read_tokens bigint, cache_write_tokens bigint,
                    reasoning_tokens bigint, cost_usd numeric, given_cost_usd numeric, price_source text, unit_prices jsonb,
                    errored boolean, measured boolean, idempotency_key text, details jsonb, touch boolean
                )
                WHERE i.tokens_in > 0 OR i.tokens_out > 0 OR i.cost_usd > 0 OR NOT i.measured
            ),
            event AS (
                INSERT INTO {schema}.session_usage_events
                    (user_id, session_id, event_id, at, recorded_at, model, provider, tokens_in, tokens_out,
                     cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, given_cost_usd, price_source, unit_prices,
                     errored, measured, idempotency_key, details)
                SELECT u.user_id, u.session_id, u.event_id, u.moment, now_at, u.model, u.provider, u.tokens_in, u.tokens_out,
                       u.cache_read_tokens, u.cache_write_tokens, u.reasoning_tokens, u.cost_usd, u.given_cost_usd,
                       u.price_source, u.unit_prices, u.errored, u.measured, u.idempotency_key, u.details
                FROM used u
                ON CONFLICT DO NOTHING
                RETURNING true AS is_new
            ),
            model_usage AS (
                INSERT INTO {schema}.session_model_usage AS m
                    (user_id, session_id, model, tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens,
                     cost_usd, events, unpriced_events, unmeasured_events)
                SELECT u.user_id, u.session_id, coalesce(u.model, ''), u.tokens_in, u.tokens_out, u.cache_read_tokens,
                       u.cache_write_tokens, u.reasoning_tokens, coalesce(u.cost_usd, 0), 1, u.unpriced, (NOT u.measured)::int
                FROM used u, event
                ON CONFLICT (user_id, session_id, model_key) DO UPDATE
                SET tokens_in = m.tokens_in + excluded.tokens_in,
                    tokens_out = m.tokens_out + excluded.tokens_out,
                    cache_read_tokens = m.cache_read_tokens + excluded.cache_read_tokens,
                    cache_write_tokens = m.cache_write_tokens + excluded.cache_write_tokens,
                    reasoning_tokens = m.reasoning_tokens + excluded.reasoning_tokens,
                    cost_usd = m.cost_usd + excluded.cost_usd,
                    events = m.events + 1,
                    unpriced_events = m.unpriced_events + excluded.unpriced_events,
                    unmeasured_events = m.unmeasured_events + excluded.unmeasured_events
            )
            UPDATE {schema}.session_records s
            SET tokens_in = s.tokens_in + u.tokens_in,
                tokens_out = s.tokens_out + u.tokens_out,
                cache_read_tokens = s.cache_read_tokens + u.cache_read_tokens,
                cache_write_tokens = s.cache_write_tokens + u.cache_write_tokens,
                reasoning_tokens = s.reasoning_tokens + u.reasoning_tokens,
                cost_usd = s.cost_usd + coalesce(u.cost_usd, 0),
                error_count = s.error_count + u.errored::int,
                unpriced_events = s.unpriced_events + u.unpriced,
                unmeasured_events = s.unmeasured_events + (NOT u.measured)::int,
                last_model = CASE WHEN u.model IS NULL OR u.moment < s.last_model_at THEN s.last_model ELSE u.model END,
                last_model_at = CASE WHEN u.model IS NULL THEN s.last_model_at ELSE greatest(s.last_model_at, u.moment) END,
                last_activity_at = CASE WHEN u.touch THEN greatest(s.last_activity_at, u.moment) ELSE s.last_activity_at END,
                started_at = CASE WHEN u.touch THEN least(s.started_at, u.moment) ELSE s.started_at END,
                own_started_at = CASE WHEN u.touch AND u.moment <= s.started_at THEN NULL
                                      WHEN u.touch AND (s.derived OR u.moment < s.own_started_at) THEN u.moment
                                      ELSE s.own_started_at END,
                own_last_activity_at = CASE WHEN u.touch AND u.moment >= s.last_activity_at THEN NULL
                                            WHEN u.touch AND (s.derived OR u.moment > s.own_last_activity_at)
                                                THEN u.moment
                                            ELSE s.own_last_activity_at END,
                dataset_id = coalesce(s.dataset_id, u.dataset_id),
                derived = false
            FROM used u, event
            WHERE s.user_id = u.user_id AND s.session_id = u.session_id
            RETURNING 0, 'applied', u.cost_usd, s.tokens_in, s.tokens_out, s.cost_usd;
            IF FOUND THEN
                RETURN;
            END IF;
        END IF;
    ELSIF is_plain AND is_alone THEN
        touched_at := coalesce((single ->> 'at')::timestamptz, now_at);
        UPDATE {schema}.session_records s
        SET last_activity_at = greatest(s.last_activity_at, touched_at),
            started_at = least(s.started_at, touched_at),
            own_started_at = CASE WHEN touched_at <= s.started_at THEN NULL
                                  WHEN s.derived OR touched_at < s.own_started_at THEN touched_at
                                  ELSE s.own_started_at END,
            own_last_activity_at = CASE WHEN touched_at >= s.last_activity_at THEN NULL
                                        WHEN s.derived OR touched_at > s.own_last_activity_at THEN touched_at
                                        ELSE s.own_last_activity_at END,
            dataset_id = coalesce(s.dataset_id, (single ->> 'dataset_id')::uuid),
            agent_name = coalesce(s.agent_name, single ->> 'agent_name'),
            title = coalesce(s.title, single ->> 'title'),
            derived = false
        WHERE s.user_id = (single ->> 'user_id')::uuid AND s.session_id = single ->> 'session_id' AND s.status = 'running';
        outcome := 'touched';
        IF NOT FOUND THEN
            PERFORM {schema}.lock_session((single ->> 'user_id')::uuid, single ->> 'session_id');
            INSERT INTO {schema}.session_records
                (user_id, session_id, started_at, last_activity_at, dataset_id, agent_name, title)
            VALUES ((single ->> 'user_id')::uuid, single ->> 'session_id', touched_at, touched_at,
                    (single ->> 'dataset_id')::uuid, single ->> 'agent_name', single ->> 'title')
            ON CONFLICT DO NOTHING;
            outcome := 'created';
        END IF;
        IF FOUND THEN
            item_position := 0;
            RETURN NEXT;
            RETURN;
        END IF;
    ELSIF is_plain THEN
        BEGIN
            RETURN QUERY SELECT p.* FROM {schema}.record_plain(waves -> 0, now_at) p;
            RETURN;
        EXCEPTION WHEN SQLSTATE 'SL001' OR unique_violation OR internal_error THEN
            -- One of the items is not plain in the database's eyes. The block is undone, with its locks. Citus calls it an
            -- internal error where it sends rows to another node and a key is there already.
            is_session_missing := SQLSTATE = 'SL001';
        END;
        IF is_session_missing THEN
            BEGIN
                creating := {schema}.create_sessions(waves -> 0, now_at);
                RETURN QUERY
                SELECT p.item_position,
                       CASE WHEN p.outcome = 'touched' AND c.position IS NOT NULL THEN 'created' ELSE p.outcome END,
                       p.event_cost_usd, p.session_tokens_in, p.session_tokens_out, p.session_cost_usd
                FROM {schema}.record_plain(waves -> 0, now_at) p
                LEFT JOIN unnest(creating) c (position) ON c.position = p.item_position;
                RETURN;
            EXCEPTION WHEN SQLSTATE 'SL001' OR SQLSTATE 'SL003' OR unique_violation OR internal_error THEN
                -- The long way takes its locks anew: of these, it may need only some.
            END;
        END IF;
    END IF;
    has_runs := activity <> '[]' OR waves @? '$[*][*] ? (exists (@.run_id) || exists (@.key_scope))';
    LOOP
        -- Where a lock is missing, the block is undone and begins again, so that all locks are taken in their order. The
        -- block may not contain another one: the locks of an inner block that was undone would be held to the end.
        BEGIN
            RETURN QUERY SELECT l.* FROM {schema}.record_locked(waves, activity, others, has_runs, now_at) l;
            RETURN;
        EXCEPTION
            WHEN SQLSTATE 'SL002' THEN
                -- The items concern further sessions or runs.
                GET STACKED DIAGNOSTICS found_missing = PG_EXCEPTION_DETAIL;
                others := others || jsonb_build_array(found_missing::jsonb);
            WHEN SQLSTATE 'SL003' THEN
                -- A session was deleted between the look and the lock. The next round sees that.
        END;
    END LOOP;
END
$body$;
