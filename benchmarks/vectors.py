"""What the peers of a benchmark average, such that everybody can say what the exact mean is without holding all of it.

A file of normal noise is shared by all processes; what a peer contributes in a round is that noise, turned and scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
_CHUNK = 1 << 20
# Rounding of one encoding relative to the value, and relative to the largest value near it. Block-wise codecs carry the error
# of the round before in what they encode, hence twice half a step.
_RELATIVE = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
_SMALLEST = {"fp16": 2.0**-24}  # below 2^-14 its steps do not get smaller
_OF_LARGEST = {"int8": 1 / 127, "int4": 1 / 7}


def write_noise(path: Path, elements: int) -> None:
    np.random.default_rng(4).standard_normal(elements, dtype=np.float32).tofile(path)


def contribution(noise: Path, elements: int, rank: int, turn: int, start: int, stop: int) -> Vector:
    """Elements [start, stop) of what `rank` gives in round `turn`."""
    whole = np.memmap(noise, np.float32, "r", shape=(elements,))
    scale = np.float32(0.001 * (1 + rank % 7))
    turned = (start + 7919 * (rank + 1) + 104_729 * turn) % elements
    parts = []
    left = stop - start
    while left:
        part = whole[turned : turned + left]
        parts.append(part * scale)
        left -= len(part)
        turned = 0
    return np.concatenate(parts)


def largest_excess(
    result: Vector, noise: Path, contributors: Sequence[int], turn: int, codec: str, *, added_to: int | None = None
) -> float:
    """How far `result` is off the exact mean anywhere, as a multiple of what `codec` may have done to it: sound up to 1.

    `added_to`: the rank to whose values an encoded difference was added; hivemind works so.
    """
    elements, worst = len(result), 0.0
    for start in range(0, elements, _CHUNK):
        stop = min(elements, start + _CHUNK)
        exact = np.zeros(stop - start)
        magnitude = np.zeros(stop - start)
        for other in contributors:
            theirs = contribution(noise, elements, other, turn, start, stop)
            exact += theirs
            magnitude += np.abs(theirs)
        exact /= len(contributors)
        magnitude /= len(contributors)
        own = 0.0 if added_to is None else 2 * np.abs(contribution(noise, elements, added_to, turn, start, stop))
        if codec in _RELATIVE:
            # and the sum itself is rounded once for each contributor
            allowed = (_RELATIVE[codec] * (magnitude + np.abs(exact) + own)) + (len(contributors) + 2) * 2.0**-24 * magnitude
            allowed += _SMALLEST.get(codec, 0.0)
        else:
            allowed = np.full(stop - start, _OF_LARGEST[codec] * (magnitude.max() + np.abs(exact).max()))
        if not np.isfinite(result[start:stop]).all():
            return float("inf")
        worst = max(worst, float((np.abs(result[start:stop] - exact) / allowed).max()))
    return worst
