-- Whether the sessions of this user and data set are in that part of a family: those of the owners after the one up to
-- the other, and open where that is null. Owners are the data sets of the family `dataset`, and users of the others.
CREATE FUNCTION {schema}.in_rollups_v1(of_family text, after uuid, up_to uuid, user_id uuid, dataset_id uuid) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $body$
SELECT CASE of_family
    WHEN 'dataset' THEN (after IS NULL OR dataset_id > after) AND (up_to IS NULL OR dataset_id <= up_to)
    ELSE (after IS NULL OR user_id > after) AND (up_to IS NULL OR user_id <= up_to)
END
$body$;
