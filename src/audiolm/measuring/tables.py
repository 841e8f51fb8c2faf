"""Figures of a report as Markdown: cells, tables, sections."""

from collections.abc import Mapping, Sequence
from typing import Any


def figure(report: Mapping[str, Any], name: str, digits: int) -> str:
    """A figure and its 95 % interval; a dash for what could not be measured."""
    if report.get(name) is None:
        return "-"
    low, high = report.get(f"{name}.low"), report.get(f"{name}.high")
    interval = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{report[name]:.{digits}f}{interval}"


def section(title: str, *parts: str) -> str:
    """A heading, and those parts that hold something."""
    return "\n\n".join([f"### {title}", *(part for part in parts if part)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells under a head."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
