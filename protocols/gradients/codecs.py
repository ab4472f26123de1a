"""Averaged and contributed vectors as bytes.

Every codec is elementwise or works on blocks that `planner.GRID` is a multiple of, so that the encoding of a value does not
depend on where a plan cuts the vector: a vector is encoded once and every shard of every plan is a slice of those bytes.

torch does the work, on views of the caller's memory: its conversions and reductions are vectorised, numpy's are not (of halves
fifty times slower). Only operations that round each element once are used, so that results do not depend on where chunks end.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from protocols.errors import BadMessageError

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bytes = bytes | bytearray | memoryview

BLOCK = 128  # elements that share a scale
SCALE_BYTES = 2
MIN_SCALE, MAX_SCALE = 2.0**-100, 2.0**100  # no product underflows, overflows, or is slow
# Encoded at a time: temporaries stay in the processor's cache, and small beside the vector.
PIECE_ELEMENTS = 256 * 1024


@dataclass(frozen=True)
class Codec(ABC):
    """A vector of n floats as `encoded_bytes(n)` little-endian bytes, rounded to nearest; equal values have equal bytes.

    What is not finite is never turned into a value: it is encoded as something that `check` refuses.
    """

    name: str

    @property
    def error_feedback(self) -> bool:
        """Whether contributors give what an encoding lost with their next contribution (error_feedback.py)."""
        return False

    @property
    def working(self) -> type[np.float32] | type[np.float64]:
        """In what precision vectors are taken, averaged and given back."""
        return np.float32

    def room_for(self, elements: int) -> FloatArray:
        """(elements,) floats in `working` precision, to be decoded into."""
        return cast(FloatArray, np.empty(elements, self.working))

    @abstractmethod
    def encoded_bytes(self, elements: int) -> int:
        """Size of the encoding of a vector's first `elements` elements: on the grid, where element `elements` begins."""

    @abstractmethod
    def max_error(self, values: FloatArray) -> npt.NDArray[np.float64]:
        """(n,) values -> (n,) how far from each its decoded encoding may be, unless it saturates."""

    def encode(self, values: FloatArray) -> bytes:
        """(n,) floats -> encoded_bytes(n) bytes."""
        out = bytearray(self.encoded_bytes(len(values)))
        self.encode_into(values, out)
        return bytes(out)

    @abstractmethod
    def encode_into(self, values: FloatArray, out: bytearray | memoryview) -> None:
        """(n,) floats into the encoded_bytes(n) bytes of `out`."""

    def check(self, data: Bytes, elements: int) -> None:
        """Raises BadMessageError unless `data` are so many elements, all finite. Reads the data once at most."""
        if len(data) != self.encoded_bytes(elements):
            raise BadMessageError(f"{len(data)} bytes are not {elements} {self.name} values")
        if not self._is_sound(_tensor(np.frombuffer(data, np.uint8)), elements):
            raise BadMessageError(f"a {self.name} value is not finite, or not encoded as it should be")

    def decode(self, data: Bytes, elements: int) -> FloatArray:
        """(elements,) floats in `working` precision, the caller's own. Raises BadMessageError as `check` does."""
        values = self.room_for(elements)
        self.decode_into(data, values)
        return values

    def decode_into(self, data: Bytes, values: FloatArray) -> None:
        """Fills (elements,) floats in `working` precision. Raises BadMessageError as `check` does, with `values` untouched."""
        self.check(data, len(values))
        self._decode_into(_tensor(np.frombuffer(data, np.uint8)), torch.from_numpy(values))

    @abstractmethod
    def _is_sound(self, data: torch.Tensor, elements: int) -> bool:
        """`data`: (encoded_bytes(elements),) uint8."""

    @abstractmethod
    def _decode_into(self, data: torch.Tensor, values: torch.Tensor) -> None:
        """(encoded_bytes(elements),) sound uint8 into (elements,)."""


