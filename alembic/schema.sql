-- What the revisions in versions/ add up to, for reading and reviewing; nothing runs this file. `make schema` writes
-- it, and a test compares it with a migrated database. Left out: the version table, the bodies of functions (they are
-- in functions/), and the index ix_session_messages_search, which exists where the extension pg_trgm may be created.

CREATE TABLE session_lifecycle.rolled_up_sessions (
    user_id uuid NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    dataset_id uuid,
    agent_name text,
    status text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    last_activity_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    tokens_in bigint NOT NULL,
    tokens_out bigint NOT NULL,
    cost_usd numeric NOT NULL,
    unpriced_events bigint NOT NULL,
    unmeasured_events bigint NOT NULL,
    late_events bigint NOT NULL,
    late_cost_usd numeric NOT NULL,
    models jsonb NOT NULL,
    CONSTRAINT pk_rolled_up_sessions PRIMARY KEY (user_id, session_id)
);

CREATE TABLE session_lifecycle.session_messages (
    user_id uuid NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    run_id text COLLATE "C",
    role text NOT NULL,
    content text NOT NULL,
    content_folded text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    metadata jsonb,
    CONSTRAINT ck_session_messages_role CHECK ((role = ANY (ARRAY['user'::text, 'assistant'::text, 'system'::text, 'tool'::text, 'thought'::text]))),
    CONSTRAINT pk_session_messages PRIMARY KEY (user_id, session_id, message_id)
);

CREATE TABLE session_lifecycle.session_model_roll_up_changes (
    change_id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    user_id uuid NOT NULL,
    dataset_id uuid,
    starts_at timestamp with time zone NOT NULL,
    model text COLLATE "C" NOT NULL,
    sessions bigint NOT NULL DEFAULT 0,
    cost_usd numeric NOT NULL DEFAULT 0,
    tokens_in numeric NOT NULL DEFAULT 0,
    tokens_out numeric NOT NULL DEFAULT 0,
    cache_read_tokens numeric NOT NULL DEFAULT 0,
    cache_write_tokens numeric NOT NULL DEFAULT 0,
    reasoning_tokens numeric NOT NULL DEFAULT 0,
    events bigint NOT NULL DEFAULT 0,
    unpriced_events bigint NOT NULL DEFAULT 0,
    CONSTRAINT pk_session_model_roll_up_changes PRIMARY KEY (change_id)
);

CREATE TABLE session_lifecycle.session_model_roll_ups (
    family text COLLATE "C" NOT NULL,
    user_id uuid NOT NULL,
    dataset_id uuid NOT NULL,
    level text COLLATE "C" NOT NULL,
    starts_at timestamp with time zone NOT NULL,
    model text COLLATE "C" NOT NULL,
    sessions bigint NOT NULL DEFAULT 0,
    cost_usd numeric NOT NULL DEFAULT 0,
    tokens_in numeric NOT NULL DEFAULT 0,
    tokens_out numeric NOT NULL DEFAULT 0,
    cache_read_tokens numeric NOT NULL DEFAULT 0,
    cache_write_tokens numeric NOT NULL DEFAULT 0,
    reasoning_tokens numeric NOT NULL DEFAULT 0,
    events bigint NOT NULL DEFAULT 0,
    unpriced_events bigint NOT NULL DEFAULT 0,
    CONSTRAINT pk_session_model_roll_ups PRIMARY KEY (family, user_id, dataset_id, level, starts_at, model)
);

CREATE TABLE session_lifecycle.session_model_usage (
    user_id uuid NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    tokens_in bigint NOT NULL DEFAULT 0,
    tokens_out bigint NOT NULL DEFAULT 0,
    cost_usd numeric NOT NULL DEFAULT 0,
    cache_read_tokens bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens bigint NOT NULL DEFAULT 0,
    events bigint NOT NULL DEFAULT 0,
    unpriced_events bigint NOT NULL DEFAULT 0,
    unmeasured_events bigint NOT NULL DEFAULT 0,
    CONSTRAINT ck_session_model_usage_never_negative CHECK (((tokens_in >= 0) AND (tokens_out >= 0) AND (cost_usd >= (0)::numeric) AND (cache_read_tokens >= 0) AND (cache_write_tokens >= 0) AND (reasoning_tokens >= 0) AND (events >= 0) AND (unpriced_events >= 0) AND (unmeasured_events >= 0))),
    CONSTRAINT pk_session_model_usage PRIMARY KEY (user_id, session_id, model)
) WITH (fillfactor=80);

