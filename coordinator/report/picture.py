"""The loss curve as a PNG picture."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.report.summary import Mark, Summary, smoothed
from protocols.errors import DiskError
from protocols.host.terminal import display_name, duration, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING = "#2a6f97"
HELD_OUT = "#d1495b"
UNIGRAM = "#8d99ae"
JOINED = "#3a8f5c"
LEFT = "#c26a00"
INK = "#22272e"
QUIET = "#6b7480"
_MAX_MARKS = 12  # labels of more would cover the curve; those beyond stay in the history


def write_loss_curve(path: Path, summary: Summary, *, unigram_loss: float | None, title: str) -> Path:
    """Write a PNG: training loss at each epoch, held-out loss, the unigram line, and who came and went when.

    Raises DiskError if it cannot be written; a picture that was there before is then untouched.
    """
    # Not pyplot, which keeps figures in a global and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), dpi=150, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, summary, unigram_loss)
    axes.set_title(_subtitle(summary), loc="left", fontsize=9.5, color=QUIET, pad=10)
    figure.suptitle(title.replace("$", r"\$"), x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    _write_whole(path, canvas)
    return path


def _draw(axes: Axes, summary: Summary, unigram_loss: float | None) -> None:
    from matplotlib.ticker import MaxNLocator

    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c3c9d1")
    axes.tick_params(colors=QUIET, labelsize=9)
    axes.grid(axis="y", color="#e8ebef", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("epoch", color=QUIET)
    axes.set_ylabel(summary.loss_label, color=QUIET)

    points = [*summary.train_curve, *summary.eval_curve]
    if not points:
        axes.text(0.5, 0.5, "no epoch has been committed yet", transform=axes.transAxes, ha="center", color=QUIET)
        return
    first, last = min(epoch for epoch, _ in points), max(epoch for epoch, _ in points)
    losses = [loss for _, loss in points]
    if unigram_loss is not None:
        losses.append(unigram_loss)
    span = max(last - first, 1)
    left = first - 0.02 * span
    axes.set_xlim(left, last + 0.15 * span)  # room for the labels at the curves' ends
    ticks = MaxNLocator(nbins=12, integer=True).tick_values(first, last)
    axes.set_xticks([tick for tick in ticks if first <= tick <= last])
    margin = 0.08 * max(max(losses) - min(losses), 0.05)
    axes.set_ylim(min(losses) - margin, max(losses) + margin)

    ends: list[tuple[float, str, str]] = []
    if unigram_loss is not None:
        axes.plot([left, last], [unigram_loss] * 2, color=UNIGRAM, linewidth=1.2, linestyle=(0, (5, 4)))
        ends.append((unigram_loss, f"unigram {unigram_loss:.2f}", QUIET))
    if summary.train_curve:
        epochs, raw = zip(*summary.train_curve, strict=True)
        smooth = smoothed(raw)
        axes.plot(epochs, raw, color=TRAINING, linewidth=1.0, alpha=0.35)
        axes.plot(epochs, smooth, color=TRAINING, linewidth=2.0, solid_capstyle="round")
        ends.append((smooth[-1], f"training {smooth[-1]:.2f}", TRAINING))
    if summary.eval_curve:
        epochs, held_out = zip(*summary.eval_curve, strict=True)
        axes.plot(epochs, held_out, color=HELD_OUT, linewidth=1.2, marker="o", markersize=5, markeredgecolor="white")
        ends.append((held_out[-1], f"held-out {held_out[-1]:.2f}", HELD_OUT))
    _label_ends(axes, ends, x=last + 0.012 * span)
    _draw_marks(axes, summary, first=first)


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]], *, x: float) -> None:
    # Labels stand beside what they name, in place of a legend, moved apart where they would overlap.
    low, high = axes.get_ylim()
    gap = 0.05 * (high - low)
    at = low - gap
    placed: list[tuple[float, str, str]] = []
    for wanted, label, colour in sorted(ends):
        at = max(wanted, at + gap)
        placed.append((at, label, colour))
    excess = max(0.0, at - high)
    for y, label, colour in placed:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # no grid line through the text
        axes.text(x, y - excess, label, color=colour, fontsize=9.5, va="center", fontweight="bold", clip_on=False, bbox=box)


def _draw_marks(axes: Axes, summary: Summary, *, first: int) -> None:
    for row, (epoch, text, kind) in enumerate(_telling_marks(summary.marks, first)[:_MAX_MARKS]):
        colour = JOINED if kind == "joined" else LEFT
        axes.axvline(epoch, color=colour, linewidth=1.1, linestyle=(0, (1, 2)))
        is_late = epoch > sum(axes.get_xlim()) * 0.6
        axes.annotate(
            text,
            ha="right" if is_late else "left",
            xy=(epoch, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if is_late else 4, -10 - 13 * (row % 3)),  # neighbours in time do not write over each other
            textcoords="offset points",
            fontsize=8.5,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
        )


def _telling_marks(marks: Sequence[Mark], first: int) -> list[tuple[int, str, str]]:
    """(epoch, label, kind) of what happened while training went on, one for each epoch and kind."""
    grouped: dict[tuple[int, str], list[Mark]] = {}
    for mark in marks:
        if mark.epoch >= first:
            grouped.setdefault((mark.epoch, mark.kind), []).append(mark)
    telling = []
    for (epoch, kind), those in sorted(grouped.items()):
        if len(those) > 1:
            telling.append((epoch, f"{len(those)} peers {kind}", kind))
        else:
            who = display_name(those[0].name, those[0].peer).replace("$", r"\$")
            reason = f" ({those[0].reason})" if those[0].reason else ""
            telling.append((epoch, f"{who} {kind}{reason}", kind))
    return telling


def _subtitle(summary: Summary) -> str:
    parts = [
        plural(summary.epochs, "epoch"),
        plural(summary.samples_committed, "sample"),
        plural(summary.peers_joined, "contributor"),
        plural(summary.rounds_retried, "failed attempt"),
        duration(summary.duration_s),
    ]
    return "  ·  ".join(parts)


def _write_whole(path: Path, canvas: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                canvas.print_png(file)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DiskError(
            f"the loss curve {path} could not be written: {error.strerror or error}",
            remedy="Free some space there, or choose a folder that you may write to.",
        ) from error
