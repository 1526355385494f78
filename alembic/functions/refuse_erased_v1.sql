-- Raises `SL004` for a user who was erased and must not come back. Who goes on is waited for by whoever erases the user
-- from now on: the tombstone is written when this transaction is over, or it is found here.
CREATE FUNCTION {schema}.refuse_erased_v1(of_user uuid) RETURNS void
LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(of_user::text, 5));
    IF EXISTS (SELECT FROM {schema}.session_tombstones t WHERE t.user_id = of_user) THEN
        RAISE EXCEPTION USING ERRCODE = 'SL004', MESSAGE = 'the user was erased', DETAIL = of_user::text;
    END IF;
END
$body$;
