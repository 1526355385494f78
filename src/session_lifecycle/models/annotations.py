"""What people and programs say about a session: `SessionAnnotation`, and the arguments of the calls about it."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, Strict, model_validator

from session_lifecycle.models.fields import (
    AwareTime,
    FiniteFloat,
    Id,
    OptionalName,
    SessionId,
    Text,
    Value,
    blank_as_none,
    refuse_long_key,
)
from session_lifecycle.models.pages import Offset

AnnotationName = Annotated[Text, Field(min_length=1, max_length=200)]
OptionalComment = Annotated[Annotated[Text, Field(max_length=10_000)] | None, BeforeValidator(blank_as_none)]

MOST_ANNOTATIONS = 1_000
"""The most annotations of one answer. Each has a comment of at most 10,000 characters."""


class Annotating(Value):
    """The arguments of `annotate_session`."""

    session_id: SessionId
    user_id: Id
    name: AnnotationName
    score: FiniteFloat | None = None
    label: OptionalName = None
    comment: OptionalComment = None
    annotator: OptionalName = None
    at: AwareTime | None = None

    @model_validator(mode="after")
    def _fits_a_key(self) -> Self:
        refuse_long_key("name", self.name, "session_id", self.session_id)
        refuse_long_key("annotator", self.annotator or "", "name and session_id", self.name + self.session_id)
        return self


class AnnotationsOfSession(Value):
    """The arguments of `list_annotations`, without the viewer."""

    session_id: SessionId
    owner_id: Id | None = None
    limit: Annotated[int, Strict(), Field(ge=1, le=MOST_ANNOTATIONS)] | None = None
    offset: Offset = 0


class SessionAnnotation(Value):
    """What somebody says about a session. `annotate_session` and `list_annotations` return it."""

    name: str
    """What it is about, such as `quality` or `resolved`."""
    annotator: str | None
    """Who says it; None where nobody is named."""
    score: float | None
    label: str | None
    comment: str | None
    at: datetime
    """UTC."""