CREATE TABLE session_lifecycle.session_records (
    user_id uuid NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    dataset_id uuid,
    status text NOT NULL DEFAULT 'running'::text,
    started_at timestamp with time zone NOT NULL DEFAULT statement_timestamp(),
    last_activity_at timestamp with time zone NOT NULL DEFAULT statement_timestamp(),
    ended_at timestamp with time zone,
    tokens_in bigint NOT NULL DEFAULT 0,
    tokens_out bigint NOT NULL DEFAULT 0,
    cost_usd numeric NOT NULL DEFAULT 0,
    error_count bigint NOT NULL DEFAULT 0,
    last_model text,
    last_model_at timestamp with time zone,
    agent_name text,
    title text,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    cache_read_tokens bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens bigint NOT NULL DEFAULT 0,
    unpriced_events bigint NOT NULL DEFAULT 0,
    unmeasured_events bigint NOT NULL DEFAULT 0,
    late_events bigint NOT NULL DEFAULT 0,
    late_cost_usd numeric NOT NULL DEFAULT 0,
    activity_minute timestamp with time zone NOT NULL GENERATED ALWAYS AS (date_bin('00:01:00'::interval, last_activity_at, '2000-01-01 00:00:00+00'::timestamp with time zone)) STORED,
    derived boolean NOT NULL DEFAULT false,
    rolled_up boolean NOT NULL DEFAULT false,
    CONSTRAINT ck_session_records_ended_at CHECK (((status = 'running'::text) = (ended_at IS NULL))),
    CONSTRAINT ck_session_records_never_negative CHECK (((tokens_in >= 0) AND (tokens_out >= 0) AND (cost_usd >= (0)::numeric) AND (error_count >= 0) AND (cache_read_tokens >= 0) AND (cache_write_tokens >= 0) AND (reasoning_tokens >= 0) AND (unpriced_events >= 0) AND (unmeasured_events >= 0) AND (late_events >= 0) AND (late_cost_usd >= (0)::numeric))),
    CONSTRAINT ck_session_records_status CHECK ((status = ANY (ARRAY['running'::text, 'completed'::text, 'failed'::text]))),
    CONSTRAINT pk_session_records PRIMARY KEY (user_id, session_id)
) WITH (fillfactor=80);

CREATE TABLE session_lifecycle.session_repricings (
    repricing_id uuid NOT NULL,
    model text COLLATE "C",
    since timestamp with time zone,
    until timestamp with time zone,
    began_at timestamp with time zone NOT NULL DEFAULT statement_timestamp(),
    last_written_at timestamp with time zone NOT NULL DEFAULT statement_timestamp(),
    events bigint NOT NULL DEFAULT 0,
    cost_before_usd numeric NOT NULL DEFAULT 0,
    cost_after_usd numeric NOT NULL DEFAULT 0,
    CONSTRAINT pk_session_repricings PRIMARY KEY (repricing_id)
);

CREATE TABLE session_lifecycle.session_roll_up_changes (
    change_id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    user_id uuid NOT NULL,
    dataset_id uuid,
    status text COLLATE "C" NOT NULL,
    starts_at timestamp with time zone NOT NULL,
    sessions bigint NOT NULL DEFAULT 0,
    cost_usd numeric NOT NULL DEFAULT 0,
    tokens_in numeric NOT NULL DEFAULT 0,
    tokens_out numeric NOT NULL DEFAULT 0,
    duration_us numeric NOT NULL DEFAULT 0,
    unpriced_events bigint NOT NULL DEFAULT 0,
    unmeasured_events bigint NOT NULL DEFAULT 0,
    late_events bigint NOT NULL DEFAULT 0,
    late_cost_usd numeric NOT NULL DEFAULT 0,
    CONSTRAINT pk_session_roll_up_changes PRIMARY KEY (change_id)
);