@dataclass(frozen=True)
class FloatCodec(Codec):
    """Each element as a float of its own.

    fp64 and fp32 lose nothing of a vector of their own precision. fp16: relative error at most 2^-11 (absolute 2^-25 below
    2^-14), and values beyond ±65504 saturate. bf16: relative error at most 2^-8 (absolute 2^-134 below 2^-126), and the range of
    fp32.
    """

    wire: torch.dtype

    @property
    def working(self) -> type[np.float32] | type[np.float64]:
        return np.float64 if self.wire is torch.float64 else np.float32

    def encoded_bytes(self, elements: int) -> int:
        return elements * self.wire.itemsize

    def max_error(self, values: FloatArray) -> npt.NDArray[np.float64]:
        size = np.abs(np.asarray(values, np.float64))
        if self.wire.itemsize >= 4:
            return size * 0
        about = torch.finfo(self.wire)
        bound: npt.NDArray[np.float64] = np.maximum(size, about.tiny) * (about.eps / 2)
        return bound

    def encode_into(self, values: FloatArray, out: bytearray | memoryview) -> None:
        exact = _tensor(np.ascontiguousarray(values, self.working))
        narrow = torch.from_numpy(np.frombuffer(out, np.uint8)).view(self.wire)
        narrow.copy_(exact)
        if self.wire.itemsize < exact.itemsize and not _is_finite(narrow):
            most = torch.finfo(self.wire).max
            narrow.copy_(torch.where(exact.isfinite(), exact.clamp(-most, most), exact))

    def _is_sound(self, data: torch.Tensor, elements: int) -> bool:
        return _is_finite(data.view(self.wire))

    def _decode_into(self, data: torch.Tensor, values: torch.Tensor) -> None:
        values.copy_(data.view(self.wire))


