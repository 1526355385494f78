-- Whether what is of this user and data set is in the roll-ups of a range: of a family, and of those from the first user
-- or data set to the last where the family is by users or data sets.
CREATE FUNCTION {schema}.in_rollups_v1(of_family text, first uuid, last uuid, user_id uuid, dataset_id uuid) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $body$
SELECT CASE of_family
    WHEN 'all' THEN true
    WHEN 'dataset' THEN dataset_id BETWEEN first AND last
    WHEN 'user' THEN user_id BETWEEN first AND last
    ELSE user_id BETWEEN first AND last AND dataset_id IS NOT NULL
END
$body$;
