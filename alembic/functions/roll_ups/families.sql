-- Names the families of roll-ups that the sessions of this user and data set belong to. A session is counted once in its
-- user's family and once in its data set's. So a viewer's answer adds both up and subtracts the family of the two together.
-- Answers a row for each family, with the zero id in the place of what the family has none of.
-- Raises nothing and takes no lock.
CREATE FUNCTION {schema}.families(of_user uuid, of_dataset uuid) RETURNS TABLE (
    family text, user_id uuid, dataset_id uuid
)
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
SELECT f.family, f.user_id, f.dataset_id
FROM (
    VALUES
        ('all', '00000000-0000-0000-0000-000000000000'::uuid, '00000000-0000-0000-0000-000000000000'::uuid),
        ('user', of_user, '00000000-0000-0000-0000-000000000000'),
        ('dataset', '00000000-0000-0000-0000-000000000000', of_dataset),
        ('user_dataset', of_user, of_dataset)
) f (family, user_id, dataset_id)
WHERE f.dataset_id IS NOT NULL;
END
