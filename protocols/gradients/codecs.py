"""Codecs: contributed and averaged vectors to bytes and back.

A codec is elementwise, or works on blocks of which `planner.GRID` is a multiple. So the encoding of a value does not depend on
where a plan cuts the vector. A vector is encoded once, and every shard of every plan is a slice of those bytes.

torch does the work, on views of the caller's memory. Its conversions and reductions are vectorised; numpy's are not (fifty times
slower for fp16). We use only operations that round each element once, so that results do not depend on where chunks end.
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
MIN_SCALE, MAX_SCALE = 2.0**-100, 2.0**100  # within these no product underflows, overflows, or is slow
# Elements encoded at a time. So temporaries stay in the processor's cache and are small beside the vector.
PIECE_ELEMENTS = 256 * 1024


@dataclass(frozen=True)
class Codec(ABC):
    """Encodes a vector of n floats as `encoded_bytes(n)` little-endian bytes, and decodes them.

    Values are rounded to nearest. Equal vectors have equal bytes. A value that is not finite is encoded as bytes that `check`
    refuses, so it never decodes to a number.
    """

    name: str

    @property
    def error_feedback(self) -> bool:
        """Whether contributors add what an encoding lost to their next contribution (error_feedback.py)."""
        return False

    @property
    def working(self) -> type[np.float32] | type[np.float64]:
        """The dtype in which vectors are taken, averaged and returned."""
        return np.float32

    def room_for(self, elements: int) -> FloatArray:
        """A new (elements,) array in `working` precision, uninitialised, for `decode_into`."""
        return cast(FloatArray, np.empty(elements, self.working))

    @abstractmethod
    def encoded_bytes(self, elements: int) -> int:
        """Bytes of the encoding of a vector's first `elements` elements. On the grid, element `elements` begins there."""

    @abstractmethod
    def max_error(self, values: FloatArray) -> npt.NDArray[np.float64]:
        """(n,) values -> (n,) bounds of |decoded - value|, for values that do not saturate."""

    def encode(self, values: FloatArray) -> bytes:
        """(n,) floats -> encoded_bytes(n) bytes."""
        out = bytearray(self.encoded_bytes(len(values)))
        self.encode_into(values, out)
        return bytes(out)

    @abstractmethod
    def encode_into(self, values: FloatArray, out: bytearray | memoryview) -> None:
        """Encode (n,) floats into `out`, which has encoded_bytes(n) bytes."""

    def check(self, data: Bytes, elements: int) -> None:
        """Raise BadMessageError unless `data` encodes exactly `elements` finite values. Reads the data at most once."""
        if len(data) != self.encoded_bytes(elements):
            raise BadMessageError(f"{len(data)} bytes are not {elements} {self.name} values")
        if not self._is_sound(_tensor(np.frombuffer(data, np.uint8)), elements):
            raise BadMessageError(f"a {self.name} value is not finite, or not encoded as it should be")

    def decode(self, data: Bytes, elements: int) -> FloatArray:
        """encoded_bytes(elements) bytes -> a new (elements,) array in `working` precision. Raises BadMessageError as `check`."""
        values = self.room_for(elements)
        self.decode_into(data, values)
        return values

    def decode_into(self, data: Bytes, values: FloatArray) -> None:
        """Decode into `values`, an (elements,) array in `working` precision.

        Raises BadMessageError as `check` does; `values` is then unchanged.
        """
        self.check(data, len(values))
        self._decode_into(_tensor(np.frombuffer(data, np.uint8)), torch.from_numpy(values))

    @abstractmethod
    def _is_sound(self, data: torch.Tensor, elements: int) -> bool:
        """Whether (encoded_bytes(elements),) uint8 encode finite values, in the one valid way."""

    @abstractmethod
    def _decode_into(self, data: torch.Tensor, values: torch.Tensor) -> None:
        """Decode (encoded_bytes(elements),) uint8, known to be sound, into (elements,)."""


