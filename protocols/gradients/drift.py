"""Drift control: read and write canonical values of a slice of the training state, and tell rounding from worse (no I/O).

Peers step with the same averaged bytes. So only the arithmetic of the step can make their states drift apart. The bound:

- A step rounds each value a fixed, small number of times. Each time the error is at most half an epsilon of the dtype, relative
  to the values that enter. Fused multiply-adds, other divisions and square roots, and norms summed in another order (LAMB's)
  change that number, but not its kind. So one step moves two machines apart by at most a few epsilons of a value's scale.
- A difference does not grow by itself. Moments forget it (a factor below 1 a step) and weight decay shrinks it. The gradient is
  the same for all, so it does not feed the difference back. A moment's difference reaches the parameter times the learning rate.

So `age` steps after a value was last canonical, two replicas differ in it by at most SLACK * epsilon * age * scale. The scale is
the value's magnitude plus the root mean square of its kind (parameter, or one slot) in its block. The second part is needed
because sums in a moment cancel: a value that is small now was rounded when it was as large as its neighbours. A larger
difference does not come from rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from protocols.errors import BadMessageError
from protocols.gradients.slices import Range

# The most epsilons of a value's scale by which one step may move two replicas apart. Measured on a small gpt2 against a replica
# that stepped in float64 and was rounded after each step: AdamW 5.0, LAMB 3.4, SGD 3.0. It was 21 where a strong weight decay
# swung whole blocks through zero. Against torch's fused AdamW it was 0.9.
SLACK = 32.0


class SlicedState:
    """Views the training state as rows over one flat vector of elements, and reads and writes slices of it.

    Row 0 is the parameters. Then comes a row for each optimizer slot with a value for every element, sorted by name. A slice's
    bytes are, block by block, its part of each row, in the parameters' dtype. Slots of a single number (counters, norms) are
    left out. So are buffers, which each machine keeps for itself.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self._parameters = parameters
        self._optimizer = optimizer

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the optimizer slots that have a row, sorted. Empty before the first step."""
        for parameter in self._parameters:
            if parameter.dim():
                state = self._optimizer.state.get(parameter, {})
                return tuple(sorted(k for k, v in state.items() if isinstance(v, torch.Tensor) and v.shape == parameter.shape))
        return ()

    @property
    def value_bytes(self) -> int:
        """Bytes of one element in all rows together."""
        return (1 + len(self.slots)) * self._parameters[0].element_size()

    def bytes_in(self, ranges: Sequence[Range]) -> int:
        """Bytes of a slice with these ranges."""
        return sum(stop - start for start, stop in ranges) * self.value_bytes

    @torch.no_grad()
    def read(self, ranges: Sequence[Range]) -> bytes:
        """The slice's current values, bytes_in(ranges) bytes."""
        pieces = [_flat(tensor)[start:stop] for tensor, start, stop in self._pieces(ranges)]
        if not pieces:
            return b""
        values = torch.cat(pieces).to("cpu")  # concatenated on the device, so that there is one copy from it
        return values.view(torch.uint8).numpy().tobytes()

    @torch.no_grad()
    def write(self, ranges: Sequence[Range], canonical: bytes) -> None:
        """Overwrite the slice with the bytes that `read` returned on another peer.

        Raises BadMessageError if the size is wrong; nothing is written then.
        """
        values = self._values(ranges, canonical).to(self._parameters[0].device)
        at = 0
        for tensor, start, stop in self._pieces(ranges):
            flat = _flat(tensor)
            flat[start:stop] = values[at : at + stop - start]
            if not tensor.is_contiguous():
                tensor.copy_(flat.view_as(tensor))  # `flat` was a copy
            at += stop - start

    @torch.no_grad()
    def excess(self, ranges: Sequence[Range], canonical: bytes, age: int) -> float:
        """The largest difference from `canonical`, as a multiple of what `age` steps of rounding allow: above 1 it is drift.

        Infinite if `canonical` holds a value that is not finite. Raises BadMessageError if its size is wrong.
        """
        theirs = self._values(ranges, canonical)
        own = self.read(ranges)
        if own == canonical or not ranges:
            return 0.0
        mine = self._values(ranges, own)
        worst, at, rows = 0.0, 0, 1 + len(self.slots)
        for width, count in _runs(ranges):
            size = width * count * rows
            block = (count, rows, width)
            here, there = (values[at : at + size].view(block).double() for values in (mine, theirs))
            scale = here.abs() + here.square().mean(dim=2, keepdim=True).sqrt()
            info = torch.finfo(mine.dtype)
            allowed = SLACK * info.eps * age * scale + info.tiny  # some devices flush smaller values to zero
            worst = max(worst, float(torch.nan_to_num((here - there).abs() / allowed, nan=math.inf, posinf=math.inf).max()))
            at += size
        return worst

    def _values(self, ranges: Sequence[Range], data: bytes) -> torch.Tensor:
        if len(data) != self.bytes_in(ranges):
            raise BadMessageError(f"a slice of {len(data)} bytes, not {self.bytes_in(ranges)}")
        if not data:
            return torch.empty(0, dtype=self._parameters[0].dtype)
        return torch.frombuffer(bytearray(data), dtype=self._parameters[0].dtype)

    def _pieces(self, ranges: Sequence[Range]) -> Iterator[tuple[torch.Tensor, int, int]]:
        """(tensor, start, stop) of all values of the slice, in order. Start and stop are flat indices in the tensor."""
        slots = self.slots
        for parameters in self._covering(ranges):
            for slot in ("", *slots):
                for parameter, start, stop in parameters:
                    yield (self._optimizer.state[parameter][slot] if slot else parameter), start, stop

    def _covering(self, ranges: Sequence[Range]) -> Iterator[list[tuple[torch.nn.Parameter, int, int]]]:
        """For each range, (parameter, start, stop) of the parameters that it covers."""
        todo = iter(self._parameters)
        parameter, at = next(todo), 0  # at: the flat element that `parameter` starts at
        for start, stop in ranges:
            covered = []
            while True:
                end = at + parameter.numel()
                if start < end and at < stop:
                    covered.append((parameter, max(start, at) - at, min(stop, end) - at))
                if stop <= end:
                    break
                parameter, at = next(todo), end
            yield covered


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1)


def _runs(ranges: Sequence[Range]) -> Iterator[tuple[int, int]]:
    """(width, number of consecutive ranges of that width). All blocks have one width but, perhaps, the first and the last."""
    width = count = 0
    for start, stop in ranges:
        if stop - start != width and count:
            yield width, count
            count = 0
        width, count = stop - start, count + 1
    if count:
        yield width, count
