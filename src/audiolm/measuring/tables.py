"""Formats a report's figures as Markdown: cells, tables, sections."""

from collections.abc import Mapping, Sequence
from typing import Any


def figure(report: Mapping[str, Any], name: str, digits: int) -> str:
    """A figure with its 95 % interval; a dash if it could not be measured."""
    if report.get(name) is None:
        return "-"
    low, high = report.get(f"{name}.low"), report.get(f"{name}.high")
    interval = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{report[name]:.{digits}f}{interval}"


def section(title: str, *parts: str) -> str:
    """A heading and the parts that are not empty."""
    return "\n\n".join([f"### {title}", *(part for part in parts if part)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells below a header row."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
