-- Writes new prices of events in one transaction: to the ledger, by the difference to the totals, and to the audit's row
-- `of_run`. An event is changed only where it still is what it was when its price was looked up, so repeating is harmless.
-- Answers how many events it changed.
-- Raises `SL003` where a session was deleted meanwhile, and `SL002` where `settle_runs` needs further sessions.
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
BEGIN
    -- Both functions find the run of an event by the event's key, as they do for a revision.
    locked := {schema}.lock_sessions(jsonb_build_array(changes), jsonb_build_array(changes), '[]');
    named := {schema}.lock_runs(jsonb_build_array(changes), '[]');
    WITH change AS MATERIALIZED (
        SELECT e.user_id, e.session_id, e.event_id, e.run_id, e.late, coalesce(e.model, '') AS model,
               e.cost_usd AS old_cost_usd, c.cost_usd, c.price_source, c.unit_prices,
               coalesce(c.cost_usd, 0) - coalesce(e.cost_usd, 0) AS difference_usd,
               (c.cost_usd IS NULL)::int - (e.cost_usd IS NULL)::int AS unpriced
        FROM jsonb_to_recordset(changes) c (
            user_id uuid, session_id text, event_id uuid, revision int, old_cost_usd numeric, cost_usd numeric,
            price_source text, unit_prices jsonb
        )
        JOIN {schema}.session_usage_events e
            ON e.user_id = c.user_id AND e.session_id = c.session_id AND e.event_id = c.event_id
        WHERE e.revision = c.revision AND e.cost_usd IS NOT DISTINCT FROM c.old_cost_usd
            AND e.given_cost_usd IS NULL AND e.measured
    ),
    event AS (
        UPDATE {schema}.session_usage_events e
        SET cost_usd = c.cost_usd, price_source = c.price_source, unit_prices = c.unit_prices
        FROM change c
        WHERE e.user_id = c.user_id AND e.session_id = c.session_id AND e.event_id = c.event_id
    ),
    session AS (
        UPDATE {schema}.session_records s
        SET cost_usd = s.cost_usd + c.difference_usd,
            unpriced_events = s.unpriced_events + c.unpriced,
            late_cost_usd = s.late_cost_usd + c.late_difference_usd
        FROM (
            SELECT c.user_id, c.session_id,
                   coalesce(sum(c.difference_usd) FILTER (WHERE NOT c.late), 0) AS difference_usd,
                   coalesce(sum(c.unpriced) FILTER (WHERE NOT c.late), 0) AS unpriced,
                   coalesce(sum(c.difference_usd) FILTER (WHERE c.late), 0) AS late_difference_usd
            FROM change c
            GROUP BY c.user_id, c.session_id
        ) c
        WHERE s.user_id = c.user_id AND s.session_id = c.session_id
    ),
    model_usage AS (
        UPDATE {schema}.session_model_usage m
        SET cost_usd = m.cost_usd + c.difference_usd,
            unpriced_events = m.unpriced_events + c.unpriced
        FROM (
            SELECT c.user_id, c.session_id, c.model, sum(c.difference_usd) AS difference_usd, sum(c.unpriced) AS unpriced
            FROM change c
            WHERE NOT c.late
            GROUP BY c.user_id, c.session_id, c.model
        ) c
        WHERE m.user_id = c.user_id AND m.session_id = c.session_id AND m.model = c.model
    ),
    run AS (
        UPDATE {schema}.session_runs r
        SET events_cost_usd = r.events_cost_usd + c.difference_usd
        FROM (
            SELECT c.user_id, c.run_id, sum(c.difference_usd) AS difference_usd
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
            named.users, named.runs, named.linked, locked.users, locked.sessions, statement_timestamp()
        );
    END IF;
    RETURN changed;
END
$body$;
