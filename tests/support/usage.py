"""Usage events and the receipts for them."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from session_lifecycle import SessionWriter, UsageEvent, UsageReceipt
from session_lifecycle.models import Receipt

A = UUID(int=1)


def usage(**fields: Any) -> UsageEvent:
    """One token of a model, for one dollar, in a session of user A; the fields given take precedence."""
    return UsageEvent(**{"session_id": "s", "user_id": A, "model": "m", "tokens_in": 1, "cost_usd": 1, **fields})


async def receipt_of(writer: SessionWriter, event: UsageEvent) -> UsageReceipt:
    """Records one event and returns its receipt."""
    [receipt] = await writer.record([event])
    assert isinstance(receipt, UsageReceipt)
    return receipt


def outcomes(receipts: Sequence[Receipt]) -> list[str]:
    """The outcome of each item, in order."""
    return [receipt.outcome if isinstance(receipt, UsageReceipt) else receipt for receipt in receipts]
