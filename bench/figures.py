"""Medians, spreads, ratios, and tables of them. Pure: numbers in, numbers and text out."""

from collections.abc import Mapping, Sequence
from statistics import median, quantiles

MB = 1_000_000
NONE = "–"  # noqa: RUF001 (an en dash, as in tables)


def summary(values: Sequence[float]) -> dict[str, float]:
    """The median, and between what the values lie."""
    return {
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def percentile(values: Sequence[float], of_100: int) -> float:
    """Of at least two values, as `statistics.quantiles` interpolates."""
    return quantiles(values, n=100, method="inclusive")[of_100 - 1]


def ratio(value: float | None, to: float | None) -> float | None:
    """How many times `to` a value is; None where one of them is missing."""
    return None if value is None or not to else value / to


def missed(figures: Mapping[str, float], bars: Mapping[str, float | None]) -> list[str]:
    """The bars that are not reached, by name."""
    return [name for name, bar in bars.items() if bar is not None and figures[name] < bar]


def fastest(seconds: Mapping[str, float], faithful: Sequence[str]) -> str | None:
    """Of the rows that reach the bars, the one that takes least."""
    return min(
        (name for name in seconds if name in faithful), key=lambda name: seconds[name], default=None
    )


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return NONE if value is None else f"{value:.{digits}f}{unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown that reads well as plain text too: columns are padded, figures to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        return f"| {' | '.join([first.ljust(widths[0]), *padded])} |"

    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])
