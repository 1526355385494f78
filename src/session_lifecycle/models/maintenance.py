"""What an operator asks for, and is told."""

from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import Field, Strict

from session_lifecycle.models.fields import Flag, Moment, OptionalModel, Value


class Repricing(Value):
    """What `reprice` is asked."""

    model: OptionalModel = None
    since: Moment | None = None
    dry_run: Flag = False
    until: Moment | None = None
    batch: Annotated[int, Strict(), Field(ge=1, le=10_000)]


class RepriceReport(Value):
    """What pricing again changed; of a dry run, what it would have."""

    repricing_id: UUID | None
    """The run's row in `session_repricings`; None of a dry run."""
    looked_at: int
    """Events that were looked at."""
    events: int
    """Events whose cost changed."""
    cost_before_usd: Decimal
    """What those cost before, USD; an unpriced one nothing."""
    cost_after_usd: Decimal
    """What they cost now, USD."""
