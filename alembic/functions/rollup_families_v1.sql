-- The families of roll-ups that sessions of this user and data set are in. Every one of them, so that a viewer's answer is
-- the sum over their users and data sets, less that of those users in those data sets.
CREATE FUNCTION {schema}.rollup_families_v1(of_user uuid, of_dataset uuid) RETURNS TABLE (
    family text, user_id uuid, dataset_id uuid
)
LANGUAGE sql IMMUTABLE AS $body$
SELECT f.family, f.user_id, f.dataset_id
FROM (
    VALUES
        ('all', '00000000-0000-0000-0000-000000000000'::uuid, '00000000-0000-0000-0000-000000000000'::uuid),
        ('user', of_user, '00000000-0000-0000-0000-000000000000'),
        ('dataset', '00000000-0000-0000-0000-000000000000', of_dataset),
        ('user_dataset', of_user, of_dataset)
) f (family, user_id, dataset_id)
WHERE f.dataset_id IS NOT NULL
$body$;
