"""The parts that all screens share: lines, bars and numbers for a person.

Names and reasons come from other machines. So no text is read as markup, and control characters never reach the terminal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import humanize
from rich.console import ConsoleRenderable, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"


def printable(text: str, limit: int = 80) -> str:
    """Replace control characters (escape sequences, newlines) in `text` and cut it to `limit` characters."""
    clean = "".join(letter if letter.isprintable() else "�" for letter in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def short_id(peer: str) -> str:
    """The first four characters of a peer id."""
    return printable(peer, 80)[:4] + "…" if len(peer) > 4 else printable(peer)


def display_name(name: str, peer: str) -> str:
    """A peer's name, if it has one, and its short id."""
    return f"{printable(name, 24)} {short_id(peer)}" if name else short_id(peer)


def time_left(seconds: float | None) -> str:
    """For a person; '' if it is not known."""
    if seconds is None:
        return ""
    return f"{duration(seconds)} left" if seconds >= 10 else "a few seconds left"


def rate(samples_per_second: float) -> str:
    """Samples per second as text: three significant digits up to 999, then thousands with commas; "?" if not finite."""
    if not math.isfinite(samples_per_second):
        return "?"
    if samples_per_second >= 100 or samples_per_second == 0:
        return f"{samples_per_second:,.0f}"
    return f"{samples_per_second:.1f}" if samples_per_second >= 10 else f"{samples_per_second:.2f}"


def duration(seconds: float) -> str:
    """Two significant digits below a minute, then whole minutes, hours and days."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return humanize.metric(seconds, "s", precision=2)
    return humanize.precisedelta(seconds, minimum_unit="minutes", format="%.0f")


def plural(count: int, noun: str) -> str:
    """A count and its noun, with an s unless the count is 1."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw `values` in at most `width` block characters. Each character is the mean of its share of the values."""
    points = [value for value in values if math.isfinite(value)]
    if not points or width < 1:
        return ""
    if len(points) > width:
        edges = [round(i * len(points) / width) for i in range(width + 1)]
        points = [sum(points[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(points), max(points)
    if high == low:
        return _BLOCKS[0] * len(points)
    return "".join(_BLOCKS[round((value - low) / (high - low) * (len(_BLOCKS) - 1))] for value in points)


def labelled(rows: Sequence[tuple[str, RenderableType]], *, label_width: int = 7) -> Table:
    """A grid of rows, each a dim label and its value, which takes several lines where there is little room."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=label_width, style="dim", no_wrap=True)
    grid.add_column(ratio=1)
    for label, value in rows:
        grid.add_row(label, value)
    return grid


def frame_title(run: str, epoch: str, phase: str, width: int) -> Text:
    """The title of a view that is `width` columns wide. Where there is little room, what a person knows is left out."""
    known, told = Text("dugnad · ", style="bold"), f" · {printable(phase, 24)}" if phase else ""
    needed = Text.assemble(printable(run, 32), " · ", (epoch, "bold cyan"))
    room = width - 6 - len(needed)  # the frame's corner, a bar and a space on each side
    if len(told) <= room:
        needed.append(told)
        room -= len(told)
    return Text.assemble(known, needed) if len(known) <= room else needed


def batch_bar(samples: int, target_batch_size: int) -> Table:
    """A bar of the samples gathered towards the batch, with the numbers beside it. `samples` may exceed the target."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=max(target_batch_size, 1), completed=min(samples, target_batch_size), complete_style="cyan")
    grid.add_row(bar, Text(f"{samples:,} of {target_batch_size:,} samples"))
    return grid


def loss_line(losses: Sequence[float], note: str, width: int) -> Text:
    """The newest loss, a sparkline of its history, and a note."""
    if not losses:
        return Text("not known yet", style="dim")
    line = Text(f"{losses[-1]:.3f}", style="bold")
    line.append(" ")
    line.append(sparkline(losses, max(8, min(48, width - len(line) - len(note) - 4))), style="cyan")
    if note:
        line.append(f"  {note}", style="dim")
    return line


def stacked(parts: Sequence[RenderableType | None]) -> ConsoleRenderable:
    """The parts one below the other, without those that are None."""
    return Group(*(part for part in parts if part is not None))


def log_lines(lines: Sequence[Text], *, wrap: bool = False) -> ConsoleRenderable:
    """The lines one below the other. Without `wrap` they are cut at the edge, so that the view keeps its height."""
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")
    for line in lines:
        grid.add_row(line)
    return grid
