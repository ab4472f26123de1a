"""The norm of a vector, the same bits on every machine: peers clip by it, and must not disagree."""

from __future__ import annotations

import math

import torch

# Part of the result: another number sums in another order.
PIECE_ELEMENTS = 1 << 18


def gradient_norm(vector: torch.Tensor) -> float:
    """L2 norm of (n,) values.

    Sums of a library depend on the processor's vector units. Here each number is squared and added in double precision, one
    half of a piece to the other until one number is left: elementwise operations, which IEEE 754 defines to the bit.
    """
    total = 0.0
    for piece in torch.split(vector, PIECE_ELEMENTS):
        values = piece if piece.device.type in ("cpu", "cuda") else piece.cpu()  # some devices have no double precision
        squares = values.to(torch.float64, copy=True).square_()
        while len(squares) > 1:
            half = (len(squares) + 1) // 2
            squares[: len(squares) - half].add_(squares[half:])  # the middle one of an odd number stays as it is
            squares = squares[:half]
        total += squares.item()
    return math.sqrt(total)
