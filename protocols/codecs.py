"""Averaged and contributed vectors as bytes.

Every codec is elementwise or works on blocks that `planner.GRID` is a multiple of, so that the encoding of a value does not
depend on where a
plan cuts the vector: a vector is encoded once and every shard of every plan is a slice of those bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from protocols.errors import BadMessageError

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
FP16_MAX = 65504.0


@dataclass(frozen=True)
class Codec:
    """`bytes_per_element` on the wire; averages are computed in `working` precision.

    Errors: fp64 and fp32 lose nothing of a vector of their own precision; fp16 rounds to nearest, relative error at most
    2^-11 (absolute 2^-25
    below 2^-14), and values beyond ±65504 saturate.
    """

    name: str
    wire: str  # little-endian numpy dtype
    working: str

    @property
    def bytes_per_element(self) -> int:
        return np.dtype(self.wire).itemsize

    def encode(self, values: FloatArray) -> bytes:
        """(n,) floats -> n * bytes_per_element bytes."""
        if self.wire == "<f2":
            values = cast(FloatArray, np.clip(values, -FP16_MAX, FP16_MAX))
        return np.ascontiguousarray(values, dtype=self.wire).tobytes()

    def decode(self, data: bytes | bytearray | memoryview) -> FloatArray:
        """Raises BadMessageError unless `data` is a whole number of elements, all finite."""
        if len(data) % self.bytes_per_element:
            raise BadMessageError(f"{len(data)} bytes are no whole number of {self.name} values")
        values = cast(FloatArray, np.frombuffer(data, dtype=self.wire).astype(self.working))
        # One pass instead of isfinite's two: a sum is finite unless an element is not (or float64 overflows, which no
        # gradient does).
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(values.sum(dtype=np.float64))
        if not finite:
            raise BadMessageError("a value is not finite")
        return values


CODECS = {
    "fp64": Codec("fp64", "<f8", "<f8"),
    "fp32": Codec("fp32", "<f4", "<f4"),
    "fp16": Codec("fp16", "<f2", "<f4"),
}
