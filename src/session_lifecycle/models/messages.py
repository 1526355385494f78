"""`Message`, an item that goes in and comes out, and its roles."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from session_lifecycle.models.fields import (
    AwareTime,
    ExternalId,
    Id,
    OptionalExternalId,
    Revision,
    SessionId,
    Value,
    one_of,
    refuse_long_key,
)
from session_lifecycle.models.json_payloads import MetadataPayload, SafeText


class MessageRole(StrEnum):
    """The author of a message."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"
    THOUGHT = "thought"


# The roles of other sources, by their names: OpenAI's `developer` and `function`, Gemini's `model`, LangChain's `human`
# and `ai`.
_FOREIGN_ROLES = {
    "ai": MessageRole.ASSISTANT,
    "developer": MessageRole.SYSTEM,
    "function": MessageRole.TOOL,
    "human": MessageRole.USER,
    "model": MessageRole.ASSISTANT,
    "reasoning": MessageRole.THOUGHT,
    "thinking": MessageRole.THOUGHT,
}


def _own_role(role: Any) -> Any:
    return _FOREIGN_ROLES.get(role, role) if isinstance(role, str) else role


class Message(Value):
    """A user's prompt, an assistant's reply or a model's thought. `record` takes it, and reads return it.

    A message that is recorded again fills `run_id` where it is null and adds new keys to `metadata`; `created_at` can
    become earlier. Another value is a `conflict`, or replaces with a higher `revision`: a reply can grow while it
    streams.
    """

    message_id: ExternalId
    user_id: Id
    session_id: SessionId
    run_id: OptionalExternalId = None
    role: Annotated[
        MessageRole
        | Literal[
            "user", "assistant", "system", "tool", "thought",
            "ai", "developer", "function", "human", "model", "reasoning", "thinking",
        ],
        one_of(list(MessageRole)),
        BeforeValidator(_own_role),
    ]  # fmt: skip
    """A role of another source is mapped: `human` is the user, `ai` and `model` the assistant, `developer` the system,
    `function` a tool, `reasoning` and `thinking` a thought. A value holds the member."""
    content: SafeText
    """Text. Content that comes as None or as blocks of text, images and calls, becomes the text in them."""
    created_at: AwareTime
    metadata: MetadataPayload | None = None
    revision: Revision = 0
    """A recording with a higher revision replaces the values of a lower one; values that it leaves out stay."""

    @model_validator(mode="after")
    def _fits_a_key(self) -> Self:
        refuse_long_key("message_id", self.message_id, "session_id", self.session_id)
        return self
