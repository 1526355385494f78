-- The id of a keyed event: a UUIDv8 of RFC 9562, derived from the key within its session. The library makes the same.
CREATE FUNCTION {schema}.keyed_event_id_v1(of_user uuid, of_session text, key text) RETURNS uuid
LANGUAGE plpgsql IMMUTABLE AS $body$
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
