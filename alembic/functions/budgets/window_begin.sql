-- Finds when the window of a budget began. A calendar window begins by the clocks of its time zone, a rolling one `rolling_us`
-- microseconds ago. A midnight that the clocks show twice is the first of the two; an hour that they show twice is two hours.
-- Answers the moment; null where both are null, for all time. Raises nothing: `set_budget_v1` has tried the time zone.
-- Takes no lock.
CREATE FUNCTION {schema}.window_begin(calendar text, rolling_us bigint, zone text, now_at timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    local_now timestamp;
    local_begin timestamp;
    later timestamptz;
    before timestamptz;
    earlier timestamptz;
BEGIN
    IF calendar IS NULL THEN
        -- Microseconds, because a day of an interval follows the time zone of the connection.
        RETURN now_at - rolling_us * interval '1 microsecond';
    END IF;
    local_now := now_at AT TIME ZONE zone;
    local_begin := date_trunc(calendar, local_now);
    IF calendar = 'hour' THEN
        RETURN now_at - (local_now - local_begin);
    END IF;
    -- Of a local time that comes twice, Postgres takes the later one. The clocks of before tell the earlier one.
    later := local_begin AT TIME ZONE zone;
    before := later - interval '6 hours';
    earlier := (local_begin - (before AT TIME ZONE zone - before AT TIME ZONE 'UTC')) AT TIME ZONE 'UTC';
    IF earlier < later AND earlier AT TIME ZONE zone = local_begin THEN
        RETURN earlier;
    END IF;
    RETURN later;
END
$body$;
