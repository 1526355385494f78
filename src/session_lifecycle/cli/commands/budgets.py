"""`budgets`: lists budgets, shows what is used of one, and sets or deletes it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn
from uuid import UUID

import typer

from session_lifecycle.cli.choices import Seen, amount, budget_window
from session_lifecycle.cli.options import FAILURE, DryRun, Json, Place, Yes, on_database, refuse
from session_lifecycle.cli.output import print_json, print_line, print_note, print_tables

if TYPE_CHECKING:
    from session_lifecycle import SessionDatabase

BudgetId = Annotated[str, typer.Argument(metavar="BUDGET", help="Id of the budget.")]


@dataclass(frozen=True)
class Bound:
    """What a budget counts, and its limits."""

    user: Annotated[
        UUID | None, typer.Option(metavar="ID", help="Count the sessions of this user.", show_default=False)
    ] = None
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="Count this session of the user.", show_default=False)
    ] = None
    agent: Annotated[
        str | None, typer.Option(metavar="NAME", help="Count the sessions of this agent.", show_default=False)
    ] = None
    dataset: Annotated[
        UUID | None, typer.Option(metavar="ID", help="Count the sessions in this dataset.", show_default=False)
    ] = None
    limit_usd: Annotated[
        Any, typer.Option(parser=amount, metavar="USD", help="Most USD in the window.", show_default=False)
    ] = None
    limit_tokens: Annotated[
        int | None, typer.Option(help="Most tokens in the window, in and out.", show_default=False)
    ] = None
    window: Annotated[
        Any,
        typer.Option(
            parser=budget_window,
            metavar="WINDOW",
            help="total: all time. hour, day, week, month: the current one. 90m, 24h, 7d, 2w: so long, up to now.",
        ),
    ] = "total"
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="IANA time zone by whose clocks hours, days, weeks and months begin.")
    ] = "UTC"
    on_unpriced: Annotated[
        Literal["refuse", "admit"], typer.Option(help="What happens to a call whose price is not known.")
    ] = "refuse"

    def fields(self) -> dict[str, Any]:
        """The fields of the budget."""
        return {
            "user_id": self.user,
            "session_id": self.session,
            "agent_name": self.agent,
            "dataset_id": self.dataset,
            "limit_usd": self.limit_usd,
            "limit_tokens": self.limit_tokens,
            "window": self.window,
            "timezone": self.timezone,
            "on_unpriced": self.on_unpriced,
        }


def list_budgets(
    place: Place,
    seen: Seen,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of rows.")] = 100,
    after: Annotated[
        str | None, typer.Option(metavar="BUDGET", help="Go on after this budget.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List budgets in the order of their ids. A user sees the budgets that count their own sessions only."""

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.cli.tables import budgets_table

        found = await db.budgets.list_budgets(seen.viewer(), limit=limit, after=after)
        if as_json:
            print_json({"budgets": found})
            return
        print_tables(budgets_table(found))
        if len(found) == limit:
            print_note(f"more may follow: --after {found[-1].budget_id}")

    on_database(work, place)


def show(budget_id: BudgetId, place: Place, seen: Seen, as_json: Json = False) -> None:
    """Show a budget and what is used of it."""

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.cli.tables import budget_table

        use = await db.budgets.get_budget(budget_id, seen.viewer())
        if use is None:
            _refuse_unknown(budget_id)
        if as_json:
            print_json(use)
        else:
            print_tables(budget_table(use))

    on_database(work, place)


def set_budget(budget_id: BudgetId, bound: Bound, place: Place, as_json: Json = False) -> None:
    """Create a budget, or replace the one with this id.

    Name a user, an agent or a dataset, and a limit in USD or in tokens.
    """

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle.models import Budget

        budget = Budget.of_call(budget_id=budget_id, **bound.fields())
        is_new = await db.budgets.set_budget(budget)
        if as_json:
            print_json({"budget": budget, "is_new": is_new})
        else:
            print_line(f"{'Created' if is_new else 'Replaced'}: budget {budget_id}")

    on_database(work, place)


def delete(budget_id: BudgetId, place: Place, dry_run: DryRun = False, yes: Yes = False, as_json: Json = False) -> None:
    """Delete a budget. The usage that it counts stays."""

    async def work(db: "SessionDatabase") -> None:
        from session_lifecycle import Viewer

        if dry_run:
            exists = await db.budgets.get_budget(budget_id, Viewer.auditor()) is not None
        else:
            exists = await db.budgets.delete_budget(budget_id)
        if not exists:
            _refuse_unknown(budget_id)
        if as_json:
            print_json({"budget_id": budget_id, "deleted": not dry_run})
        else:
            print_line(f"{'Would delete' if dry_run else 'Deleted'}: budget {budget_id}")

    question = f"Delete the budget {budget_id}? Calls are not held to it any more."
    on_database(work, place, confirm=None if yes or dry_run else question)


def _refuse_unknown(budget_id: str) -> NoReturn:
    refuse(f"there is no budget {budget_id}", code=FAILURE)
