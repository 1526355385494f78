-- Derives the id of an event with a key, a UUIDv8 of RFC 9562, from the key and its session. The library derives the same id.
-- Answers the id. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.keyed_event_id(of_user uuid, of_session text, key text) RETURNS uuid
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    digest bytea := sha256(
        uuid_send(of_user) || convert_to(char_length(of_session) || ':' || of_session || key, 'UTF8')
    );
BEGIN
    digest := set_byte(digest, 6, get_byte(digest, 6) & 15 | 128);
    digest := set_byte(digest, 8, get_byte(digest, 8) & 63 | 128);
    RETURN encode(substring(digest FOR 16), 'hex')::uuid;
END
$body$;
