"""`Viewer`, an argument of reads: who is asking."""

from collections.abc import Collection
from typing import Any, Self
from uuid import UUID

from pydantic import Field, ValidationError, field_validator

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.fields import Flag, Id, Value
from session_lifecycle.models.refusals import refusal


class Viewer(Value):
    """Who is asking. The viewer decides which sessions a read can see (rule R11). It goes in.

    A viewer sees the sessions of `user_id`, the sessions of `agent_user_ids`, and the sessions that are shared through
    `permitted_dataset_ids`. Authorisation is the host's work: the host names the viewer, and we return only what that
    viewer sees.
    """

    user_id: Id | None = None
    permitted_dataset_ids: tuple[Id, ...] = ()
    agent_user_ids: tuple[Id, ...] = ()
    sees_all: Flag = Field(default=False, repr=False)

    def __init__(
        self,
        user_id: UUID | str | None,
        permitted_dataset_ids: Collection[UUID | str] = (),
        agent_user_ids: Collection[UUID | str] = (),
        *,
        sees_all: bool = False,
    ) -> None:
        fields: dict[str, Any] = {
            "user_id": user_id,
            "permitted_dataset_ids": permitted_dataset_ids,
            "agent_user_ids": agent_user_ids,
            "sees_all": sees_all,
        }
        super().__init__(**fields)

    # With this mark Pydantic validates without a call of this `__init__`. Otherwise it would pass the keys of a mapping
    # (from JSON) as arguments, and an unknown key would raise TypeError.
    vars(__init__)["__pydantic_base_init__"] = True

    @field_validator("permitted_dataset_ids", "agent_user_ids", mode="before")
    @classmethod
    def _as_tuple(cls, ids: Any) -> Any:
        return ids if isinstance(ids, str | bytes) or not isinstance(ids, Collection) else tuple(ids)

    @field_validator("permitted_dataset_ids", "agent_user_ids")
    @classmethod
    def _each_once(cls, ids: tuple[UUID, ...]) -> tuple[UUID, ...]:
        return tuple(dict.fromkeys(ids))

    @classmethod
    def of_users(cls, user_ids: Collection[UUID | str]) -> Self:
        """A viewer who sees the sessions of these users; without users, a viewer who sees nothing."""
        return cls(None, (), user_ids)

    @classmethod
    def auditor(cls) -> Self:
        """The viewer who sees every session of every user. It is never a default: a host must name it."""
        return cls(None, sees_all=True)

    @property
    def owner_ids(self) -> tuple[UUID, ...]:
        """The owners whose sessions the viewer sees: the viewer first, then the agents, each once."""
        if self.user_id is None:
            return self.agent_user_ids
        # A host may name the viewer among the agents too. Sums by user would then count the viewer's sessions twice.
        return tuple(dict.fromkeys((self.user_id, *self.agent_user_ids)))

    @classmethod
    def of_caller(cls, viewer: Any, permitted_dataset_ids: Any = ()) -> Self:
        """The viewer of a call, from a `Viewer` or from the reference's shape: a user id and dataset ids.

        Raises:
            InvalidValueError: `viewer` is neither a `Viewer` nor a UUID, a dataset id is invalid, or a `Viewer` came
                with `permitted_dataset_ids` beside it.
        """
        if isinstance(viewer, cls):
            if not isinstance(permitted_dataset_ids, Collection) or len(permitted_dataset_ids):
                raise InvalidValueError(
                    "permitted_dataset_ids", permitted_dataset_ids, "none beside a Viewer, which has its own"
                )
            return cls.checked(viewer, "viewer")
        try:
            user_id = UUID(viewer) if isinstance(viewer, str) else viewer
        except ValueError:
            user_id = None
        if not isinstance(user_id, UUID):
            raise InvalidValueError("viewer", viewer, "a Viewer or a UUID")
        try:
            return cls(user_id, permitted_dataset_ids)
        except ValidationError as error:
            raise refusal(error, cls) from error
