"""Usage events and the receipts for them."""

from collections.abc import Sequence
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

from session_lifecycle import SessionWriter, UsageEvent, UsageReceipt
from session_lifecycle.models import Receipt

A = UUID(int=1)


def usage(**fields: Any) -> UsageEvent:
    """One token of a model, for one dollar, in a session of user A; the fields given take precedence."""
    return UsageEvent(**{"session_id": "s", "user_id": A, "model": "m", "tokens_in": 1, "cost_usd": 1, **fields})


def random_use(chance: Random, number: int, *, sessions: int, users: Sequence[UUID], **more: Any) -> UsageEvent:
    """The use with this number in a storm: in one of the sessions `s0`, `s1`, … of one of the users, of random size."""
    return UsageEvent(
        session_id=f"s{chance.randrange(sessions)}",
        user_id=chance.choice(users),
        model=chance.choice(("gpt-4o", "gpt-4o-mini", None)),
        tokens_in=chance.randrange(1, 10_000),
        tokens_out=chance.randrange(1_000),
        cost_usd=Decimal(chance.randrange(1, 10**9)) / 10**12,
        billing="plan" if number % 5 == 0 else "api",
        web_searches=number % 3,
        key_scope="user" if number % 7 == 0 else "session",
        **more,
    )


async def receipt_of(writer: SessionWriter, event: UsageEvent) -> UsageReceipt:
    """Records one event and returns its receipt."""
    [receipt] = await writer.record([event])
    assert isinstance(receipt, UsageReceipt)
    return receipt


def outcomes(receipts: Sequence[Receipt]) -> list[str]:
    """The outcome of each item, in order."""
    return [receipt.outcome if isinstance(receipt, UsageReceipt) else receipt for receipt in receipts]
