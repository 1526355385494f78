"""The budgets that the viewer sees, with what is used of each. A page makes one read, and one for each of its budgets.

A page has at most 20 budgets, of which 3 are read at once.
"""

from decimal import Decimal
from typing import Annotated, NamedTuple

from session_lifecycle.models import BudgetUse
from session_lifecycle.web.framework import APIRouter, Query, Response
from session_lifecycle.web.pages.problems import PageRoute
from session_lifecycle.web.pages.reads import Turns, at_once
from session_lifecycle.web.pages.visit import AskedVisit

router = APIRouter(route_class=PageRoute)

PAGE_SIZE = 20


@router.get("/budgets")
async def budgets(
    visit: AskedVisit,
    after: Annotated[str | None, Query(max_length=200, description="The last id of the page before.")] = None,
) -> Response:
    """A page of budgets, in the order of their ids."""
    listed = await visit.db.budgets.list_budgets(visit.viewer, limit=PAGE_SIZE + 1, after=after)
    turns = Turns()

    async def use_of(budget_id: str) -> BudgetUse | None:
        return await turns.read(lambda: visit.db.budgets.get_budget(budget_id, visit.viewer))

    shown = listed[:PAGE_SIZE]
    async with at_once() as group:
        tasks = [group.create_task(use_of(one.budget_id)) for one in shown]
    # A budget may be deleted between the two reads.
    uses = [use for task in tasks if (use := task.result()) is not None]
    names = await visit.names_of(one.budget.user_id for one in uses if one.budget.user_id is not None)
    return visit.answer(
        "budgets.html",
        uses=[(one, part_used(one)) for one in uses],
        names=names,
        after=after,
        next_after=shown[-1].budget_id if len(listed) > PAGE_SIZE else None,
    )


class Part(NamedTuple):
    """What is used of a limit, as a part of it. More than 1: the limit is passed."""

    spent: float
    reserved: float


def part_used(use: BudgetUse) -> Part:
    """The parts of the limit that is nearer to its end, of the two that a budget can have."""
    budget = use.budget
    parts = [
        *([] if budget.limit_usd is None else [_part(use.spent_usd, use.reserved_usd, Decimal(budget.limit_usd))]),
        *([] if budget.limit_tokens is None else [_part(use.spent_tokens, use.reserved_tokens, budget.limit_tokens)]),
    ]
    return max(parts, key=sum)


def _part(spent: Decimal | int, reserved: Decimal | int, limit: Decimal | int) -> Part:
    """A limit of 0 is used up."""
    return Part(float(spent / limit), float(reserved / limit)) if limit else Part(1.0, 0.0)