CREATE TABLE session_lifecycle.session_roll_ups (
    family text COLLATE "C" NOT NULL,
    user_id uuid NOT NULL,
    dataset_id uuid NOT NULL,
    level text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    starts_at timestamp with time zone NOT NULL,
    sessions bigint NOT NULL DEFAULT 0,
    cost_usd numeric NOT NULL DEFAULT 0,
    tokens_in numeric NOT NULL DEFAULT 0,
    tokens_out numeric NOT NULL DEFAULT 0,
    duration_us numeric NOT NULL DEFAULT 0,
    unpriced_events bigint NOT NULL DEFAULT 0,
    unmeasured_events bigint NOT NULL DEFAULT 0,
    late_events bigint NOT NULL DEFAULT 0,
    late_cost_usd numeric NOT NULL DEFAULT 0,
    CONSTRAINT pk_session_roll_ups PRIMARY KEY (family, user_id, dataset_id, level, status, starts_at)
);

CREATE TABLE session_lifecycle.session_runs (
    user_id uuid NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    session_id text COLLATE "C",
    session_given boolean NOT NULL DEFAULT false,
    parent_run_id text COLLATE "C",
    parent_given boolean NOT NULL DEFAULT false,
    root_run_id text COLLATE "C",
    root_given boolean NOT NULL DEFAULT false,
    parent_tool_call_id text COLLATE "C",
    dataset_id uuid,
    project text COLLATE "C",
    agent_name text COLLATE "C",
    client text COLLATE "C",
    provider text COLLATE "C",
    model text COLLATE "C",
    name text,
    started_at timestamp with time zone,
    ended_at timestamp with time zone,
    status text NOT NULL DEFAULT 'running'::text,
    error text,
    input jsonb,
    output jsonb,
    metadata jsonb,
    quality_score double precision,
    reported_cost_usd numeric,
    reported_tokens bigint,
    events_cost_usd numeric NOT NULL DEFAULT 0,
    events_tokens_in bigint NOT NULL DEFAULT 0,
    events_tokens_out bigint NOT NULL DEFAULT 0,
    events_cache_read_tokens bigint NOT NULL DEFAULT 0,
    events_cache_write_tokens bigint NOT NULL DEFAULT 0,
    first_seen timestamp with time zone,
    last_seen timestamp with time zone,
    CONSTRAINT ck_session_runs_status CHECK ((status = ANY (ARRAY['running'::text, 'completed'::text, 'failed'::text, 'cancelled'::text]))),
    CONSTRAINT pk_session_runs PRIMARY KEY (user_id, run_id)
);

CREATE TABLE session_lifecycle.session_steps (
    user_id uuid NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    step_id text COLLATE "C" NOT NULL,
    parent_step_id text COLLATE "C",
    seq bigint,
    kind text COLLATE "C" NOT NULL,
    name text,
    started_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    inputs jsonb,
    output jsonb,
    prompt jsonb,
    errors jsonb,
    tool_call_id text COLLATE "C",
    server_url text,
    injected boolean NOT NULL DEFAULT false,
    metadata jsonb,
    is_error boolean NOT NULL GENERATED ALWAYS AS (COALESCE(((jsonb_typeof(errors) <> 'null'::text) AND (errors <> '[]'::jsonb)), false)) STORED,
    CONSTRAINT pk_session_steps PRIMARY KEY (user_id, run_id, step_id)
);

CREATE TABLE session_lifecycle.session_tombstones (
    user_id uuid NOT NULL,
    erased_at timestamp with time zone NOT NULL DEFAULT statement_timestamp(),
    CONSTRAINT pk_session_tombstones PRIMARY KEY (user_id)
);

