-- Writes runs, steps and messages; `items` has each of them once at most. What is stored is completed: a value that is
-- missing is filled, new keys of the metadata are added, and a start may become earlier. Another value under one that is
-- stored is a conflict, and the item changes nothing; with a higher revision it takes the place of the stored value. A lower
-- revision fills what is missing.
-- Answers a row for each item. Raises nothing.
-- Locks: none. `record_locked` holds the locks of all runs named and of the sessions of all messages.
CREATE FUNCTION {schema}.record_activity(items jsonb) RETURNS TABLE (item_position int, outcome text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET jit = off
AS $body$
#variable_conflict use_column
DECLARE
    -- Made before the statement that writes: a distributed Postgres refuses a volatile function within one.
    record_nos bigint[] := ARRAY(
        SELECT nextval('{schema}.session_runs_record_no_seq')
        FROM jsonb_to_recordset(items) AS i (kind text)
        WHERE i.kind = 'run'
    );
BEGIN
    IF items @? '$[*] ? (@.kind == "run")' THEN
        RETURN QUERY
        WITH found AS (
            SELECT i.*, row_number() OVER (ORDER BY i.position) AS place, coalesce(i.revision, 0) AS given_revision,
                   r.revision AS held_revision,
                   r.started_at IS NOT NULL AS is_held,
                   coalesce(i.revision, 0) > r.revision AS replaces,
                   r.ended_at IS NOT NULL AND i.ended_at IS NOT NULL
                       AND (r.ended_at <> i.ended_at OR r.status <> i.status) AS has_other_end,
                   coalesce(
                       i.parent_run_id <> r.parent_run_id AND r.parent_given
                       OR i.root_run_id <> r.root_run_id AND r.root_given
                       OR i.status <> r.status AND i.status <> 'running' AND r.status <> 'running'
                           AND (i.ended_at IS NULL OR r.ended_at IS NULL)
                       OR i.parent_tool_call_id <> r.parent_tool_call_id
                       OR i.dataset_id <> r.dataset_id
                       OR i.project <> r.project
                       OR i.agent_name <> r.agent_name
                       OR i.client <> r.client
                       OR i.provider <> r.provider
                       OR lower(i.model COLLATE "C") <> lower(r.model)
                       OR i.name <> r.name
                       OR i.error <> r.error
                       OR i.input <> r.input
                       OR i.output <> r.output
                       OR i.quality_score <> r.quality_score
                       OR i.reported_cost_usd <> r.reported_cost_usd
                       OR i.reported_tokens <> r.reported_tokens
                       OR i.metadata || r.metadata <> r.metadata || i.metadata,
                       false
                   ) AS differs,
                   r.started_at > i.started_at
                       OR r.status = 'running' AND i.status <> 'running'
                       OR r.ended_at IS NULL AND i.ended_at IS NOT NULL
                       OR NOT r.session_given AND i.session_id IS NOT NULL
                       OR NOT r.parent_given AND i.parent_run_id IS NOT NULL
                       OR NOT r.root_given AND i.root_run_id IS NOT NULL
                       OR i.parent_tool_call_id IS NOT NULL AND r.parent_tool_call_id IS NULL
                       OR i.dataset_id IS NOT NULL AND r.dataset_id IS NULL
                       OR i.project IS NOT NULL AND r.project IS NULL
                       OR i.agent_name IS NOT NULL AND r.agent_name IS NULL
                       OR i.client IS NOT NULL AND r.client IS NULL
                       OR i.provider IS NOT NULL AND r.provider IS NULL
                       OR i.model IS NOT NULL AND r.model IS NULL
                       OR i.name IS NOT NULL AND r.name IS NULL
                       OR i.error IS NOT NULL AND r.error IS NULL
                       OR i.input IS NOT NULL AND r.input IS NULL
                       OR i.output IS NOT NULL AND r.output IS NULL
                       OR i.quality_score IS NOT NULL AND r.quality_score IS NULL
                       OR i.reported_cost_usd IS NOT NULL AND r.reported_cost_usd IS NULL
                       OR i.reported_tokens IS NOT NULL AND r.reported_tokens IS NULL
                       OR coalesce(i.metadata || r.metadata <> r.metadata, i.metadata IS NOT NULL) AS fills
            FROM jsonb_to_recordset(items) AS i (
                position int, kind text, user_id uuid, run_id text, session_id text, parent_run_id text, root_run_id text,
                parent_tool_call_id text, dataset_id uuid, project text, agent_name text, client text, provider text,
                model text, name text, started_at timestamptz, ended_at timestamptz, status text, error text, input jsonb,
                output jsonb, metadata jsonb, quality_score double precision, reported_cost_usd numeric,
                reported_tokens bigint, revision int
            )
            JOIN {schema}.session_runs r ON r.user_id = i.user_id AND r.run_id = i.run_id
            WHERE i.kind = 'run'
        ),
        item AS MATERIALIZED (
            SELECT f.*,
                   CASE WHEN NOT f.is_held THEN 'created'
                        WHEN f.replaces THEN 'replaced'
                        WHEN f.given_revision = f.held_revision AND f.differs THEN 'conflict'
                        WHEN f.given_revision = f.held_revision AND f.has_other_end THEN 'already_ended'
                        WHEN f.fills THEN 'updated'
                        WHEN f.given_revision < f.held_revision THEN 'superseded'
                        ELSE 'unchanged' END AS outcome,
                   -- The row of a run that others named before has the number of that moment.
                   CASE WHEN NOT f.is_held THEN record_nos[f.place] END AS record_no
            FROM found f
        ),
        run AS (
            UPDATE {schema}.session_runs r
            SET session_id = CASE WHEN r.session_given THEN r.session_id ELSE coalesce(i.session_id, r.session_id) END,
                session_given = r.session_given OR i.session_id IS NOT NULL,
                parent_run_id = CASE WHEN r.parent_given AND NOT i.replaces THEN r.parent_run_id
                                     ELSE coalesce(i.parent_run_id, r.parent_run_id) END,
                parent_given = r.parent_given OR i.parent_run_id IS NOT NULL,
                root_run_id = CASE WHEN r.root_given AND NOT i.replaces THEN r.root_run_id
                                   ELSE coalesce(i.root_run_id, r.root_run_id) END,
                root_given = r.root_given OR i.root_run_id IS NOT NULL,
                started_at = least(r.started_at, i.started_at),
                ended_at = coalesce(CASE WHEN i.replaces THEN i.ended_at END, r.ended_at, i.ended_at),
                status = CASE WHEN r.status = 'running' THEN i.status
                              WHEN i.replaces AND i.status <> 'running' THEN i.status
                              ELSE r.status END,
                parent_tool_call_id = coalesce(
                    CASE WHEN i.replaces THEN i.parent_tool_call_id END, r.parent_tool_call_id, i.parent_tool_call_id
                ),
                dataset_id = coalesce(CASE WHEN i.replaces THEN i.dataset_id END, r.dataset_id, i.dataset_id),
                project = coalesce(CASE WHEN i.replaces THEN i.project END, r.project, i.project),
                agent_name = coalesce(CASE WHEN i.replaces THEN i.agent_name END, r.agent_name, i.agent_name),
                client = coalesce(CASE WHEN i.replaces THEN i.client END, r.client, i.client),
                provider = coalesce(CASE WHEN i.replaces THEN i.provider END, r.provider, i.provider),
                model = coalesce(CASE WHEN i.replaces THEN i.model END, r.model, i.model),
                name = coalesce(CASE WHEN i.replaces THEN i.name END, r.name, i.name),
                error = coalesce(CASE WHEN i.replaces THEN i.error END, r.error, i.error),
                input = coalesce(CASE WHEN i.replaces THEN i.input END, r.input, i.input),
                output = coalesce(CASE WHEN i.replaces THEN i.output END, r.output, i.output),
                quality_score = coalesce(CASE WHEN i.replaces THEN i.quality_score END, r.quality_score, i.quality_score),
                reported_cost_usd = coalesce(
                    CASE WHEN i.replaces THEN i.reported_cost_usd END, r.reported_cost_usd, i.reported_cost_usd
                ),
                reported_tokens = coalesce(
                    CASE WHEN i.replaces THEN i.reported_tokens END, r.reported_tokens, i.reported_tokens
                ),
                metadata = CASE WHEN i.replaces THEN coalesce(r.metadata || i.metadata, i.metadata, r.metadata)
                                ELSE coalesce(i.metadata || r.metadata, r.metadata, i.metadata) END,
                revision = greatest(r.revision, i.given_revision),
                record_no = coalesce(i.record_no, r.record_no),
                first_seen = least(r.first_seen, i.started_at),
                last_seen = greatest(r.last_seen, i.started_at, i.ended_at)
            FROM item i
            WHERE r.user_id = i.user_id AND r.run_id = i.run_id
                AND i.outcome NOT IN ('conflict', 'superseded', 'unchanged')
        )
        SELECT i.position, i.outcome FROM item i;
    END IF;

    IF items @? '$[*] ? (@.kind == "step")' THEN
        RETURN QUERY
        WITH found AS (
            SELECT i.*, coalesce(i.injected, false) AS is_injected, coalesce(i.revision, 0) AS given_revision,
                   s.revision AS held_revision, s.step_id IS NOT NULL AS is_held,
                   coalesce(
                       i.step_kind <> s.kind
                       OR i.ended_at <> s.ended_at
                       OR i.parent_step_id <> s.parent_step_id
                       OR i.seq <> s.seq
                       OR i.name <> s.name
                       OR i.inputs <> s.inputs
                       OR i.output <> s.output
                       OR i.prompt <> s.prompt
                       OR i.tool_call_id <> s.tool_call_id
                       OR i.server_url <> s.server_url
                       -- `prune_payloads` leaves a mark in the place of errors.
                       OR i.errors <> s.errors AND s.errors <> '"pruned"'
                       OR i.metadata || s.metadata <> s.metadata || i.metadata,
                       false
                   ) AS differs,
                   s.started_at > i.started_at
                       OR NOT s.injected AND coalesce(i.injected, false)
                       OR s.ended_at IS NULL AND i.ended_at IS NOT NULL
                       OR i.parent_step_id IS NOT NULL AND s.parent_step_id IS NULL
                       OR i.seq IS NOT NULL AND s.seq IS NULL
                       OR i.name IS NOT NULL AND s.name IS NULL
                       OR i.inputs IS NOT NULL AND s.inputs IS NULL
                       OR i.output IS NOT NULL AND s.output IS NULL
                       OR i.prompt IS NOT NULL AND s.prompt IS NULL
                       OR i.errors IS NOT NULL AND s.errors IS NULL
                       OR i.tool_call_id IS NOT NULL AND s.tool_call_id IS NULL
                       OR i.server_url IS NOT NULL AND s.server_url IS NULL
                       OR coalesce(i.metadata || s.metadata <> s.metadata, i.metadata IS NOT NULL) AS fills
            FROM jsonb_to_recordset(items) AS i (
                position int, kind text, user_id uuid, run_id text, step_id text, parent_step_id text, seq bigint,
                step_kind text, name text, started_at timestamptz, ended_at timestamptz, inputs jsonb, output jsonb,
                prompt jsonb, errors jsonb, tool_call_id text, server_url text, injected boolean, metadata jsonb,
                revision int
            )
            LEFT JOIN {schema}.session_steps s
                ON s.user_id = i.user_id AND s.run_id = i.run_id AND s.step_id = i.step_id
            WHERE i.kind = 'step'
        ),
        item AS MATERIALIZED (
            SELECT f.*,
                   CASE WHEN NOT f.is_held THEN 'created'
                        WHEN f.given_revision > f.held_revision THEN 'replaced'
                        WHEN f.given_revision = f.held_revision AND f.differs THEN 'conflict'
                        WHEN f.fills THEN 'updated'
                        WHEN f.given_revision < f.held_revision THEN 'superseded'
                        ELSE 'unchanged' END AS outcome
            FROM found f
        ),
        step AS (
            INSERT INTO {schema}.session_steps AS s
                (user_id, run_id, step_id, parent_step_id, seq, kind, name, started_at, ended_at, inputs, output, prompt,
                 errors, tool_call_id, server_url, injected, metadata, revision)
            SELECT i.user_id, i.run_id, i.step_id, i.parent_step_id, i.seq, i.step_kind, i.name, i.started_at, i.ended_at,
                   i.inputs, i.output, i.prompt, i.errors, i.tool_call_id, i.server_url, i.is_injected, i.metadata,
                   i.given_revision
            FROM item i
            WHERE i.outcome NOT IN ('conflict', 'superseded', 'unchanged')
            -- The rows get their numbers in this order.
            ORDER BY i.position
            ON CONFLICT (user_id, run_id, step_id) DO UPDATE
            SET kind = CASE WHEN excluded.revision > s.revision THEN excluded.kind ELSE s.kind END,
                started_at = least(s.started_at, excluded.started_at),
                injected = s.injected OR excluded.injected,
                ended_at = coalesce(
                    CASE WHEN excluded.revision > s.revision THEN excluded.ended_at END, s.ended_at, excluded.ended_at
                ),
                parent_step_id = coalesce(
                    CASE WHEN excluded.revision > s.revision THEN excluded.parent_step_id END, s.parent_step_id,
                    excluded.parent_step_id
                ),
                seq = coalesce(CASE WHEN excluded.revision > s.revision THEN excluded.seq END, s.seq, excluded.seq),
                name = coalesce(CASE WHEN excluded.revision > s.revision THEN excluded.name END, s.name, excluded.name),
                inputs = coalesce(
                    CASE WHEN excluded.revision > s.revision THEN excluded.inputs END, s.inputs, excluded.inputs
                ),
                output = coalesce(
                    CASE WHEN excluded.revision > s.revision THEN excluded.output END, s.output, excluded.output
                ),
                prompt = coalesce(
                    CASE WHEN excluded.revision > s.revision THEN excluded.prompt END, s.prompt, excluded.prompt
                ),
                errors = coalesce(
                    CASE WHEN excluded.revision > s.revision THEN excluded.errors END, s.errors, excluded.errors
                ),
                tool_call_id = coalesce(
                    CASE WHEN excluded.revision > s.revision THEN excluded.tool_call_id END, s.tool_call_id,
                    excluded.tool_call_id
                ),
                server_url = coalesce(
                    CASE WHEN excluded.revision > s.revision THEN excluded.server_url END, s.server_url, excluded.server_url
                ),
                metadata = CASE WHEN excluded.revision > s.revision
                                THEN coalesce(s.metadata || excluded.metadata, excluded.metadata, s.metadata)
                                ELSE coalesce(excluded.metadata || s.metadata, s.metadata, excluded.metadata) END,
                revision = greatest(s.revision, excluded.revision)
        ),
        run AS (
            UPDATE {schema}.session_runs r
            SET first_seen = least(r.first_seen, i.first_seen), last_seen = greatest(r.last_seen, i.last_seen)
            FROM (
                SELECT i.user_id, i.run_id, min(i.started_at) AS first_seen,
                       greatest(max(i.started_at), max(i.ended_at)) AS last_seen
                FROM item i
                WHERE i.outcome NOT IN ('conflict', 'superseded', 'unchanged')
                GROUP BY i.user_id, i.run_id
            ) i
            WHERE r.user_id = i.user_id AND r.run_id = i.run_id
                AND (r.first_seen IS NULL OR r.first_seen > i.first_seen OR r.last_seen < i.last_seen)
        )
        SELECT i.position, i.outcome FROM item i;
    END IF;

    IF items @? '$[*] ? (@.kind == "message")' THEN
        RETURN QUERY
        WITH found AS (
            SELECT i.*, row_number() OVER (ORDER BY i.position) AS place, coalesce(i.revision, 0) AS given_revision,
                   m.revision AS held_revision,
                   m.message_id IS NOT NULL AS is_held,
                   coalesce(
                       i.role <> m.role OR i.content <> m.content OR i.run_id <> m.run_id
                       OR i.metadata || m.metadata <> m.metadata || i.metadata,
                       false
                   ) AS differs,
                   m.created_at > i.created_at OR i.run_id IS NOT NULL AND m.run_id IS NULL
                       OR coalesce(i.metadata || m.metadata <> m.metadata, i.metadata IS NOT NULL) AS fills
            FROM jsonb_to_recordset(items) AS i (
                position int, kind text, user_id uuid, session_id text, message_id text, run_id text, role text,
                content text, content_folded text, created_at timestamptz, metadata jsonb, revision int
            )
            LEFT JOIN {schema}.session_messages m
                ON m.user_id = i.user_id AND m.session_id = i.session_id AND m.message_id = i.message_id
            WHERE i.kind = 'message'
        ),
        item AS MATERIALIZED (
            SELECT f.*,
                   CASE WHEN NOT f.is_held THEN 'created'
                        WHEN f.given_revision > f.held_revision THEN 'replaced'
                        WHEN f.given_revision = f.held_revision AND f.differs THEN 'conflict'
                        WHEN f.fills THEN 'updated'
                        WHEN f.given_revision < f.held_revision THEN 'superseded'
                        ELSE 'unchanged' END AS outcome
            FROM found f
        ),
        message AS (
            INSERT INTO {schema}.session_messages AS m
                (user_id, session_id, message_id, run_id, role, content, content_folded, created_at, metadata, revision)
            SELECT i.user_id, i.session_id, i.message_id, i.run_id, i.role, i.content, i.content_folded, i.created_at,
                   i.metadata, i.given_revision
            FROM item i
            WHERE i.outcome NOT IN ('conflict', 'superseded', 'unchanged')
            -- The rows get their numbers in this order.
            ORDER BY i.position
            ON CONFLICT (user_id, session_id, message_id) DO UPDATE
            SET run_id = coalesce(
                    CASE WHEN excluded.revision > m.revision THEN excluded.run_id END, m.run_id, excluded.run_id
                ),
                role = CASE WHEN excluded.revision > m.revision THEN excluded.role ELSE m.role END,
                content = CASE WHEN excluded.revision > m.revision THEN excluded.content ELSE m.content END,
                content_folded = CASE WHEN excluded.revision > m.revision THEN excluded.content_folded
                                      ELSE m.content_folded END,
                created_at = least(m.created_at, excluded.created_at),
                metadata = CASE WHEN excluded.revision > m.revision
                                THEN coalesce(m.metadata || excluded.metadata, excluded.metadata, m.metadata)
                                ELSE coalesce(excluded.metadata || m.metadata, m.metadata, excluded.metadata) END,
                revision = greatest(m.revision, excluded.revision)
        )
        SELECT i.position, i.outcome FROM item i;
    END IF;
END
$body$;
