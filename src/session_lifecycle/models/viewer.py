"""Who is asking."""

from collections.abc import Collection
from typing import Any, Self
from uuid import UUID

from pydantic import Field, ValidationError, field_validator

from session_lifecycle.errors import InvalidValueError
from session_lifecycle.models.fields import Flag, Id, Value, refusal


class Viewer(Value):
    """Who is asking, and so what can be seen (rule R11).

    A viewer sees the sessions of `user_id`, of `agent_user_ids`, and those shared through `permitted_dataset_ids`.
    Authorisation is the host's: it says who the viewer is, we only show what that viewer may see.
    """

    user_id: Id | None = None
    permitted_dataset_ids: tuple[Id, ...] = ()
    agent_user_ids: tuple[Id, ...] = ()
    sees_all: Flag = Field(default=False, repr=False)

    def __init__(
        self,
        user_id: UUID | None,
        permitted_dataset_ids: Collection[UUID] = (),
        agent_user_ids: Collection[UUID] = (),
        *,
        sees_all: bool = False,
    ) -> None:
        super().__init__(
            user_id=user_id,
            permitted_dataset_ids=permitted_dataset_ids,
            agent_user_ids=agent_user_ids,
            sees_all=sees_all,
        )

    @field_validator("permitted_dataset_ids", "agent_user_ids", mode="before")
    @classmethod
    def _each_once(cls, ids: Any) -> Any:
        if isinstance(ids, str | bytes) or not isinstance(ids, Collection):
            return ids
        return tuple(dict.fromkeys(ids)) if all(isinstance(one, UUID) for one in ids) else tuple(ids)

    @classmethod
    def of_users(cls, user_ids: Collection[UUID]) -> Self:
        """One who sees the sessions of these users, and of nobody when there are none."""
        return cls(None, (), user_ids)

    @classmethod
    def auditor(cls) -> Self:
        """The one who sees every session of everybody. To be named, never fallen into."""
        return cls(None, sees_all=True)

    @property
    def owner_ids(self) -> tuple[UUID, ...]:
        """The users whose sessions are seen for their owner's sake, each once, the viewer first."""
        if self.user_id is None:
            return self.agent_user_ids
        # One who is named among their own agents as well: what is added up by user would count them twice.
        return tuple(dict.fromkeys((self.user_id, *self.agent_user_ids)))

    @classmethod
    def of_caller(cls, viewer: Any, permitted_dataset_ids: Any = ()) -> Self:
        """The viewer a call names, as a `Viewer` or in the reference's shape: a user id and data sets.

        Raises:
            InvalidValueError: It is neither, or a `Viewer` came with data sets of its own beside it.
        """
        if isinstance(viewer, cls):
            if not isinstance(permitted_dataset_ids, Collection) or len(permitted_dataset_ids):
                raise InvalidValueError(
                    "permitted_dataset_ids", permitted_dataset_ids, "none beside a Viewer, which has its own"
                )
            return viewer
        if not isinstance(viewer, UUID):
            raise InvalidValueError("viewer", viewer, "a Viewer or a UUID")
        try:
            return cls(viewer, permitted_dataset_ids)
        except ValidationError as error:
            raise refusal(error) from error
