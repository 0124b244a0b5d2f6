"""Tables of measurements, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.measure import Measured

NOTHING = "-"
_SEEN = 0.4  # seconds: the memory of what ends sooner was looked at too seldom
_UNITS = {"memory": "MB", "wall": "ms"}


class Budget(NamedTuple):
    """What is asked of us.

    Attributes:
        text: in words.
        limit: how many times as long as we a rival takes at least, or how much of `field` is ours at most; None where
            nothing is asked, and the rival is only shown.
        rival: who is looked at; None for ourselves alone.
        field: of `Run`, where there is no rival.
        at_most: it is we who take at most `limit` times as long as the rival.
    """

    text: str
    limit: float | None
    rival: str | None = None
    field: str = "wall"
    at_most: bool = False


class Table(NamedTuple):
    """A scenario's result.

    Attributes:
        title: its heading.
        note: what was measured, a sentence or two.
        rows: ours is the first.
        size: bytes that were moved, 0 where that means nothing.
        budgets: what is asked.
    """

    title: str
    note: str
    rows: Sequence[Measured]
    size: int = 0
    budgets: Sequence[Budget] = ()

    def markdown(self) -> str:
        """Return heading, note and table."""
        heads = ["tool", "verified", "wall s", "on disk s", "MB/s", "CPU s", "peak MB", "times ours"]
        lines = [f"### {self.title}", "", self.note, "", _line(heads), _line(["---", "---", *["---:"] * 6])]
        lines += [_line(self._cells(row)) for row in self.rows]
        return "\n".join(lines) + "\n"

    def verdict(self, budget: Budget) -> tuple[str, str]:
        """Return what was measured for a budget, and whether it was kept."""
        ours = self.rows[0]
        ratio = self.ratio(budget.rival) if budget.rival else None
        if not ours.runs or (budget.rival and ratio is None):
            return "not measured", NOTHING
        if ratio is None:
            value = ours.memory / 1e6 if budget.field == "memory" else ours.median(budget.field) * 1000
            return f"{value:.0f} {_UNITS[budget.field]}", _word(value, at_most=budget.limit)
        if budget.at_most:
            return f"{1 / ratio:.2f} times", _word(1 / ratio, at_most=budget.limit)
        return f"{ratio:.2f} times", _word(-ratio, at_most=None if budget.limit is None else -budget.limit)

    def ratio(self, name: str) -> float | None:
        """Return how many times as long as ours a contender took, None if either was not measured."""
        rival = next((row for row in self.rows if row.contender.name == name), None)
        if rival is None or not rival.runs or not self.rows[0].runs:
            return None
        return rival.median("wall") / self.rows[0].median("wall")

    def _cells(self, row: Measured) -> list[str]:
        name, verified = row.contender.name, row.contender.verified or NOTHING
        if row.failed or not row.runs:
            return [name, verified, row.failed, *[NOTHING] * 5]
        wall, ratio = row.median("wall"), self.ratio(name)
        speed = f"{self.size / wall / 1e6:,.0f}" if self.size else NOTHING
        seconds = [f"{row.median(field):.2f}" for field in ("wall", "durable", "cpu")]
        peak = f"{row.memory / 1e6:,.0f}" if wall > _SEEN else NOTHING
        return [name, verified, *seconds[:2], speed, seconds[2], peak, f"{ratio:.2f}" if ratio else NOTHING]


def summary(tables: Sequence[Table]) -> str:
    """Return one table of all budgets."""
    lines = [_line(["what", "asked", "measured", ""]), _line(["---", "---", "---:", "---"])]
    for table in tables:
        lines += [_line([table.title, budget.text, *table.verdict(budget)]) for budget in table.budgets]
    return "\n".join(lines) + "\n"


def _word(value: float, *, at_most: float | None) -> str:
    if at_most is None:
        return NOTHING
    return "kept" if value <= at_most else "**missed**"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
