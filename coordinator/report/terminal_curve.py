"""The loss curve drawn with characters, for a terminal."""

from __future__ import annotations

import sys
from typing import Any

from coordinator.report.summary import Summary, smoothed


def terminal_loss_curve(
    summary: Summary, width: int, height: int, *, unigram_loss: float | None = None, colour: bool | None = None
) -> str:
    """The same curve in characters, `width` by `height`. Coloured where standard output is a terminal, unless `colour` says."""
    if not summary.train_curve and not summary.eval_curve:
        return "no epoch has been committed yet"
    colour = sys.stdout.isatty() if colour is None else colour
    import plotext

    curves = (*summary.train_curve, *summary.eval_curve)
    first, last = min(epoch for epoch, _ in curves), max(epoch for epoch, _ in curves)
    losses = [loss for _, loss in curves] + ([] if unigram_loss is None else [unigram_loss])
    figure: Any = plotext.figure
    figure.clear.all()
    figure.theme("colorless")
    plotext.terminal.limit(False, False)  # the caller knows the size; standard output may be a pipe
    figure.plot_size(max(width, 32), max(height, 8) - 1)
    figure.label("epoch", axis="x")
    figure.ruler("x").lim(first, max(last, first + 1)).ticks(_whole_ticks(first, last, most=max(2, width // 12)))
    low, high = min(losses), max(losses)
    heights = [low + (high - low) * i / 4 for i in range(5)] if high > low else [low]
    figure.ruler("y").lim(low, high if high > low else low + 0.1).ticks(heights, [f"{value:.2f}" for value in heights])

    caption = []
    if unigram_loss is not None:
        figure.draw(figure.signal([first, last], [unigram_loss] * 2, marker=plotext.marker("╌", "gray")).lines())
        caption.append(("╌", f"unigram {unigram_loss:.2f}", 90))
    if summary.train_curve:
        at, raw = zip(*summary.train_curve, strict=True)
        figure.draw(figure.signal(at, smoothed(raw), marker=plotext.marker("braille", "cyan")).lines())
        caption.append(("⣀", f"training {smoothed(raw)[-1]:.2f}", 36))
    if summary.eval_curve:
        at, held_out = zip(*summary.eval_curve, strict=True)
        figure.draw(figure.signal(at, held_out, marker=plotext.marker("●", "red")))
        caption.append(("●", f"held-out {held_out[-1]:.2f}", 31))
    drawn = str(figure.build().string(colorless=not colour)).rstrip("\n")
    # A caption above, for plotext's own legend covers part of the curve.
    names = [f"\x1b[{code}m{glyph}\x1b[0m {name}" if colour else f"{glyph} {name}" for glyph, name, code in caption]
    return f"{summary.loss_label}   " + "   ".join(names) + "\n" + drawn


def _whole_ticks(first: int, last: int, most: int) -> list[int]:
    step = next(size * 10**power for power in range(12) for size in (1, 2, 5) if (last - first) // (size * 10**power) < most)
    return list(range(-(-first // step) * step, last + 1, step))