CREATE TABLE session_lifecycle.session_usage_events (
    user_id uuid NOT NULL,
    event_id uuid NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    at timestamp with time zone NOT NULL,
    recorded_at timestamp with time zone NOT NULL DEFAULT statement_timestamp(),
    model text COLLATE "C",
    provider text,
    tokens_in bigint NOT NULL DEFAULT 0,
    tokens_out bigint NOT NULL DEFAULT 0,
    cache_read_tokens bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    reasoning_tokens bigint NOT NULL DEFAULT 0,
    cost_usd numeric,
    given_cost_usd numeric,
    price_source text,
    unit_prices jsonb,
    errored boolean NOT NULL DEFAULT false,
    measured boolean NOT NULL DEFAULT true,
    late boolean NOT NULL DEFAULT false,
    idempotency_key text,
    key_scope text NOT NULL DEFAULT 'session'::text,
    revision integer NOT NULL DEFAULT 0,
    run_id text,
    details jsonb NOT NULL DEFAULT '{}'::jsonb,
    CONSTRAINT ck_session_usage_events_key_scope CHECK ((key_scope = ANY (ARRAY['session'::text, 'user'::text, 'run'::text]))),
    CONSTRAINT ck_session_usage_events_never_negative CHECK (((tokens_in >= 0) AND (tokens_out >= 0) AND (cost_usd >= (0)::numeric) AND (cache_read_tokens >= 0) AND (cache_write_tokens >= 0) AND (reasoning_tokens >= 0) AND (revision >= 0))),
    CONSTRAINT ck_session_usage_events_part_of_output CHECK ((reasoning_tokens <= tokens_out)),
    CONSTRAINT ck_session_usage_events_parts_of_input CHECK (((cache_read_tokens + cache_write_tokens) <= tokens_in)),
    CONSTRAINT pk_session_usage_events PRIMARY KEY (user_id, session_id, event_id)
);

CREATE INDEX ix_rolled_up_sessions_dataset_id_agent_name_last_activity_at ON session_lifecycle.rolled_up_sessions USING btree (dataset_id, agent_name, status, last_activity_at, user_id, session_id) WHERE ((dataset_id IS NOT NULL) AND (agent_name IS NOT NULL));

CREATE INDEX ix_rolled_up_sessions_dataset_id_cost_usd ON session_lifecycle.rolled_up_sessions USING btree (dataset_id, status, cost_usd, user_id, session_id) WHERE (dataset_id IS NOT NULL);

CREATE INDEX ix_rolled_up_sessions_dataset_id_ended_at ON session_lifecycle.rolled_up_sessions USING btree (dataset_id, status, ended_at, user_id, session_id) WHERE (dataset_id IS NOT NULL);

CREATE INDEX ix_rolled_up_sessions_dataset_id_last_activity_at ON session_lifecycle.rolled_up_sessions USING btree (dataset_id, status, last_activity_at, user_id, session_id) WHERE (dataset_id IS NOT NULL);

CREATE INDEX ix_rolled_up_sessions_dataset_id_started_at ON session_lifecycle.rolled_up_sessions USING btree (dataset_id, status, started_at, user_id, session_id) WHERE (dataset_id IS NOT NULL);

CREATE INDEX ix_rolled_up_sessions_dataset_id_tokens_in ON session_lifecycle.rolled_up_sessions USING btree (dataset_id, status, tokens_in, user_id, session_id) WHERE (dataset_id IS NOT NULL);

CREATE INDEX ix_rolled_up_sessions_dataset_id_tokens_out ON session_lifecycle.rolled_up_sessions USING btree (dataset_id, status, tokens_out, user_id, session_id) WHERE (dataset_id IS NOT NULL);

CREATE INDEX ix_rolled_up_sessions_last_activity_at ON session_lifecycle.rolled_up_sessions USING btree (status, last_activity_at, user_id, session_id) WHERE (session_id <> ''::text);

CREATE INDEX ix_rolled_up_sessions_user_id_agent_name_last_activity_at ON session_lifecycle.rolled_up_sessions USING btree (user_id, agent_name, status, last_activity_at, session_id) WHERE (agent_name IS NOT NULL);

CREATE INDEX ix_rolled_up_sessions_user_id_cost_usd ON session_lifecycle.rolled_up_sessions USING btree (user_id, status, cost_usd, session_id);

CREATE INDEX ix_rolled_up_sessions_user_id_dataset_id_last_activity_at ON session_lifecycle.rolled_up_sessions USING btree (user_id, dataset_id, status, last_activity_at, session_id) WHERE (dataset_id IS NOT NULL);

CREATE INDEX ix_rolled_up_sessions_user_id_ended_at ON session_lifecycle.rolled_up_sessions USING btree (user_id, status, ended_at, session_id);

