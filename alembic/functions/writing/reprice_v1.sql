-- Writes new prices of events in one transaction: to the ledger, by the difference to the totals, and to the audit's row
-- `of_run`. The price of an event under a plan is no cost: it is in `plan_cost_usd` and in the further totals. An event is
-- changed only where it still is what it was when its price was looked up, so repeating is harmless.
-- Answers how many events it changed. An event of a user who is erased meanwhile is left alone. Raises nothing.
-- Locks: those of `lock_sessions`, then those of `lock_runs` (rule R10).
CREATE FUNCTION {schema}.reprice_v1(changes jsonb, of_run uuid) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
DECLARE
    changed bigint;
    locked record;
    named record;
    remaining jsonb;
    others jsonb := '[]';
    found_missing text;
BEGIN
    LOOP
        -- As in `record_v1`: where a lock is missing, the block is undone and begins again.
        BEGIN
            -- Both functions find the run of an event by the event's key, as they do for a revision.
            locked := {schema}.lock_sessions(jsonb_build_array(changes), jsonb_build_array(changes), others);
            -- `lock_runs` makes a row for a missing run. An event that was deleted with its run would bring one back.
            SELECT coalesce(jsonb_agg(c.change), '[]') INTO remaining
            FROM jsonb_array_elements(changes) c (change)
            JOIN {schema}.session_usage_events e
                ON e.user_id = (c.change ->> 'user_id')::uuid AND e.session_id = c.change ->> 'session_id'
                AND e.event_id = (c.change ->> 'event_id')::uuid;
            named := {schema}.lock_runs(jsonb_build_array(remaining), '[]');
            WITH change AS MATERIALIZED (
                SELECT e.user_id, e.session_id, e.event_id, e.run_id, e.late, lower(coalesce(e.model, '')) AS model_key,
                       e.cost_usd AS old_cost_usd, n.cost_usd, n.plan_cost_usd, c.price_source, c.unit_prices,
                       coalesce(n.cost_usd, 0) - coalesce(e.cost_usd, 0) AS difference_usd,
                       coalesce(n.plan_cost_usd, 0) - coalesce(e.plan_cost_usd, 0) AS plan_difference_usd,
                       (n.cost_usd IS NULL)::int - (e.cost_usd IS NULL)::int AS unpriced,
                       {schema}.event_totals_v1(
                           e.parts, e.billing, e.partial, e.measured, e.tokens_in, e.tokens_out, e.plan_cost_usd
                       ) AS old_totals,
                       {schema}.event_totals_v1(
                           e.parts, e.billing, e.partial, e.measured, e.tokens_in, e.tokens_out, n.plan_cost_usd
                       ) AS new_totals
                FROM jsonb_to_recordset(remaining) c (
                    user_id uuid, session_id text, event_id uuid, recorded_at timestamptz, old_cost_usd numeric,
                    cost_usd numeric, price_source text, unit_prices jsonb
                )
                JOIN {schema}.session_usage_events e
                    ON e.user_id = c.user_id AND e.session_id = c.session_id AND e.event_id = c.event_id
                CROSS JOIN LATERAL (
                    SELECT CASE WHEN e.billing = 'plan' THEN e.cost_usd ELSE c.cost_usd END AS cost_usd,
                           CASE WHEN e.billing = 'plan' THEN c.cost_usd END AS plan_cost_usd,
                           CASE WHEN e.billing = 'plan' THEN e.plan_cost_usd ELSE e.cost_usd END AS old_price_usd
                ) n
                -- Whatever replaced the event, a revision or a larger count, was recorded later.
                WHERE e.recorded_at = c.recorded_at AND n.old_price_usd IS NOT DISTINCT FROM c.old_cost_usd
                    AND e.given_cost_usd IS NULL AND e.measured
            ),
            event AS (
                UPDATE {schema}.session_usage_events e
                SET cost_usd = c.cost_usd, plan_cost_usd = c.plan_cost_usd, price_source = c.price_source,
                    unit_prices = c.unit_prices
                FROM change c
                WHERE e.user_id = c.user_id AND e.session_id = c.session_id AND e.event_id = c.event_id
            ),
            session AS (
                UPDATE {schema}.session_records s
                SET cost_usd = s.cost_usd + c.difference_usd,
                    unpriced_events = s.unpriced_events + c.unpriced,
                    late_cost_usd = s.late_cost_usd + c.late_difference_usd,
                    further_totals = CASE WHEN c.new_totals IS NULL THEN s.further_totals
                                          ELSE {schema}.sum_totals_v1(s.further_totals || c.new_totals, c.old_totals) END
                FROM (
                    SELECT c.user_id, c.session_id,
                           coalesce(sum(c.difference_usd) FILTER (WHERE NOT c.late), 0) AS difference_usd,
                           coalesce(sum(c.unpriced) FILTER (WHERE NOT c.late), 0) AS unpriced,
                           coalesce(sum(c.difference_usd) FILTER (WHERE c.late), 0) AS late_difference_usd,
                           array_agg(c.new_totals) FILTER (WHERE NOT c.late AND c.new_totals IS NOT NULL) AS new_totals,
                           array_agg(c.old_totals) FILTER (WHERE NOT c.late AND c.old_totals IS NOT NULL) AS old_totals
                    FROM change c
                    GROUP BY c.user_id, c.session_id
                ) c
                WHERE s.user_id = c.user_id AND s.session_id = c.session_id
            ),
            model_usage AS (
                UPDATE {schema}.session_model_usage m
                SET cost_usd = m.cost_usd + c.difference_usd,
                    unpriced_events = m.unpriced_events + c.unpriced,
                    further_totals = CASE WHEN c.new_totals IS NULL THEN m.further_totals
                                          ELSE {schema}.sum_totals_v1(m.further_totals || c.new_totals, c.old_totals) END
                FROM (
                    SELECT c.user_id, c.session_id, c.model_key, sum(c.difference_usd) AS difference_usd,
                           sum(c.unpriced) AS unpriced,
                           array_agg(c.new_totals) FILTER (WHERE c.new_totals IS NOT NULL) AS new_totals,
                           array_agg(c.old_totals) FILTER (WHERE c.old_totals IS NOT NULL) AS old_totals
                    FROM change c
                    WHERE NOT c.late
                    GROUP BY c.user_id, c.session_id, c.model_key
                ) c
                WHERE m.user_id = c.user_id AND m.session_id = c.session_id AND m.model_key = c.model_key
            ),
            run AS (
                UPDATE {schema}.session_runs r
                SET events_cost_usd = r.events_cost_usd + c.difference_usd,
                    events_plan_cost_usd = CASE WHEN c.plan_difference_usd = 0 THEN r.events_plan_cost_usd
                                                ELSE coalesce(r.events_plan_cost_usd, 0) + c.plan_difference_usd END
                FROM (
                    SELECT c.user_id, c.run_id, sum(c.difference_usd) AS difference_usd,
                           sum(c.plan_difference_usd) AS plan_difference_usd
                    FROM change c
                    WHERE NOT c.late AND c.run_id IS NOT NULL
                    GROUP BY c.user_id, c.run_id
                ) c
                WHERE r.user_id = c.user_id AND r.run_id = c.run_id
            ),
            audit AS (
                UPDATE {schema}.session_repricings r
                SET events = r.events + c.events,
                    cost_before_usd = r.cost_before_usd + c.before_usd,
                    cost_after_usd = r.cost_after_usd + c.after_usd,
                    last_written_at = statement_timestamp()
                FROM (
                    SELECT count(*) AS events, coalesce(sum(c.old_cost_usd), 0) AS before_usd,
                           coalesce(sum(c.cost_usd), 0) AS after_usd
                    FROM change c
                ) c
                WHERE r.repricing_id = of_run
            )
            SELECT count(*) INTO changed FROM change;
            IF named.runs IS NOT NULL THEN
                PERFORM {schema}.settle_runs(
                    named.users, named.runs, named.linked, named.sessions, locked.users, locked.sessions,
                    statement_timestamp()
                );
            END IF;
            RETURN changed;
        EXCEPTION
            WHEN SQLSTATE 'SL002' THEN
                GET STACKED DIAGNOSTICS found_missing = PG_EXCEPTION_DETAIL;
                others := others || jsonb_build_array(found_missing::jsonb);
            WHEN SQLSTATE 'SL003' THEN
                -- A session was deleted between the look and the lock. The next round sees that.
            WHEN SQLSTATE 'SL004' THEN
                SELECT coalesce(jsonb_agg(c.change), '[]') INTO changes
                FROM jsonb_array_elements(changes) c (change)
                WHERE NOT EXISTS (
                    SELECT FROM {schema}.session_tombstones t WHERE t.user_id = (c.change ->> 'user_id')::uuid
                );
        END;
    END LOOP;
END
$body$;
