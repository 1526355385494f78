-- Rules R02 to R07: one usage event into the ledger, its session's totals and its model's, together.
-- The item has the ledger's columns, and of the session `dataset_id` and `touch`. With an idempotency key, `event_id` is
-- derived from it, so the ledger's primary key is what makes a key count once.
CREATE FUNCTION {schema}.accumulate_usage_v1(
    item jsonb,
    now_at timestamptz,
    OUT outcome text,
    OUT event_cost_usd numeric,
    OUT session_tokens_in bigint,
    OUT session_tokens_out bigint,
    OUT session_cost_usd numeric
)
LANGUAGE plpgsql AS $body$
DECLARE
    event {schema}.session_usage_events := jsonb_populate_record(NULL::{schema}.session_usage_events, item);
    held {schema}.session_usage_events;
    session {schema}.session_records;
    given_session text := event.session_id;
    counts_as_activity boolean := (item ->> 'touch')::boolean;
    is_measurement boolean := event.tokens_in > 0 OR event.tokens_out > 0 OR event.cost_usd > 0 OR NOT event.measured;
    is_late boolean;
BEGIN
    event.at := coalesce(event.at, now_at);

    -- A key of the user's scope is counted in the session that named it first, whichever names it now. `record_v1`
    -- holds the key's lock, so that nobody else can name it first meanwhile.
    IF event.key_scope = 'user' THEN
        SELECT * INTO held FROM {schema}.session_usage_events
        WHERE user_id = event.user_id AND event_id = event.event_id;
        event.session_id := coalesce(held.session_id, event.session_id);
    END IF;

    session := {schema}.lock_session_v1(event.user_id, event.session_id);
    IF session.user_id IS NULL THEN
        INSERT INTO {schema}.session_records (user_id, session_id, dataset_id, started_at, last_activity_at)
        VALUES (event.user_id, event.session_id, (item ->> 'dataset_id')::uuid, event.at, event.at)
        RETURNING * INTO session;
    END IF;
    is_late := session.status <> 'running' AND event.at > session.ended_at;
    event.late := is_late;

    IF event.idempotency_key IS NOT NULL OR is_measurement OR is_late THEN
        INSERT INTO {schema}.session_usage_events
            (user_id, event_id, session_id, at, recorded_at, model, provider, tokens_in, tokens_out,
             cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, given_cost_usd, price_source, unit_prices,
             errored, measured, late, idempotency_key, key_scope, revision, run_id, details)
        VALUES
            (event.user_id, event.event_id, event.session_id, event.at, now_at, event.model, event.provider,
             event.tokens_in, event.tokens_out, event.cache_read_tokens, event.cache_write_tokens,
             event.reasoning_tokens, event.cost_usd, event.given_cost_usd, event.price_source, event.unit_prices,
             event.errored, event.measured, event.late, event.idempotency_key, event.key_scope, event.revision,
             event.run_id, event.details)
        ON CONFLICT (user_id, event_id) DO NOTHING;

        IF NOT FOUND THEN
            SELECT * INTO STRICT held FROM {schema}.session_usage_events
            WHERE user_id = event.user_id AND event_id = event.event_id;
            outcome := CASE
                WHEN event.revision < held.revision THEN 'superseded'
                WHEN event.revision > held.revision THEN CASE WHEN is_late THEN 'frozen' ELSE 'replaced' END
                WHEN (event.model, event.tokens_in, event.tokens_out, event.cache_read_tokens, event.cache_write_tokens,
                      event.reasoning_tokens, event.given_cost_usd, event.errored, event.measured)
                     IS NOT DISTINCT FROM
                     (held.model, held.tokens_in, held.tokens_out, held.cache_read_tokens, held.cache_write_tokens,
                      held.reasoning_tokens, held.given_cost_usd, held.errored, held.measured) THEN 'duplicate'
                ELSE 'conflict'
            END;
            IF outcome <> 'replaced' THEN
                event_cost_usd := held.cost_usd;
                session_tokens_in := session.tokens_in;
                session_tokens_out := session.tokens_out;
                session_cost_usd := session.cost_usd;
                RETURN;
            END IF;

            UPDATE {schema}.session_usage_events e
            SET at = event.at, recorded_at = now_at, model = event.model, provider = event.provider,
                tokens_in = event.tokens_in, tokens_out = event.tokens_out,
                cache_read_tokens = event.cache_read_tokens, cache_write_tokens = event.cache_write_tokens,
                reasoning_tokens = event.reasoning_tokens, cost_usd = event.cost_usd,
                given_cost_usd = event.given_cost_usd, price_source = event.price_source,
                unit_prices = event.unit_prices, errored = event.errored, measured = event.measured, late = false,
                revision = event.revision, run_id = coalesce(event.run_id, e.run_id), details = event.details
            WHERE e.user_id = event.user_id AND e.event_id = event.event_id;

            -- What the key held until now comes out again, from where it was counted.
            IF held.late THEN
                UPDATE {schema}.session_records s
                SET late_events = s.late_events - 1,
                    late_cost_usd = s.late_cost_usd - coalesce(held.cost_usd, 0)
                WHERE s.user_id = event.user_id AND s.session_id = event.session_id;
            ELSE
                UPDATE {schema}.session_records s
                SET tokens_in = s.tokens_in - held.tokens_in,
                    tokens_out = s.tokens_out - held.tokens_out,
                    cache_read_tokens = s.cache_read_tokens - held.cache_read_tokens,
                    cache_write_tokens = s.cache_write_tokens - held.cache_write_tokens,
                    reasoning_tokens = s.reasoning_tokens - held.reasoning_tokens,
                    cost_usd = s.cost_usd - coalesce(held.cost_usd, 0),
                    error_count = s.error_count - held.errored::int,
                    unpriced_events = s.unpriced_events - (held.cost_usd IS NULL AND held.measured)::int,
                    unmeasured_events = s.unmeasured_events - (NOT held.measured)::int
                WHERE s.user_id = event.user_id AND s.session_id = event.session_id;
                IF held.tokens_in > 0 OR held.tokens_out > 0 OR held.cost_usd > 0 OR NOT held.measured THEN
                    UPDATE {schema}.session_model_usage m
                    SET tokens_in = m.tokens_in - held.tokens_in,
                        tokens_out = m.tokens_out - held.tokens_out,
                        cache_read_tokens = m.cache_read_tokens - held.cache_read_tokens,
                        cache_write_tokens = m.cache_write_tokens - held.cache_write_tokens,
                        reasoning_tokens = m.reasoning_tokens - held.reasoning_tokens,
                        cost_usd = m.cost_usd - coalesce(held.cost_usd, 0),
                        events = m.events - 1,
                        unpriced_events = m.unpriced_events - (held.cost_usd IS NULL AND held.measured)::int,
                        unmeasured_events = m.unmeasured_events - (NOT held.measured)::int
                    WHERE m.user_id = event.user_id AND m.session_id = event.session_id
                        AND m.model = coalesce(held.model, '');
                END IF;
            END IF;
        END IF;
    END IF;

    outcome := coalesce(outcome, CASE WHEN is_late THEN 'frozen' ELSE 'applied' END);
    event_cost_usd := event.cost_usd;
    IF is_late THEN
        UPDATE {schema}.session_records s
        SET late_events = s.late_events + 1,
            late_cost_usd = s.late_cost_usd + coalesce(event.cost_usd, 0)
        WHERE s.user_id = event.user_id AND s.session_id = event.session_id
        RETURNING s.tokens_in, s.tokens_out, s.cost_usd INTO session_tokens_in, session_tokens_out, session_cost_usd;
        RETURN;
    END IF;

    UPDATE {schema}.session_records s
    SET tokens_in = s.tokens_in + event.tokens_in,
        tokens_out = s.tokens_out + event.tokens_out,
        cache_read_tokens = s.cache_read_tokens + event.cache_read_tokens,
        cache_write_tokens = s.cache_write_tokens + event.cache_write_tokens,
        reasoning_tokens = s.reasoning_tokens + event.reasoning_tokens,
        cost_usd = s.cost_usd + coalesce(event.cost_usd, 0),
        error_count = s.error_count + event.errored::int,
        unpriced_events = s.unpriced_events + (event.cost_usd IS NULL AND event.measured)::int,
        unmeasured_events = s.unmeasured_events + (NOT event.measured)::int,
        -- The latest use names the model, not the latest arrival; of two at the same moment the later to arrive.
        last_model = CASE
            WHEN event.model IS NULL OR event.at < s.last_model_at THEN s.last_model ELSE event.model
        END,
        last_model_at = CASE WHEN event.model IS NULL THEN s.last_model_at ELSE greatest(s.last_model_at, event.at) END,
        last_activity_at = CASE
            WHEN counts_as_activity THEN greatest(s.last_activity_at, event.at) ELSE s.last_activity_at
        END,
        started_at = CASE WHEN counts_as_activity THEN least(s.started_at, event.at) ELSE s.started_at END,
        dataset_id = CASE
            WHEN given_session = s.session_id THEN coalesce(s.dataset_id, (item ->> 'dataset_id')::uuid)
            ELSE s.dataset_id
        END
    WHERE s.user_id = event.user_id AND s.session_id = event.session_id
    RETURNING s.tokens_in, s.tokens_out, s.cost_usd INTO session_tokens_in, session_tokens_out, session_cost_usd;

    IF is_measurement THEN
        INSERT INTO {schema}.session_model_usage AS m
            (user_id, session_id, model, tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens,
             cost_usd, events, unpriced_events, unmeasured_events)
        VALUES
            (event.user_id, event.session_id, coalesce(event.model, ''), event.tokens_in, event.tokens_out,
             event.cache_read_tokens, event.cache_write_tokens, event.reasoning_tokens, coalesce(event.cost_usd, 0), 1,
             (event.cost_usd IS NULL AND event.measured)::int, (NOT event.measured)::int)
        ON CONFLICT (user_id, session_id, model) DO UPDATE
        SET tokens_in = m.tokens_in + excluded.tokens_in,
            tokens_out = m.tokens_out + excluded.tokens_out,
            cache_read_tokens = m.cache_read_tokens + excluded.cache_read_tokens,
            cache_write_tokens = m.cache_write_tokens + excluded.cache_write_tokens,
            reasoning_tokens = m.reasoning_tokens + excluded.reasoning_tokens,
            cost_usd = m.cost_usd + excluded.cost_usd,
            events = m.events + 1,
            unpriced_events = m.unpriced_events + excluded.unpriced_events,
            unmeasured_events = m.unmeasured_events + excluded.unmeasured_events;
    END IF;
END
$body$;
