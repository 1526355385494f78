"""`Message`, an item that goes in and comes out, and its roles."""

from enum import StrEnum
from typing import Annotated, Literal

from session_lifecycle.models.fields import (
    AwareTime,
    ExternalId,
    Id,
    OptionalExternalId,
    SessionId,
    Value,
    one_of,
)
from session_lifecycle.models.json_payloads import MetadataPayload, SafeText


class MessageRole(StrEnum):
    """The author of a message."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"
    THOUGHT = "thought"


class Message(Value):
    """A user's prompt, an assistant's reply or a model's thought. `record` takes it, and reads return it.

    A message that is recorded again fills `run_id` and `metadata` where they are null. Its other fields stay.
    """

    message_id: ExternalId
    user_id: Id
    session_id: SessionId
    run_id: OptionalExternalId = None
    role: Annotated[MessageRole | Literal["user", "assistant", "system", "tool", "thought"], one_of(list(MessageRole))]
    content: SafeText
    created_at: AwareTime
    metadata: MetadataPayload | None = None
