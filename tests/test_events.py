"""docs/EVENTS.md names the events that the code writes, and no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WRITERS = {"event", "events", "_events"}
NAME = re.compile(r"[a-z]+(_[a-z]+)*")


def written(folder: str) -> Iterator[str]:
    """Names given to whoever writes events; sentences for screens are none."""
    for path in (ROOT / folder).rglob("*.py"):
        if "simulation" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and _name_of(node.func) in WRITERS:
                yield from (text for text in _texts(node.args[0]) if NAME.fullmatch(text))


def _name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _texts(expression: ast.expr) -> Iterator[str]:
    if isinstance(expression, ast.IfExp):
        yield from _texts(expression.body)
        yield from _texts(expression.orelse)
    elif isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value


def documented(heading: str) -> set[str]:
    section = (ROOT / "docs" / "EVENTS.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    return {name.strip() for row in rows for name in row.split(",")} - {"event"}


def test_a_coordinators_events_are_documented() -> None:
    assert set(written("coordinator")) | {"committed"} == documented("Of a coordinator")


def test_a_peers_events_are_documented() -> None:
    assert (set(written("peer")) - {"applied"}) | {"committed"} == documented("Of a peer")