@dataclass(frozen=True)
class FloatCodec(Codec):
    """Encodes each element as one float of dtype `wire`.

    fp64 and fp32 are exact for vectors of their own precision. fp16 has a relative error of at most 2^-11 (absolute 2^-25 below
    2^-14) and saturates beyond ±65504. bf16 has a relative error of at most 2^-8 (absolute 2^-134 below 2^-126) and the range
    of fp32.
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
    """Encodes blocks of 128 elements, each as a scale (bfloat16) and then one integer of `bits` bits for each element.

    A value is its integer times the scale. The scale is the block's largest magnitude divided by 127 (int8) or 7 (int4). The
    error is at most half a scale. For int8 that is 0.3952 % of the block's largest magnitude (1/254, and 2^-8 of that because
    the scale is rounded); for int4 it is 7.171 % (1/14, likewise). A block whose scale would be below 2^-100 becomes zero.
    Values saturate where the scale would be above 2^100. Products of integer and scale are exact, so decoding and encoding
    again changes no byte.

    Two int4 integers share a byte: element i of the first half of a block has the low bits, and element i of the second half
    has the high bits. The vector's last block may be short. If it has an odd number of elements, its last four bits are zero.
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
            short = torch.nn.functional.pad(exact[whole:], (0, len(exact) % 2))  # to an even length
            piece = torch.empty(1, self.encoded_bytes(len(short)), dtype=torch.uint8)
            self._encode_blocks(short.view(1, -1), piece)
            encoded[self.encoded_bytes(whole) :] = piece[0, : len(encoded) - self.encoded_bytes(whole)]

    def _encode_blocks(self, blocks: torch.Tensor, encoded: torch.Tensor) -> None:
        """(k, b) floats, b even -> (k, encoded_bytes(b)) uint8."""
        peaks, most = blocks.abs().amax(dim=1, keepdim=True), self._most * MAX_SCALE
        lowest, highest = (float(peak) for peak in peaks.aminmax())
        ordinary = lowest >= 2 * self._most * MIN_SCALE and highest <= most  # False if a peak is not a number
        if not ordinary:
            finite = peaks.isfinite()
            blocks = torch.where(finite, blocks.clamp(-most, most), 0.0)
            peaks = torch.where(finite, peaks.clamp(max=most), torch.nan)
        scales = peaks.div_(self._most).to(torch.bfloat16)
        inverse = scales.to(torch.float32).reciprocal_()
        if not ordinary:
            scales = torch.where(scales < MIN_SCALE, 0.0, scales)
            inverse = torch.where(scales > 0, inverse, 0.0)
        # bfloat16 changes the scale by 2^-8 of itself at most. So no integer passes `_most`, and the peak still reaches it.
        numbers = (blocks * inverse).round_()
        encoded[:, :SCALE_BYTES] = scales.view(torch.uint8)
        target = encoded[:, SCALE_BYTES:]
        if self.bits == 8:
            target.view(torch.int8).copy_(numbers)
        else:
            nibbles, half = numbers.to(torch.int8), target.shape[1]
            target.view(torch.int8).copy_((nibbles[:, :half] & 15) | (nibbles[:, half:] << 4))

    def _pieces(self, data: torch.Tensor, elements: int) -> list[torch.Tensor]:
        """Split `data` into (k, encoded_bytes(BLOCK)) whole blocks and (1, n) for a short last one. Leaves out empty pieces."""
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
                return False  # a scale of -0, or integers other than 0 under a scale of 0
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
    """(k, n) encoded blocks -> (k, 1) scales in float32."""
    return blocks[:, :SCALE_BYTES].clone(memory_format=torch.contiguous_format).view(torch.bfloat16).to(torch.float32)


def _tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    """View an array as a tensor. torch warns about read-only memory, so we hide that flag; callers must not write to it."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    interface = array.__array_interface__ | {"data": (array.__array_interface__["data"][0], False)}
    return torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=interface, memory=array)))


def _is_finite(values: torch.Tensor) -> bool:
    """Whether all values are finite. Usually one pass: if the sum is finite, all values are. The sum may overflow by itself."""
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
