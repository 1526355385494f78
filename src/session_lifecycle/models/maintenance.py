"""The arguments of the maintenance jobs, and the reports and receipts that they return."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, Strict

from session_lifecycle.models.fields import Flag, Id, OptionalModel, RequiredLabel, SessionId, Value
from session_lifecycle.models.session_filters import Window

MOST_MISMATCHES = 100
"""The most mismatches that a `ReconcileReport` lists."""
LONGEST_AGE = timedelta(days=365_000)

BatchSize = Annotated[int, Strict(), Field(ge=1, le=10_000)]


class Repricing(Window):
    """The arguments of `reprice`. The window is on the time of use."""

    model: OptionalModel = None
    dry_run: Flag = False
    batch: BatchSize


class RepriceReport(Value):
    """The result of `reprice`: what it changed. A dry run reports what it would change."""

    repricing_id: UUID | None
    """The key of the audit row in `session_repricings`; None after a dry run."""
    looked_at: int
    """The number of usage events that were compared with the catalogue."""
    events: int
    """The number of usage events whose price changed."""
    cost_before_usd: Decimal
    """The cost of the changed events before, USD. An unpriced event counts as 0, and so does an event under a plan."""
    cost_after_usd: Decimal
    """The cost of the changed events now, USD."""


class Narrowing(Value):
    """Which sessions a job looks at: those of all three lists. None: whatever the session has."""

    user_ids: tuple[Id, ...] | None = None
    agent_names: tuple[RequiredLabel, ...] | None = None
    dataset_ids: tuple[Id, ...] | None = None


class Pruning(Narrowing):
    """The arguments of `prune_sessions` and `prune_payloads`."""

    older_than: Annotated[timedelta, Strict(), Field(gt=timedelta(0), le=LONGEST_AGE)]
    batch: BatchSize
    dry_run: Flag


class OwnedSession(Value):
    """The key of a session: the arguments of `delete_session`, and in a `PruneReport` a session that was pruned."""

    session_id: SessionId
    user_id: Id


class PruneReport(Value):
    """The result of `prune_sessions` and `prune_payloads`: how many rows were deleted or emptied.

    A dry run reports how many rows there are to delete or empty. `prune_payloads` deletes messages and empties runs and
    steps; its `sessions` are the sessions that had such rows.
    """

    cut_at: datetime
    """Sessions last active before this moment (UTC) were old enough, or messages and payloads from before it."""
    sessions: int = 0
    runs: int = 0
    steps: int = 0
    messages: int = 0
    events: int = 0
    """Rows of the ledger; 0 after `prune_payloads`."""
    model_rows: int = 0
    """Totals by model, one row per session and model; 0 after `prune_payloads`."""
    dry_run: bool = False
    session_keys: tuple[OwnedSession, ...] = ()
    """The sessions of the batch that was written last: `on_progress` gets the sessions of each batch. Empty in a dry
    run, and for a batch of runs outside sessions."""


class RollUpReport(Value):
    """The result of one `roll_up`."""

    idle_before: datetime
    """A running session last active before this moment (UTC) counted as abandoned."""
    sessions: int = 0
    """The number of sessions that were rolled up."""
    changes: int = 0
    """The number of changes that were put into the buckets.

    A session that is rolled up, or taken out again, makes one change, and one more for each of its models.
    """


class Erasing(Value):
    """The arguments of `erase_user`."""

    user_id: Id
    usage: Literal["delete", "anonymise"] = "delete"
    tombstone: Flag = False


class ErasureReceipt(Value):
    """The result of `erase_user`: how many rows of the user were deleted or made anonymous.

    The database has no link from the pseudonym to the user. This receipt names both, so keep only one of the two ids.
    """

    user_id: UUID
    erased_at: datetime
    """When all rows were deleted or made anonymous, UTC."""
    pseudonym: UUID | None
    """The random user id that owns the usage from now on; None where usage was deleted."""
    sessions: int
    """Sessions deleted, or made anonymous."""
    runs: int
    steps: int
    messages: int
    events: int
    """Rows of the ledger deleted, or made anonymous."""
    tombstoned: bool
    """Whether a tombstone was written. With a tombstone, the database refuses new sessions and runs of the user."""


class Reconciling(Value):
    """The arguments of `reconcile`."""

    repair: Flag


class Exporting(Value):
    """The arguments of `export`, without the table and the filters."""

    batch: BatchSize


class Mismatch(Value):
    """A stored value that differs from the value it is derived from. Part of a `ReconcileReport`.

    The totals of a session, a model and a run are derived from the ledger. The roll-ups' copy of a session is derived
    from the session. A bucket is derived from the copies. The fields from `user_id` to `starts_at` are the key of the
    row; a part that the key does not have is None.
    """

    table: str
    """The table of the row."""
    user_id: UUID | None = None
    """The owner; None for a bucket of the families `all` and `dataset`."""
    session_id: str | None = None
    model: str | None = None
    """The model of a total by model. Usage without a model has the empty text, and `unknown` in the roll-ups."""
    run_id: str | None = None
    family: str | None = None
    """The family of a bucket: `all`, `user`, `dataset` or `user_dataset`."""
    dataset_id: UUID | None = None
    level: str | None = None
    """The length of a bucket: `hour`, `6 hours`, `36 hours`, `9 days`, `54 days` or `324 days`."""
    status: str | None = None
    """The stored status of the sessions in a bucket; None for a bucket by model."""
    starts_at: datetime | None = None
    """When a bucket begins, UTC."""
    field: str
    """The column that differs. `rolled_up` says whether the roll-ups have the session."""
    found: Annotated[Decimal | str | None, Field(union_mode="left_to_right")]
    """The stored value: a number, or any other value as text. None where the row is missing or the column is null."""
    expected: Annotated[Decimal | str | None, Field(union_mode="left_to_right")]
    """The derived value, in the same form."""


class ReconcileReport(Value):
    """The result of `reconcile`: where totals differ from the ledger, and the roll-ups from the sessions."""

    sessions_looked_at: int
    """The number of sessions that were compared, with the sessions that only the roll-ups have."""
    mismatch_count: int
    """The number of columns that differ, over all rows."""
    mismatches: list[Mismatch]
    """The first 100 mismatches: of sessions in the order of their keys, then of runs, then of buckets."""
    repaired: int
    """The number of mismatches that were repaired; 0 without `repair`."""


class MoveReport(Value):
    """The result of `placement.move`."""

    rows: int
    """The number of rows that were copied at first."""
    changes: int
    """The number of changes that were made meanwhile and carried over. A row that changed twice counts twice."""
    paused_seconds: float
    """For how many seconds writers of the bucket may have waited."""
