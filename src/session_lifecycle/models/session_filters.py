"""The filters and the page of session lists, the arguments of `get_session_row`, and `Window`."""

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, Strict, model_validator

from session_lifecycle.models.annotations import AnnotationName
from session_lifecycle.models.fields import (
    AwareTime,
    Cost,
    FiniteFloat,
    Flag,
    Id,
    OptionalName,
    RequiredLabel,
    SessionId,
    Text,
    Value,
    blank_as_none,
)
from session_lifecycle.models.json_payloads import JsonObject, LongLabel
from session_lifecycle.models.pages import Page, PageFilters
from session_lifecycle.models.refusals import inconsistent, refuse_empty_window
from session_lifecycle.models.sessions import EffectiveStatus, SessionRowWithStatus, StatusFilter, Tags

SESSION_ORDERS = ("last_activity_at", "started_at", "ended_at", "cost_usd", "tokens_in", "tokens_out")
"""The columns that a page of sessions can be ordered by (rule R13)."""
ALL_SESSION_ORDERS = (*SESSION_ORDERS, "error_count")
"""All columns that a page of sessions can be ordered by. Indexes have the order of the first one only. By another
one, a page reads and sorts every session that the filters choose, unless these choose the ones that run or wait.
"""
DEFAULT_SESSION_ORDER = SESSION_ORDERS[0]

Count = Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)]
Seconds = Annotated[FiniteFloat, Field(ge=0, le=10**9)]
Prefix = Annotated[Annotated[Text, Field(max_length=512)] | None, BeforeValidator(blank_as_none)]


class SessionFilters(PageFilters):
    """The filters that every list of sessions takes. Base class of the filters that go in.

    `since` and `until` are a window `[since, until)` on `last_activity_at`. The bounds `min_…` and `max_…` are
    inclusive.

    No index serves the filters from `session_id_prefix` on, or another order than `last_activity_at`. With one
    of them, a page reads every session that the other filters choose: it costs as much as there are sessions, not as
    the page has. A window or an owner keeps that small. An exact total then counts the sessions one by one.
    """

    status_filter: StatusFilter | None = None
    order_by: Text = DEFAULT_SESSION_ORDER
    session_id_prefix: Prefix = None
    """The beginning of the session's id."""
    excluded_session_id_prefix: Prefix = None
    """The beginning that the session's id does not have."""
    agent_names: tuple[RequiredLabel, ...] = ()
    """The session's agent is one of these; empty: any agent, or none."""
    without_dataset: Flag = False
    """Whether the session is in no dataset."""
    min_cost_usd: Cost | None = None
    max_cost_usd: Cost | None = None
    min_tokens: Count | None = None
    """Of `tokens_in + tokens_out`, as `max_tokens`."""
    max_tokens: Count | None = None
    min_errors: Count | None = None
    """Of `error_count`, as `max_errors`."""
    max_errors: Count | None = None
    min_duration_s: Seconds | None = None
    """Seconds from the start to the end or else the last activity, as `max_duration_s`."""
    max_duration_s: Seconds | None = None
    metadata: JsonObject = Field(default_factory=dict)
    """The session's metadata has these keys with these values; an object or a list has at least what is given."""
    tags: Tags = Field(default_factory=dict)
    """The session has these tags with these texts."""
    tool: Annotated[LongLabel | None, BeforeValidator(blank_as_none)] = None
    """A run of the session called a tool of this name."""
    annotation: Annotated[AnnotationName | None, BeforeValidator(blank_as_none)] = None
    """The session has an annotation of this name. The next four fields speak of one annotation, too."""
    annotation_label: OptionalName = None
    annotator: OptionalName = None
    min_score: FiniteFloat | None = None
    max_score: FiniteFloat | None = None

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.without_dataset and self.dataset_id is not None:
            raise inconsistent("without_dataset", "either without_dataset or dataset_id, not both")
        for name in _BOUNDED:
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least is not None and most is not None and most < least:
                raise inconsistent(f"max_{name}", f"min_{name} or more")
        return self

    @cached_property
    def reads_rows(self) -> bool:
        """Whether a filter is given that no index and no roll-up serves, so that the sessions are read as rows."""
        return any(
            getattr(self, name) != SessionFilters.model_fields[name].get_default(call_default_factory=True)
            for name in _OF_ROWS
        )

    @property
    def wanted_status(self) -> EffectiveStatus | None:
        """The effective status that all sessions of the page have; None: any status."""
        return None if self.status_filter is None else EffectiveStatus(self.status_filter)

    @cached_property
    def order_column(self) -> str:
        """The column that the page is ordered by. An unknown `order_by` means `last_activity_at` (rule R13)."""
        return self.order_by if self.order_by in ALL_SESSION_ORDERS else DEFAULT_SESSION_ORDER

    def question(self) -> dict[str, Any]:
        return super().question() | {"order_by": self.order_column}


_BOUNDED = ("cost_usd", "tokens", "errors", "duration_s", "score")
_OF_ROWS = tuple(SessionFilters.model_fields.keys() - {*PageFilters.model_fields, "status_filter", "order_by"})


class SessionListFilters(SessionFilters):
    """The argument of `list_session_rows`. An unknown `order_by` means `last_activity_at`."""


class OneSession(Value):
    """The arguments of `get_session_row`, without the viewer."""

    session_id: SessionId
    prefer_other_owner: Flag = False
    owner_id: Id | None = None


class OneUser(Value):
    """The argument of `bucket_of`."""

    user_id: Id


class Window(Value):
    """A window of time `[since, until)` that goes in. A bound that is None is open."""

    since: AwareTime | None = None
    until: AwareTime | None = None

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        refuse_empty_window(self.since, self.until)
        return self


class SessionListPage(Page):
    """A page of sessions. `list_session_rows` returns it."""

    sessions: list[SessionRowWithStatus]
