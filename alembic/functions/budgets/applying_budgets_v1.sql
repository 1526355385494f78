-- Finds the budgets that count an event of this session. Agent and dataset are those of the session. Where the session has
-- none, or does not exist yet, they are the ones given, which the touch to come will store.
-- Answers the ids in their order; an empty array where there are none. Raises nothing and takes no lock.
CREATE FUNCTION {schema}.applying_budgets_v1(of_user uuid, of_session text, given_agent text, given_dataset uuid)
RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $body$
DECLARE
    agent text;
    dataset uuid;
BEGIN
    SELECT s.agent_name, s.dataset_id INTO agent, dataset
    FROM {schema}.session_records s
    WHERE s.user_id = of_user AND s.session_id = of_session;
    agent := coalesce(agent, given_agent);
    dataset := coalesce(dataset, given_dataset);
    RETURN ARRAY(
        SELECT found.budget_id
        FROM (
            SELECT b.budget_id, b.agent_name, b.dataset_id
            FROM {schema}.session_budgets b
            WHERE b.user_id = of_user AND b.session_id IS NULL
            UNION ALL
            SELECT b.budget_id, b.agent_name, b.dataset_id
            FROM {schema}.session_budgets b
            WHERE b.user_id = of_user AND b.session_id = of_session
            UNION ALL
            SELECT b.budget_id, b.agent_name, b.dataset_id
            FROM {schema}.session_budgets b
            WHERE b.user_id IS NULL AND b.agent_name = agent
            UNION ALL
            SELECT b.budget_id, b.agent_name, b.dataset_id
            FROM {schema}.session_budgets b
            WHERE b.user_id IS NULL AND b.agent_name IS NULL AND b.dataset_id = dataset
        ) found
        WHERE (found.agent_name IS NULL OR found.agent_name = agent)
            AND (found.dataset_id IS NULL OR found.dataset_id = dataset)
        ORDER BY found.budget_id
    );
END
$body$;
