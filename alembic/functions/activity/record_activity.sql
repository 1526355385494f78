-- Writes runs, steps and messages; `items` has each of them once at most. What is stored is completed: a value that is
-- missing is filled and a value that is stored stays, but a start may become earlier.
-- Answers a row for each item. Raises nothing.
-- Locks: none. `record_locked` holds the locks of all runs named and of the sessions of all messages.
CREATE FUNCTION {schema}.record_activity(items jsonb) RETURNS TABLE (item_position int, outcome text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $body$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT i.*, r.started_at IS NOT NULL AS is_held, r.ended_at AS held_ended_at,
               r.started_at > i.started_at OR r.status = 'running' AND i.status <> 'running'
                   OR r.ended_at IS NULL AND i.ended_at IS NOT NULL
                   OR NOT r.session_given AND i.session_id IS NOT NULL
                   OR NOT r.parent_given AND i.parent_run_id IS NOT NULL
                   OR NOT r.root_given AND i.root_run_id IS NOT NULL
                   OR (i.parent_tool_call_id IS NOT NULL AND r.parent_tool_call_id IS NULL)
                   OR (i.dataset_id IS NOT NULL AND r.dataset_id IS NULL)
                   OR (i.project IS NOT NULL AND r.project IS NULL)
                   OR (i.agent_name IS NOT NULL AND r.agent_name IS NULL)
                   OR (i.client IS NOT NULL AND r.client IS NULL)
                   OR (i.provider IS NOT NULL AND r.provider IS NULL)
                   OR (i.model IS NOT NULL AND r.model IS NULL)
                   OR (i.name IS NOT NULL AND r.name IS NULL)
                   OR (i.error IS NOT NULL AND r.error IS NULL)
                   OR (i.input IS NOT NULL AND r.input IS NULL)
                   OR (i.output IS NOT NULL AND r.output IS NULL)
                   OR (i.metadata IS NOT NULL AND r.metadata IS NULL)
                   OR (i.quality_score IS NOT NULL AND r.quality_score IS NULL)
                   OR (i.reported_cost_usd IS NOT NULL AND r.reported_cost_usd IS NULL)
                   OR (i.reported_tokens IS NOT NULL AND r.reported_tokens IS NULL) AS fills
        FROM jsonb_to_recordset(items) AS i (
            position int, kind text, user_id uuid, run_id text, session_id text, parent_run_id text, root_run_id text,
            parent_tool_call_id text, dataset_id uuid, project text, agent_name text, client text, provider text,
            model text, name text, started_at timestamptz, ended_at timestamptz, status text, error text, input jsonb,
            output jsonb, metadata jsonb, quality_score double precision, reported_cost_usd numeric,
            reported_tokens bigint
        )
        JOIN {schema}.session_runs r ON r.user_id = i.user_id AND r.run_id = i.run_id
        WHERE i.kind = 'run'
    ),
    run AS (
        UPDATE {schema}.session_runs r
        SET session_id = CASE WHEN r.session_given THEN r.session_id ELSE coalesce(i.session_id, r.session_id) END,
            session_given = r.session_given OR i.session_id IS NOT NULL,
            parent_run_id = CASE WHEN r.parent_given THEN r.parent_run_id
                                 ELSE coalesce(i.parent_run_id, r.parent_run_id) END,
            parent_given = r.parent_given OR i.parent_run_id IS NOT NULL,
            root_run_id = CASE WHEN r.root_given THEN r.root_run_id ELSE coalesce(i.root_run_id, r.root_run_id) END,
            root_given = r.root_given OR i.root_run_id IS NOT NULL,
            parent_tool_call_id = coalesce(r.parent_tool_call_id, i.parent_tool_call_id),
            dataset_id = coalesce(r.dataset_id, i.dataset_id),
            project = coalesce(r.project, i.project),
            agent_name = coalesce(r.agent_name, i.agent_name),
            client = coalesce(r.client, i.client),
            provider = coalesce(r.provider, i.provider),
            model = coalesce(r.model, i.model),
            name = coalesce(r.name, i.name),
            started_at = least(r.started_at, i.started_at),
            ended_at = coalesce(r.ended_at, i.ended_at),
            status = CASE WHEN r.status = 'running' THEN i.status ELSE r.status END,
            error = coalesce(r.error, i.error),
            input = coalesce(r.input, i.input),
            output = coalesce(r.output, i.output),
            metadata = coalesce(r.metadata, i.metadata),
            quality_score = coalesce(r.quality_score, i.quality_score),
            reported_cost_usd = coalesce(r.reported_cost_usd, i.reported_cost_usd),
            reported_tokens = coalesce(r.reported_tokens, i.reported_tokens),
            first_seen = least(r.first_seen, i.started_at),
            last_seen = greatest(r.last_seen, i.started_at, i.ended_at)
        FROM item i
        WHERE r.user_id = i.user_id AND r.run_id = i.run_id
    )
    SELECT i.position,
           CASE WHEN NOT i.is_held THEN 'created'
                WHEN i.held_ended_at IS NOT NULL AND i.ended_at IS NOT NULL THEN 'already_ended'
                WHEN i.fills THEN 'updated'
                ELSE 'unchanged' END
    FROM item i;

    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT i.*, coalesce(i.injected, false) AS is_injected, s.step_id IS NOT NULL AS is_held,
               s.started_at > i.started_at OR NOT s.injected AND coalesce(i.injected, false)
                   OR s.ended_at IS NULL AND i.ended_at IS NOT NULL
                   OR (i.parent_step_id IS NOT NULL AND s.parent_step_id IS NULL)
                   OR (i.seq IS NOT NULL AND s.seq IS NULL)
                   OR (i.name IS NOT NULL AND s.name IS NULL)
                   OR (i.inputs IS NOT NULL AND s.inputs IS NULL)
                   OR (i.output IS NOT NULL AND s.output IS NULL)
                   OR (i.prompt IS NOT NULL AND s.prompt IS NULL)
                   OR (i.errors IS NOT NULL AND s.errors IS NULL)
                   OR (i.tool_call_id IS NOT NULL AND s.tool_call_id IS NULL)
                   OR (i.server_url IS NOT NULL AND s.server_url IS NULL)
                   OR (i.metadata IS NOT NULL AND s.metadata IS NULL) AS fills
        FROM jsonb_to_recordset(items) AS i (
            position int, kind text, user_id uuid, run_id text, step_id text, parent_step_id text, seq bigint,
            step_kind text, name text, started_at timestamptz, ended_at timestamptz, inputs jsonb, output jsonb,
            prompt jsonb, errors jsonb, tool_call_id text, server_url text, injected boolean, metadata jsonb
        )
        LEFT JOIN {schema}.session_steps s
            ON s.user_id = i.user_id AND s.run_id = i.run_id AND s.step_id = i.step_id
        WHERE i.kind = 'step'
    ),
    step AS (
        INSERT INTO {schema}.session_steps AS s
            (user_id, run_id, step_id, parent_step_id, seq, kind, name, started_at, ended_at, inputs, output, prompt,
             errors, tool_call_id, server_url, injected, metadata)
        SELECT i.user_id, i.run_id, i.step_id, i.parent_step_id, i.seq, i.step_kind, i.name, i.started_at, i.ended_at,
               i.inputs, i.output, i.prompt, i.errors, i.tool_call_id, i.server_url, i.is_injected, i.metadata
        FROM item i
        WHERE NOT i.is_held OR i.fills
        ON CONFLICT (user_id, run_id, step_id) DO UPDATE
        SET parent_step_id = coalesce(s.parent_step_id, excluded.parent_step_id),
            seq = coalesce(s.seq, excluded.seq),
            name = coalesce(s.name, excluded.name),
            started_at = least(s.started_at, excluded.started_at),
            ended_at = coalesce(s.ended_at, excluded.ended_at),
            inputs = coalesce(s.inputs, excluded.inputs),
            output = coalesce(s.output, excluded.output),
            prompt = coalesce(s.prompt, excluded.prompt),
            errors = coalesce(s.errors, excluded.errors),
            tool_call_id = coalesce(s.tool_call_id, excluded.tool_call_id),
            server_url = coalesce(s.server_url, excluded.server_url),
            injected = s.injected OR excluded.injected,
            metadata = coalesce(s.metadata, excluded.metadata)
    ),
    run AS (
        UPDATE {schema}.session_runs r
        SET first_seen = least(r.first_seen, i.first_seen), last_seen = greatest(r.last_seen, i.last_seen)
        FROM (
            SELECT i.user_id, i.run_id, min(i.started_at) AS first_seen,
                   greatest(max(i.started_at), max(i.ended_at)) AS last_seen
            FROM item i
            GROUP BY i.user_id, i.run_id
        ) i
        WHERE r.user_id = i.user_id AND r.run_id = i.run_id
            AND (r.first_seen IS NULL OR r.first_seen > i.first_seen OR r.last_seen < i.last_seen)
    )
    SELECT i.position, CASE WHEN NOT i.is_held THEN 'created' WHEN i.fills THEN 'updated' ELSE 'unchanged' END
    FROM item i;

    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT i.*, m.message_id IS NOT NULL AS is_held,
               (i.run_id IS NOT NULL AND m.run_id IS NULL) OR (i.metadata IS NOT NULL AND m.metadata IS NULL) AS fills
        FROM jsonb_to_recordset(items) AS i (
            position int, kind text, user_id uuid, session_id text, message_id text, run_id text, role text, content text,
            content_folded text, created_at timestamptz, metadata jsonb
        )
        LEFT JOIN {schema}.session_messages m
            ON m.user_id = i.user_id AND m.session_id = i.session_id AND m.message_id = i.message_id
        WHERE i.kind = 'message'
    ),
    message AS (
        INSERT INTO {schema}.session_messages AS m
            (user_id, session_id, message_id, run_id, role, content, content_folded, created_at, metadata)
        SELECT i.user_id, i.session_id, i.message_id, i.run_id, i.role, i.content, i.content_folded, i.created_at,
               i.metadata
        FROM item i
        WHERE NOT i.is_held OR i.fills
        ON CONFLICT (user_id, session_id, message_id) DO UPDATE
        SET run_id = coalesce(m.run_id, excluded.run_id), metadata = coalesce(m.metadata, excluded.metadata)
    )
    SELECT i.position, CASE WHEN NOT i.is_held THEN 'created' WHEN i.fills THEN 'updated' ELSE 'unchanged' END
    FROM item i;
END
$body$;