@dataclass(frozen=True)
class BlockCodec(Codec):
    """Blocks of 128 elements, each as its scale (bfloat16) followed by a whole number of `bits` bits for each element.

    A value is its number times the scale, which is the block's largest magnitude divided by 127 (int8) or 7 (int4). The error is
    at most half a scale: 0.3952 % of the block's largest magnitude for int8 (1/254, and 2^-8 of that for rounding), 7.171 % for
    int4 (1/14, likewise). Blocks whose scale would be below 2^-100 become zero; values saturate where it would be above 2^100.
    Products of number and scale are exact, and encoding again what was decoded changes no byte.

    Two int4 numbers share a byte: element i of the first half of a block has the low bits, the one half a block on the high
    bits. The vector's last block may be short; when it has an odd number of elements, its last four bits are zero.
    """

    bits: int

    @property
    def error_feedback(self) -> bool:
        return True

    @property
    def _most(self) -> int:
        return (1 << self.bits - 1) - 1

    def encoded_bytes(self, elements: int) -> int:
        return -(-elements // BLOCK) * SCALE_BYTES + -(-elements * self.bits // 8)

    def max_error(self, values: FloatArray) -> npt.NDArray[np.float64]:
        size = np.abs(np.asarray(values, np.float64))
        blocks = np.pad(size, (0, -len(size) % BLOCK)).reshape(-1, BLOCK).max(axis=1)
        error = blocks / (2 * self._most) * (1 + 2.0**-8) + (self._most + 1) * MIN_SCALE
        bound: npt.NDArray[np.float64] = np.repeat(error, BLOCK)[: len(size)]
        return bound

    def encode_into(self, values: FloatArray, out: bytearray | memoryview) -> None:
        exact = _tensor(np.ascontiguousarray(values, self.working))
        encoded = torch.from_numpy(np.frombuffer(out, np.uint8))
        whole = len(exact) - len(exact) % BLOCK
        for at in range(0, whole, PIECE_ELEMENTS):
            end = min(at + PIECE_ELEMENTS, whole)
            piece = encoded[self.encoded_bytes(at) : self.encoded_bytes(end)]
            self._encode_blocks(exact[at:end].view(-1, BLOCK), piece.view(-1, self.encoded_bytes(BLOCK)))
        if whole < len(exact):
            short = torch.nn.functional.pad(exact[whole:], (0, len(exact) % 2))  # to an even number
            piece = torch.empty(1, self.encoded_bytes(len(short)), dtype=torch.uint8)
            self._encode_blocks(short.view(1, -1), piece)
            encoded[self.encoded_bytes(whole) :] = piece[0, : len(encoded) - self.encoded_bytes(whole)]

    def _encode_blocks(self, blocks: torch.Tensor, encoded: torch.Tensor) -> None:
        """(k, b) floats, b even -> (k, encoded_bytes(b)) uint8."""
        peaks, most = blocks.abs().amax(dim=1, keepdim=True), self._most * MAX_SCALE
        lowest, highest = (float(peak) for peak in peaks.aminmax())
        ordinary = lowest >= 2 * self._most * MIN_SCALE and highest <= most  # false of what is not a number
        if not ordinary:
            finite = peaks.isfinite()
            blocks = torch.where(finite, blocks.clamp(-most, most), 0.0)
            peaks = torch.where(finite, peaks.clamp(max=most), torch.nan)
        scales = peaks.div_(self._most).to(torch.bfloat16)
        inverse = scales.to(torch.float32).reciprocal_()
        if not ordinary:
            scales = torch.where(scales < MIN_SCALE, 0.0, scales)
            inverse = torch.where(scales > 0, inverse, 0.0)
        # The scale is off by 2^-8 of itself at most, too little for a number beyond `_most`, or for a peak short of it.
        numbers = (blocks * inverse).round_()
        encoded[:, :SCALE_BYTES] = scales.view(torch.uint8)
        target = encoded[:, SCALE_BYTES:]
        if self.bits == 8:
            target.view(torch.int8).copy_(numbers)
        else:
            nibbles, half = numbers.to(torch.int8), target.shape[1]
            target.view(torch.int8).copy_((nibbles[:, :half] & 15) | (nibbles[:, half:] << 4))

    def _pieces(self, data: torch.Tensor, elements: int) -> list[torch.Tensor]:
        """`data` as (k, encoded_bytes(BLOCK)) of whole blocks, and (1, n) of a short one; only those that there are."""
        whole = self.encoded_bytes(elements - elements % BLOCK)
        pieces = [data[:whole].view(-1, self.encoded_bytes(BLOCK)), data[whole:].view(1, -1)]
        return [piece for piece in pieces if piece.numel()]

    def _is_sound(self, data: torch.Tensor, elements: int) -> bool:
        if elements % 2 and self.bits == 4 and int(data[-1]) > 15:
            return False
        for piece in self._pieces(data, elements):
            scales = _scales(piece)
            lowest, highest = (float(scale) for scale in scales.aminmax())
            if lowest >= MIN_SCALE and highest <= MAX_SCALE:
                continue
            zero = scales == 0
            if not bool(((scales >= MIN_SCALE) & (scales <= MAX_SCALE) | zero).all()):
                return False
            if bool(piece[zero[:, 0], :].any()):
                return False  # a zero of another sign, or numbers that stand for nothing
        return True

    def _decode_into(self, data: torch.Tensor, values: torch.Tensor) -> None:
        at = 0
        for piece in self._pieces(data, len(values)):
            numbers = piece[:, SCALE_BYTES:].view(torch.int8)
            if self.bits == 4:
                numbers = torch.cat((numbers << 4 >> 4, numbers >> 4), dim=1)
            end = min(at + len(piece) * BLOCK, len(values))
            target = values[at:end].view(len(piece), -1)
            target.copy_(numbers[:, : target.shape[1]]).mul_(_scales(piece))
            at = end


def _scales(blocks: torch.Tensor) -> torch.Tensor:
    """(k, n) encoded blocks -> (k, 1) float32."""
    return blocks[:, :SCALE_BYTES].clone(memory_format=torch.contiguous_format).view(torch.bfloat16).to(torch.float32)


def _tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    """A view. torch knows no memory that must not be written to, and complains of it: so do not write to what came in."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    interface = array.__array_interface__ | {"data": (array.__array_interface__["data"][0], False)}
    return torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=interface, memory=array)))


def _is_finite(values: torch.Tensor) -> bool:
    """One pass when they are: then a sum is finite too, unless it overflows by itself."""
    total = values.to(torch.float32).sum() if values.itemsize < 4 else values.sum()
    return math.isfinite(float(total)) or bool(values.isfinite().all())


CODECS: dict[str, Codec] = {
    "fp64": FloatCodec("fp64", torch.float64),
    "fp32": FloatCodec("fp32", torch.float32),
    "fp16": FloatCodec("fp16", torch.float16),
    "bf16": FloatCodec("bf16", torch.bfloat16),
    "int8": BlockCodec("int8", 8),
    "int4": BlockCodec("int4", 4),
}
