"""How lines are printed and drawn."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Curve(NamedTuple):
    """One line of a drawing."""

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> str:
    """A Markdown table under its title, if it has one.

    Args:
        title: The heading.
        columns: The names of the columns.
        rows: The cells of each row, as text.
        names: How many columns from the left hold text; the others hold numbers and are aligned right.
    """
    heading = [f"### {title}\n"] if title else []
    rule = f"|{'---|' * names}{'---:|' * (len(columns) - names)}"
    return "\n".join([*heading, _row(columns), rule, *map(_row, rows)]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(file: Path, curves: Iterable[Curve], *, x: str, y: str, title: str, height: float = 4) -> None:
    """Writes the curves as SVG, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, height))
    for curve in curves:
        axes.plot(
            [point[0] for point in curve.points],
            [point[1] for point in curve.points],
            marker="o",
            linestyle="--" if curve.dashed else "-",
            label=curve.label,
        )
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, metadata={"Date": None})  # equal figures make equal files
