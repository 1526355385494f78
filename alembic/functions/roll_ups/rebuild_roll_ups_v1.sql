-- Rebuilds a part of a family, as `holds` bounds it, from the rolled-up sessions and the changes not put in yet. `of_family`
-- null stands for all families: so the first `roll_up` makes all buckets.
-- Answers nothing and raises nothing.
-- Locks: the roll-ups (`lock_roll_ups`), so nobody puts changes into them meanwhile. Appending changes does not wait.
CREATE FUNCTION {schema}.rebuild_roll_ups_v1(of_family text, after uuid, up_to uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $body$
BEGIN
    PERFORM {schema}.lock_roll_ups(true);
    DELETE FROM {schema}.session_roll_ups r
    WHERE r.family = coalesce(of_family, r.family) AND {schema}.holds(of_family, after, up_to, r.user_id, r.dataset_id);
    DELETE FROM {schema}.session_model_roll_ups r
    WHERE r.family = coalesce(of_family, r.family) AND {schema}.holds(of_family, after, up_to, r.user_id, r.dataset_id);
    WITH expected AS MATERIALIZED (
        SELECT e.*
        FROM {schema}.expected_roll_ups_v1(of_family, after, up_to, NULL, true) e
        -- In the order of the keys, whose pages are then full.
        ORDER BY e.family, e.user_id, e.dataset_id, e.level, e.starts_at, e.status, e.model
    ),
    bucket AS (
        INSERT INTO {schema}.session_roll_ups
            (family, user_id, dataset_id, level, starts_at, status, sessions, cost_usd, tokens_in, tokens_out, duration_us,
             unpriced_events, unmeasured_events, late_events, late_cost_usd, further_totals)
        SELECT e.family, e.user_id, e.dataset_id, e.level, e.starts_at, e.status, e.sessions, e.cost_usd, e.tokens_in,
               e.tokens_out, e.duration_us, e.unpriced_events, e.unmeasured_events, e.late_events, e.late_cost_usd,
               e.further_totals
        FROM expected e
        WHERE e.status IS NOT NULL
    )
    INSERT INTO {schema}.session_model_roll_ups
        (family, user_id, dataset_id, level, starts_at, model, sessions, cost_usd, tokens_in, tokens_out,
         cache_read_tokens, cache_write_tokens, reasoning_tokens, events, unpriced_events, further_totals)
    SELECT e.family, e.user_id, e.dataset_id, e.level, e.starts_at, e.model, e.sessions, e.cost_usd, e.tokens_in,
           e.tokens_out, e.cache_read_tokens, e.cache_write_tokens, e.reasoning_tokens, e.events, e.unpriced_events,
           e.further_totals
    FROM expected e
    WHERE e.model IS NOT NULL;
END
$body$;
