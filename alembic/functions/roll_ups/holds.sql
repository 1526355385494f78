-- Says whether a part of a family holds the sessions of this user and data set. A part holds the owners after `after` up
-- to and including `up_to`, and has no bound where that is null. The owners of the family `dataset` are data sets; those
-- of the other families are users.
-- Raises nothing and takes no lock.
CREATE FUNCTION {schema}.holds(of_family text, after uuid, up_to uuid, user_id uuid, dataset_id uuid) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN CASE
    WHEN of_family = 'dataset' THEN (after IS NULL OR dataset_id > after) AND (up_to IS NULL OR dataset_id <= up_to)
    ELSE (after IS NULL OR user_id > after) AND (up_to IS NULL OR user_id <= up_to)
END
