"""The filters of runs, the arguments of `list_models` and `find_lineage`, and the default project."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from session_lifecycle.models.fields import (
    ExternalId,
    Flag,
    Id,
    Label,
    OptionalModel,
    OptionalName,
    OptionalSessionId,
    Text,
    Value,
    blank_as_none,
)
from session_lifecycle.models.pages import Offset, PageFilters, StepsLimit

DEFAULT_PROJECT = "default"
"""The project of a run that names none."""


def _blank_as_default_project(value: Any) -> Any:
    return DEFAULT_PROJECT if isinstance(value, str) and not value else value


OptionalText = Annotated[Text | None, BeforeValidator(blank_as_none)]
OptionalProject = Annotated[Label | None, BeforeValidator(_blank_as_default_project)]


class RunChoice(Value):
    """A choice of runs. Base class of the filters that go in. A run must match every field that is not None."""

    project: OptionalProject = None
    """Compared with case. `default` and the empty text choose the runs that name no project, or name `default`."""
    provider: OptionalName = None
    model: OptionalModel = None
    """Compared without case."""
    client: OptionalName = None
    """`Unknown` also chooses the runs without a client."""
    session_id: OptionalSessionId = None
    include_open: Flag = True
    """Whether open runs are chosen too."""

    @property
    def narrows(self) -> bool:
        """Whether project, provider, model or client is given. `include_open` and `session_id` do not count."""
        return any(given is not None for given in (self.project, self.provider, self.model, self.client))


class RunFilters(RunChoice, PageFilters):
    """The argument of `list_runs`.

    `since` and `until` are a window `[since, until)` on the run's start. `owner_id` is the run's user, and `agent_name`
    the run's agent. `dataset_id` is the dataset of the run's session.
    """

    include_open: Flag = False
    steps_limit: StepsLimit | None = None
    """The most steps of each run, the first ones in their order. None: all."""
    steps_offset: Offset = 0
    """How many steps of each run are left out at the beginning."""

    def question(self) -> dict[str, Any]:
        # As with `limit` and `offset`, another page of the steps does not change which runs follow.
        asked = super().question()
        return {name: value for name, value in asked.items() if name not in {"steps_limit", "steps_offset"}}


class ModelPrefix(Value):
    """The arguments of `list_models`, without the viewer."""

    prefix: Text = ""


class ToolCall(Value):
    """The arguments of `find_lineage`."""

    user_id: Id
    tool_call_id: ExternalId
