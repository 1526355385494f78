"""What an operator asks for, and is told."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, Strict

from session_lifecycle.models.fields import Flag, Id, Moment, OptionalModel, SessionId, Value

MOST_MISMATCHES = 100
"""How many mismatches a `ReconcileReport` lists."""
LONGEST_AGE = timedelta(days=365_000)

BatchSize = Annotated[int, Strict(), Field(ge=1, le=10_000)]


class Repricing(Value):
    """What `reprice` is asked."""

    model: OptionalModel = None
    since: Moment | None = None
    dry_run: Flag = False
    until: Moment | None = None
    batch: BatchSize


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


class Pruning(Value):
    """What `prune_sessions` and `prune_payloads` are asked."""

    older_than: Annotated[timedelta, Strict(), Field(gt=timedelta(0), le=LONGEST_AGE)]
    batch: BatchSize
    dry_run: Flag


class PruneReport(Value):
    """How many rows went; of a dry run, how many would have."""

    cut_at: datetime
    """Sessions last active before this moment were old enough."""
    sessions: int = 0
    runs: int = 0
    steps: int = 0
    messages: int = 0
    events: int = 0
    """Rows of the ledger."""
    model_rows: int = 0
    """Totals by model, one of each session and model."""
    dry_run: bool = False


class RollUpReport(Value):
    """What one `roll_up` did."""

    idle_before: datetime
    """Running sessions last active before this moment were over as well."""
    sessions: int = 0
    """Sessions that were rolled up."""
    changes: int = 0
    """Changes put into the sums: one of each session and one of each of its models, going in or taken out again."""


class OwnedSession(Value):
    """Which session of which user."""

    session_id: SessionId
    user_id: Id


class Erasing(Value):
    """What `erase_user` is asked."""

    user_id: Id
    usage: Literal["delete", "anonymise"] = "delete"
    tombstone: Flag = False


class ErasureReceipt(Value):
    """What became of everything a user had.

    Nothing in the database leads from the pseudonym back to the user. This receipt does: keep one of the two only.
    """

    user_id: UUID
    erased_at: datetime
    """When it was done."""
    pseudonym: UUID | None
    """Whose the usage is from now on; None where it was deleted."""
    sessions: int
    """Sessions deleted, or made anonymous."""
    runs: int
    steps: int
    messages: int
    events: int
    """Rows of the ledger deleted, or made anonymous."""
    tombstoned: bool
    """The user cannot come back: what names them is refused."""


class Reconciling(Value):
    """What `reconcile` is asked."""

    repair: Flag


class Mismatch(Value):
    """What is stored, and is not what it is derived from.

    A total of a session, a model or a run is derived from the ledger; what the roll-ups have of a session from that
    session; a bucket of theirs from the sessions they have.
    """

    table: str
    """Where it is stored. What follows, down to `starts_at`, is the key of the row; None what that has not."""
    user_id: UUID | None = None
    """Whose it is; None for a bucket over everybody's sessions, or over all of a data set's."""
    session_id: str | None = None
    model: str | None = None
    """The model whose total it is, empty for usage that named none; in the roll-ups that is `unknown`."""
    run_id: str | None = None
    family: str | None = None
    """Of a bucket: `all`, `user`, `dataset` or `user_dataset`."""
    dataset_id: UUID | None = None
    level: str | None = None
    """Of a bucket: `quarter_hour`, `day`, `month` or `year`."""
    status: str | None = None
    """Of a bucket: the stored status of its sessions; None for one of a model."""
    starts_at: datetime | None = None
    """Of a bucket: when its time begins."""
    field: str
    """The column; `rolled_up` for whether the roll-ups have the session at all."""
    found: Decimal | str | None
    """What was stored: a figure, or anything else as text; None where there was no row, or nothing in it."""
    expected: Decimal | str | None
    """What it should be."""


class ReconcileReport(Value):
    """What rebuilding every total from the ledger, and the roll-ups from the sessions, found."""

    sessions_looked_at: int
    """Those that only the roll-ups have are among them."""
    mismatch_count: int
    """Columns that were not as expected."""
    mismatches: list[Mismatch]
    """The first 100 of them: those of sessions in the order of their keys, then those of runs, then of buckets."""
    repaired: int
    """Of all mismatches those that were put right."""
