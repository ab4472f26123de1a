"""Blocks of two snapshots of one lineage, compared value by value: unlike machines' states differ by rounding (no I/O)."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from protocols.errors import BadMessageError
from protocols.gradients.drift import SLACK
from protocols.round.planner import GRID

# Blocks of a snapshot begin anywhere in a drift block, which has a scale of its own: so a few times what drift allows is allowed.
LENIENCE = 4.0
# Numbers outside tensors (a schedule's learning rate) are worked out in float64, step by step.
MAX_RELATIVE = 1e-6
MAX_HEADER_BYTES = 4 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
    "U8": torch.uint8,
}


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a snapshot lie, and what it says besides."""

    data_start: int  # bytes before the first tensor
    tensors: dict[str, tuple[str, tuple[int, ...], int, int]]  # name -> dtype, shape, first and end byte after `data_start`
    said: dict[str, Any]

    @classmethod
    def header_bytes(cls, beginning: bytes) -> int:
        """How much of a snapshot `of` needs, by its first 8 bytes. Raises BadMessageError."""
        size = 8 + int.from_bytes(beginning[:8], "little")
        if len(beginning) < 8 or size > MAX_HEADER_BYTES:
            raise BadMessageError("a snapshot with a header out of all bounds")
        return size

    @classmethod
    def of(cls, beginning: bytes) -> Layout:
        """Raises BadMessageError."""
        size = cls.header_bytes(beginning)
        try:
            document = json.loads(beginning[8:size])
            said = json.loads(document.pop("__metadata__")["dugnad"])
            said["header"].pop("commit", None)  # a commit with more votes is the same commit
            tensors = {}
            for name, entry in document.items():
                first, end = entry["data_offsets"]
                tensors[name] = (str(entry["dtype"]), tuple(map(int, entry["shape"])), int(first), int(end))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadMessageError(f"a snapshot's header cannot be read: {str(error)[:200]}") from error
        return cls(size, tensors, said)

    def holds_parameters(self, begin: int, end: int) -> bool:
        """Whether any of bytes [begin, end) of the data is of a parameter or buffer."""
        return any(
            start < end and begin < stop for name, (_, _, start, stop) in self.tensors.items() if name.startswith("parameters.")
        )

    def fits(self, other: Layout) -> bool:
        """Whether the two have the same tensors in the same places, and say the same besides."""
        return self.tensors == other.tensors and _is_close(self.said, other.said)


def differ(layout: Layout, first: int, mine: bytes, theirs: bytes, *, names: Collection[str], steps: int) -> str:
    """The name of a tensor of which bytes [first, first + len(mine)) of the data differ by more than `steps` steps of rounding
    allow; '' if there is none.

    `names`: of the parameters that are compared, with their slots. Buffers are each machine's own.
    """
    end = first + len(mine)
    for name, (dtype_name, shape, start, stop) in layout.tensors.items():
        dtype = _DTYPES.get(dtype_name)
        if dtype is None or start >= end or stop <= first or not _is_of(name, names):
            continue
        size = dtype.itemsize
        low = max(start, first + (start - first) % size)
        high = low + (min(stop, end) - low) // size * size
        if high <= low:
            continue
        if stop - start != size * math.prod(shape):
            return name
        here, there = (
            torch.frombuffer(bytearray(data[low - first : high - first]), dtype=dtype).double() for data in (mine, theirs)
        )
        info = torch.finfo(dtype) if dtype.is_floating_point else None
        eps, tiny = (info.eps, info.tiny) if info is not None else (0.0, 0.0)
        at = torch.arange(len(here)) // GRID
        sums = torch.zeros(int(at[-1]) + 1, dtype=torch.float64).index_add_(0, at, here.square())
        rms = (sums / at.bincount()).sqrt()[at]
        allowed = LENIENCE * SLACK * eps * steps * (here.abs() + rms) + tiny
        if not bool(((here - there).abs() <= allowed).all()):  # false for what is not finite, too
            return name
    return ""


def _is_of(name: str, names: Collection[str]) -> bool:
    kind, _, rest = name.partition(".")
    return rest in names if kind == "parameters" else rest.rpartition(".")[0] in names


def _is_close(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=MAX_RELATIVE, abs_tol=1e-12)
    return type(one) is type(other) and bool(one == other)
