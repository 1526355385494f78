"""One session with its label, and the newest of its messages and tool calls."""

from datetime import timedelta
from typing import Any

from sqlalchemy import FromClause, Select, Text, and_, cast, func, select

from session_lifecycle.models import Message, MessageRole, Step
from session_lifecycle.models.session_details import LABEL_CHARACTERS
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.messages import NEWEST_FIRST, OLDEST_FIRST
from session_lifecycle.statements.activity.run_figures import RECORDED, STEP_ORDER
from session_lifecycle.statements.activity.runs import RUN_ORDER, with_payloads
from session_lifecycle.statements.activity.sizes import STEPS, Measure, size
from session_lifecycle.statements.sessions.records import belongs_to_record, preferred_session, with_status
from session_lifecycle.statements.sessions.row_filters import TOOL
from session_lifecycle.statements.shared.json_rows import fields_of, json_array, json_object, or_empty
from session_lifecycle.statements.shared.kept import LIMIT, OWNER_ID, SESSION_ID, kept
from session_lifecycle.statements.shared.keys import same_run, same_session
from session_lifecycle.statements.shared.visibility import ViewerShape


@kept
def get_recent_activity(
    viewer: ViewerShape, *, has_owner_id: bool, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """At most one row: the session, its label, two counts, and its newest messages and tool calls as JSON.

    Binds the viewer, `session_id`, `owner_id`, `limit` and `as_of`.
    """
    preferred = preferred_session(SESSION_ID, viewer, owner_id=OWNER_ID if has_owner_id else None)
    session = with_status(preferred, abandon_after).cte("session")
    calls = _calls(session)
    newest_calls = calls.order_by(*(part.desc() for part in STEP_ORDER)).limit(LIMIT).cte("newest_calls")
    is_newest_call = and_(same_run(tables.steps, newest_calls.c), tables.steps.step_id == newest_calls.c.step_id)
    newest = (
        select(tables.messages.user_id, tables.messages.session_id, tables.messages.message_id)
        .join(session, belongs_to_record(tables.messages, session))
        .order_by(*NEWEST_FIRST)
        .limit(LIMIT)
        .cte("newest_messages")
    )
    is_newest = and_(same_session(tables.messages, newest.c), tables.messages.message_id == newest.c.message_id)
    measure = Measure(
        [
            size(payloads_of=STEPS).join(newest_calls, is_newest_call),
            size(text=tables.messages.content).join(newest, is_newest),
        ],
        payloads=True,
    )
    steps = json_array(json_object(with_payloads(fields_of(tables.steps, Step), measure)), STEP_ORDER)
    messages = json_array(json_object(fields_of(tables.messages, Message)), OLDEST_FIRST)
    of_session = belongs_to_record(tables.messages, session)
    prompt = (
        select(func.left(tables.messages.content, LABEL_CHARACTERS))
        .where(of_session, tables.messages.role == MessageRole.USER.value)
        .order_by(*OLDEST_FIRST)
        .limit(1)
    )
    first_run = (
        select(func.left(tables.runs.name, LABEL_CHARACTERS))
        .where(belongs_to_record(tables.runs, session), RECORDED)
        .order_by(RUN_ORDER.column, *RUN_ORDER.key)
        .limit(1)
    )
    count = select(func.count()).select_from(tables.messages).where(of_session)
    counted_calls = calls.with_only_columns(func.count(), maintain_column_froms=True)
    return select(*session.c).add_columns(
        func.coalesce(
            prompt.correlate(session).scalar_subquery(), first_run.correlate(session).scalar_subquery()
        ).label("label"),
        count.correlate(session).scalar_subquery().label("messages_count"),
        counted_calls.scalar_subquery().label("tool_calls_count"),
        select(cast(or_empty(messages), Text))
        .join(newest, is_newest)
        .where(measure.is_within)
        .scalar_subquery()
        .label("messages"),
        select(cast(or_empty(steps), Text))
        .join(newest_calls, is_newest_call)
        .where(measure.is_within)
        .scalar_subquery()
        .label("tool_calls"),
        measure.has_payloads.label("has_payloads"),
        measure.is_within.label("is_within"),
    )


def _calls(session: FromClause) -> Select[*tuple[Any, ...]]:
    """The keys of the tool calls in the runs of the session."""
    of_session = belongs_to_record(tables.runs, session)
    return (
        select(tables.steps.user_id, tables.steps.run_id, tables.steps.step_id)
        .join(tables.runs, same_run(tables.steps, tables.runs))
        .join(session, of_session)
        .where(RECORDED, tables.steps.kind == TOOL)
    )
