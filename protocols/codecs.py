"""Averaged and contributed vectors as bytes.

Every codec is elementwise or works on blocks that `planner.GRID` is a multiple of, so that the encoding of a value does not
depend on where a plan cuts the vector: a vector is encoded once and every shard of every plan is a slice of those bytes.

torch does the work, on views of the caller's memory: its conversions and reductions are vectorised, numpy's are not (of halves
fifty times slower).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import torch

from protocols.errors import BadMessageError

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Codec:
    """A vector as little-endian floats; averages are computed in `working` precision.

    Errors: fp64 and fp32 lose nothing of a vector of their own precision; fp16 rounds to nearest, relative error at most
    2^-11 (absolute 2^-25 below 2^-14), and values beyond ±65504 saturate. What is not finite stays so, and is
    refused where it is decoded.
    """

    name: str
    wire: torch.dtype

    @property
    def working(self) -> type[np.float32] | type[np.float64]:
        return np.float64 if self.wire is torch.float64 else np.float32

    @property
    def _bits(self) -> torch.dtype:
        """As numpy may see them: it has no bfloat16."""
        return {2: torch.int16, 4: torch.int32, 8: torch.int64}[self.wire.itemsize]

    def encoded_bytes(self, elements: int) -> int:
        """Size of the encoding of a vector's first `elements` elements: on the grid, where element `elements` begins."""
        return elements * self.wire.itemsize

    def encode(self, values: FloatArray) -> bytes:
        """(n,) floats -> encoded_bytes(n) bytes."""
        exact = _tensor(np.ascontiguousarray(values, self.working))
        narrow = exact.to(self.wire)
        if narrow is not exact and not _is_finite(narrow):
            most = torch.finfo(self.wire).max
            narrow = torch.where(exact.isfinite(), exact.clamp(-most, most), exact).to(self.wire)
        return narrow.view(self._bits).numpy().tobytes()

    def decode(self, data: Bytes) -> FloatArray:
        """(n,) floats in `working` precision, the caller's own. Raises BadMessageError unless `data` is a whole number of
        elements, all finite."""
        if len(data) % self.wire.itemsize:
            raise BadMessageError(f"{len(data)} bytes are no whole number of {self.name} values")
        wide = max(self.wire, torch.float32, key=lambda dtype: dtype.itemsize)
        values = _tensor(np.frombuffer(data, f"<i{self.wire.itemsize}")).view(self.wire).to(wide, copy=True)
        if not _is_finite(values):
            raise BadMessageError("a value is not finite")
        decoded: FloatArray = values.numpy()
        return decoded


def _tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    """A view, not to be written to: torch has no tensors that cannot be, and complains of memory that cannot."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    interface = array.__array_interface__ | {"data": (array.__array_interface__["data"][0], False)}
    return torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=interface, memory=array)))


def _is_finite(values: torch.Tensor) -> bool:
    """One pass when they are: then a sum is finite too, unless it overflows by itself."""
    total = values.to(torch.float32).sum() if values.itemsize < 4 else values.sum()
    return bool(total.isfinite()) or bool(values.isfinite().all())


CODECS = {
    "fp64": Codec("fp64", torch.float64),
    "fp32": Codec("fp32", torch.float32),
    "fp16": Codec("fp16", torch.float16),
}