CREATE INDEX ix_rolled_up_sessions_user_id_last_activity_at ON session_lifecycle.rolled_up_sessions USING btree (user_id, status, last_activity_at, session_id);

CREATE INDEX ix_rolled_up_sessions_user_id_started_at ON session_lifecycle.rolled_up_sessions USING btree (user_id, status, started_at, session_id);

CREATE INDEX ix_rolled_up_sessions_user_id_tokens_in ON session_lifecycle.rolled_up_sessions USING btree (user_id, status, tokens_in, session_id);

CREATE INDEX ix_rolled_up_sessions_user_id_tokens_out ON session_lifecycle.rolled_up_sessions USING btree (user_id, status, tokens_out, session_id);

CREATE INDEX ix_session_messages_user_id_run_id_created_at ON session_lifecycle.session_messages USING btree (user_id, run_id, created_at) WHERE (run_id IS NOT NULL);

CREATE INDEX ix_session_messages_user_id_session_id_created_at_message_id ON session_lifecycle.session_messages USING btree (user_id, session_id, created_at, message_id);

CREATE INDEX ix_session_model_roll_up_changes_dataset_id_starts_at ON session_lifecycle.session_model_roll_up_changes USING btree (dataset_id, starts_at) WHERE (dataset_id IS NOT NULL);

CREATE INDEX ix_session_model_roll_up_changes_user_id_starts_at ON session_lifecycle.session_model_roll_up_changes USING btree (user_id, starts_at);

CREATE INDEX ix_session_records_dataset_id_status_activity_minute ON session_lifecycle.session_records USING btree (dataset_id, status, activity_minute) WHERE ((NOT rolled_up) AND (dataset_id IS NOT NULL));

CREATE INDEX ix_session_records_session_id_user_id ON session_lifecycle.session_records USING btree (session_id, user_id);

CREATE INDEX ix_session_records_status_activity_minute ON session_lifecycle.session_records USING btree (status, activity_minute) WHERE ((NOT rolled_up) AND (session_id <> ''::text));

CREATE INDEX ix_session_records_user_id_status_activity_minute ON session_lifecycle.session_records USING btree (user_id, status, activity_minute) WHERE (NOT rolled_up);

CREATE INDEX ix_session_roll_up_changes_dataset_id_starts_at ON session_lifecycle.session_roll_up_changes USING btree (dataset_id, starts_at) WHERE (dataset_id IS NOT NULL);

CREATE INDEX ix_session_roll_up_changes_user_id_starts_at ON session_lifecycle.session_roll_up_changes USING btree (user_id, starts_at);

CREATE INDEX ix_session_runs_client_user_id_session_id ON session_lifecycle.session_runs USING btree (client, user_id, session_id);

CREATE INDEX ix_session_runs_model_user_id_session_id ON session_lifecycle.session_runs USING btree (model, user_id, session_id);

CREATE INDEX ix_session_runs_user_id_parent_run_id ON session_lifecycle.session_runs USING btree (user_id, parent_run_id) WHERE (parent_run_id IS NOT NULL);

CREATE INDEX ix_session_runs_user_id_parent_tool_call_id ON session_lifecycle.session_runs USING btree (user_id, parent_tool_call_id) WHERE (parent_tool_call_id IS NOT NULL);

CREATE INDEX ix_session_runs_user_id_root_run_id ON session_lifecycle.session_runs USING btree (user_id, root_run_id) WHERE (root_run_id IS NOT NULL);

CREATE INDEX ix_session_runs_user_id_session_id_started_at_run_id ON session_lifecycle.session_runs USING btree (user_id, session_id, started_at, run_id) WHERE (started_at IS NOT NULL);

CREATE INDEX ix_session_runs_user_id_started_at_run_id ON session_lifecycle.session_runs USING btree (user_id, started_at, run_id) WHERE (started_at IS NOT NULL);

CREATE INDEX ix_session_steps_user_id_tool_call_id_started_at ON session_lifecycle.session_steps USING btree (user_id, tool_call_id, started_at) WHERE (tool_call_id IS NOT NULL);

CREATE INDEX ix_session_usage_events_at ON session_lifecycle.session_usage_events USING brin (at) WITH (autosummarize='on');

