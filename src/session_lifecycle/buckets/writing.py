"""Writing over buckets: each bucket's items in one transaction, all buckets at once, results in the order of items."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, cast

from session_lifecycle.errors import InvalidValueError, PartlyWrittenError, SessionLifecycleError
from session_lifecycle.statements.writing.record import WriteResult
from session_lifecycle.writing.calls import receipt_of
from session_lifecycle.writing.prepared import WritableItem


def parts_of(items: Sequence[WritableItem], number_of: Callable[[Any], int]) -> dict[int, list[int]]:
    """The positions of each bucket's items, in their order."""
    parts: defaultdict[int, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        parts[number_of(item.user_id)].append(position)
    return dict(parts)


async def write_parts(
    items: Sequence[WritableItem],
    parts: dict[int, list[int]],
    write: Callable[[int, list[int]], Awaitable[list[WriteResult]]],
    *,
    is_at_once: bool = True,
) -> list[WriteResult]:
    """Writes the parts and returns the result of each item, in the order of the items.

    Args:
        items: The items.
        parts: The positions of each bucket's items.
        write: Writes the items of a bucket at these positions.
        is_at_once: Whether all parts are written at the same time; else one after another, up to the first that fails.

    Raises:
        PartlyWrittenError: Some parts were written and others failed.
        SessionLifecycleError: All parts failed. The error of one that may have been written, else the first one.
    """
    if not is_at_once:
        answers: list[Any] = []
        for number, positions in parts.items():
            try:
                answers.append(await write(number, positions))
            except InvalidValueError as error:
                raise _of_call(error, items, positions) from error
    else:
        answers = await asyncio.gather(*(write(*part) for part in parts.items()), return_exceptions=True)
    results: list[WriteResult | None] = [None] * len(items)
    errors: dict[int, SessionLifecycleError] = {}
    for positions, answer in zip(parts.values(), answers, strict=True):
        if isinstance(answer, SessionLifecycleError):
            refusal = _of_call(answer, items, positions) if isinstance(answer, InvalidValueError) else answer
            errors.update((position, refusal) for position in positions)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            for position, result in zip(positions, answer, strict=True):
                results[position] = result
    if not errors:
        return cast("list[WriteResult]", results)
    ordered = dict(sorted(errors.items()))
    first = next(iter(ordered.values()))
    if len(errors) < len(items):
        receipts = [None if one is None else receipt_of(item, one) for item, one in zip(items, results, strict=True)]
        raise PartlyWrittenError(receipts, ordered) from first
    raise next((error for error in ordered.values() if getattr(error, "may_have_written", False)), first)


def _of_call(error: InvalidValueError, items: Sequence[WritableItem], positions: Sequence[int]) -> InvalidValueError:
    """The refusal of an item by its position in the call: the bucket knows its own items only."""
    root, _, rest = error.field.partition(".")
    if root == "items" and rest:
        number, _, field = rest.partition(".")
        return InvalidValueError(f"items.{positions[int(number)]}.{field}", error.value, error.expected)
    if len(positions) == 1 < len(items) and isinstance(error.value, datetime):
        return InvalidValueError(f"items.{positions[0]}.{error.field}", error.value, error.expected)
    return error