CREATE UNIQUE INDEX ix_session_usage_events_user_id_event_id ON session_lifecycle.session_usage_events USING btree (user_id, event_id) WHERE (key_scope = 'user'::text);

CREATE UNIQUE INDEX ix_session_usage_events_user_id_run_id ON session_lifecycle.session_usage_events USING btree (user_id, run_id) WHERE (key_scope = 'run'::text);

CREATE TRIGGER leave_roll_ups BEFORE DELETE OR UPDATE ON session_lifecycle.session_records FOR EACH ROW WHEN (old.rolled_up) EXECUTE FUNCTION session_lifecycle.leave_roll_ups_v1();

CREATE FUNCTION session_lifecycle.adjust_run(adjustments jsonb, now_at timestamp with time zone) RETURNS TABLE(user_id uuid, session_id text, difference_usd numeric) LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.anonymise_sessions_v1(keys jsonb, pseudonym uuid, OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint) RETURNS record LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.append_changes(of_user uuid, of_dataset uuid, of_status text, began_at timestamp with time zone, active_at timestamp with time zone, over_at timestamp with time zone, used_tokens_in bigint, used_tokens_out bigint, spent_usd numeric, unpriced bigint, unmeasured bigint, late bigint, late_usd numeric, models jsonb, sign integer) RETURNS void LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.compact_roll_ups_v1(most integer) RETURNS bigint LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET jit=off SET search_path=pg_catalog, pg_temp SET work_mem=64MB;

CREATE FUNCTION session_lifecycle.delete_activity(of_users uuid[], of_sessions text[], OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT named_users uuid[], OUT named_runs text[]) RETURNS record LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.delete_sessions_v1(keys jsonb, idle_before timestamp with time zone, OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint) RETURNS record LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.delete_unnamed_runs(of_users uuid[], of_runs text[], idle_before timestamp with time zone) RETURNS bigint LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.delete_waiting_runs_v1(keys jsonb, idle_before timestamp with time zone, OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint) RETURNS record LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.empty_sessions_v1(keys jsonb, idle_before timestamp with time zone, OUT sessions bigint, OUT runs bigint, OUT steps bigint, OUT messages bigint, OUT events bigint, OUT model_rows bigint) RETURNS record LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.expected_model_roll_ups_v1(of_family text, after uuid, up_to uuid) RETURNS SETOF session_lifecycle.session_model_roll_ups LANGUAGE plpgsql STABLE SET jit=off SET plan_cache_mode=force_custom_plan SET search_path=pg_catalog, pg_temp SET work_mem=64MB;

CREATE FUNCTION session_lifecycle.expected_roll_ups_v1(of_family text, after uuid, up_to uuid) RETURNS SETOF session_lifecycle.session_roll_ups LANGUAGE plpgsql STABLE SET jit=off SET plan_cache_mode=force_custom_plan SET search_path=pg_catalog, pg_temp SET work_mem=64MB;

CREATE FUNCTION session_lifecycle.families(of_user uuid, of_dataset uuid) RETURNS TABLE(family text, user_id uuid, dataset_id uuid) LANGUAGE sql IMMUTABLE;

CREATE FUNCTION session_lifecycle.follow_runs(INOUT waves jsonb, INOUT activity jsonb) RETURNS record LANGUAGE plpgsql SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.holds(of_family text, after uuid, up_to uuid, user_id uuid, dataset_id uuid) RETURNS boolean LANGUAGE sql IMMUTABLE;

CREATE FUNCTION session_lifecycle.keyed_event_id(of_user uuid, of_session text, key text) RETURNS uuid LANGUAGE plpgsql IMMUTABLE SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.leave_roll_ups_v1() RETURNS trigger LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.levels(quarter_hour timestamp with time zone) RETURNS TABLE(level text, starts_at timestamp with time zone) LANGUAGE sql STABLE;

CREATE FUNCTION session_lifecycle.lock_idle_sessions(keys jsonb, idle_before timestamp with time zone, OUT users uuid[], OUT sessions text[]) RETURNS record LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.lock_roll_ups() RETURNS void LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.lock_runs(waves jsonb, activity jsonb, OUT users uuid[], OUT runs text[], OUT linked boolean[]) RETURNS record LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.lock_session(of_user uuid, of_session text) RETURNS void LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.lock_sessions(waves jsonb, activity jsonb, others jsonb, OUT users uuid[], OUT sessions text[]) RETURNS record LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.model_shares_v1(of_user uuid, of_dataset uuid, active_at timestamp with time zone, models jsonb, sign integer) RETURNS TABLE(user_id uuid, dataset_id uuid, starts_at timestamp with time zone, model text, sessions bigint, cost_usd numeric, tokens_in numeric, tokens_out numeric, cache_read_tokens numeric, cache_write_tokens numeric, reasoning_tokens numeric, events bigint, unpriced_events bigint) LANGUAGE sql STABLE;

CREATE FUNCTION session_lifecycle.oldest_served_version_v1() RETURNS text LANGUAGE sql IMMUTABLE;

CREATE FUNCTION session_lifecycle.rebuild_roll_ups_v1(of_family text, after uuid, up_to uuid) RETURNS void LANGUAGE plpgsql SET plan_cache_mode=force_custom_plan SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.record_activity(items jsonb) RETURNS TABLE(item_position integer, outcome text) LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.record_locked(waves jsonb, activity jsonb, others jsonb, has_runs boolean, now_at timestamp with time zone) RETURNS TABLE(item_position integer, outcome text, event_cost_usd numeric, session_tokens_in bigint, session_tokens_out bigint, session_cost_usd numeric) LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.record_one_touch(item jsonb, now_at timestamp with time zone) RETURNS boolean LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.record_one_use(item jsonb, now_at timestamp with time zone) RETURNS TABLE(event_cost_usd numeric, session_tokens_in bigint, session_tokens_out bigint, session_cost_usd numeric) LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.record_plain(items jsonb, now_at timestamp with time zone) RETURNS TABLE(item_position integer, outcome text, event_cost_usd numeric, session_tokens_in bigint, session_tokens_out bigint, session_cost_usd numeric) LANGUAGE plpgsql SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.record_v1(waves jsonb, activity jsonb, latest_at timestamp with time zone, is_plain boolean) RETURNS TABLE(item_position integer, outcome text, event_cost_usd numeric, session_tokens_in bigint, session_tokens_out bigint, session_cost_usd numeric) LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.record_wave(wave jsonb, now_at timestamp with time zone) RETURNS TABLE(item_position integer, outcome text, event_cost_usd numeric, session_tokens_in bigint, session_tokens_out bigint, session_cost_usd numeric) LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.refuse_erased(of_user uuid) RETURNS void LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.reprice_v1(changes jsonb, of_run uuid) RETURNS bigint LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.roll_up_sessions_v1(keys jsonb, idle_before timestamp with time zone) RETURNS bigint LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.session_models_v1(of_users uuid[], of_sessions text[]) RETURNS TABLE(user_id uuid, session_id text, models jsonb) LANGUAGE plpgsql STABLE SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.settle_runs(users uuid[], runs text[], linked boolean[], locked_users uuid[], locked_sessions text[], now_at timestamp with time zone) RETURNS TABLE(user_id uuid, session_id text, difference_usd numeric) LANGUAGE plpgsql SET enable_hashjoin=off SET enable_mergejoin=off SET enable_seqscan=off SET jit=off SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.share(of_user uuid, of_dataset uuid, of_status text, began_at timestamp with time zone, active_at timestamp with time zone, over_at timestamp with time zone, used_tokens_in bigint, used_tokens_out bigint, spent_usd numeric, unpriced bigint, unmeasured bigint, late bigint, late_usd numeric, sign integer) RETURNS TABLE(user_id uuid, dataset_id uuid, status text, starts_at timestamp with time zone, sessions bigint, cost_usd numeric, tokens_in numeric, tokens_out numeric, duration_us numeric, unpriced_events bigint, unmeasured_events bigint, late_events bigint, late_cost_usd numeric) LANGUAGE sql IMMUTABLE;

CREATE FUNCTION session_lifecycle.take_out_of_roll_ups_v1(of_user uuid, of_session text) RETURNS boolean LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;

CREATE FUNCTION session_lifecycle.write_tombstone_v1(of_user uuid) RETURNS boolean LANGUAGE plpgsql SET search_path=pg_catalog, pg_temp;
