"""True records with some of their numbers and names made up: whatever the wire lets through."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any

from protocols.reasons import Reason
from protocols.round.records import MAX_COUNT, MAX_EPOCHS, MAX_INCARNATION, MAX_LOSS, MAX_SAMPLES

NUMBERS = [0, 1, 2, 63, 64, 65, 1024, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS += [MAX_COUNT, MAX_EPOCHS, MAX_INCARNATION, MAX_SAMPLES]
REALS = [
    0.0,
    5e-324,
    1e-9,
    0.1,
    1.0,
    3599.0,
    1e6 - 1,
    9e11,
    1e30,
    1e100,
    1e300,
    float("inf"),
    float("nan"),
    -1.0,
    MAX_LOSS,
    -MAX_LOSS,
]
TEXTS = ["", "p0", "p1", "p2", "mallory", "f" * 64, "0" * 64, "x" * 4096, "\x1b]52;c;aGk=\x07", "training", "catching up", "fp32"]


class MadeUp:
    """Makes records up from true ones, from a seed."""

    def __init__(self, seed: int | str) -> None:
        self._random = Random(seed)

    def lie(self, record: Any) -> Any:
        """The record with up to three of its values changed, also deep inside, such that it is still a record."""
        for _ in range(100):
            try:
                lied = record
                for _ in range(self._random.randrange(4)):
                    lied = self._changed(lied)
                return lied
            except (ValueError, TypeError, OverflowError):  # the wire refuses it, so this lie cannot be told
                continue
        return record

    def _changed(self, value: Any) -> Any:
        draw = self._random
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value)]
            if not names:
                return value
            name = draw.choice(names)
            return dataclasses.replace(value, **{name: self._changed(getattr(value, name))})
        if isinstance(value, tuple):
            kept = [item for item in value if draw.random() < 0.8]
            return tuple(kept if not value or draw.random() < 0.3 else [*kept[1:], self._changed(draw.choice(value))])
        if isinstance(value, bool):
            return not value
        if isinstance(value, Reason):
            return draw.choice(list(Reason))
        if isinstance(value, int):
            return draw.choice([*NUMBERS, value + 1, max(0, value - 1), value + draw.randrange(1000)])
        if isinstance(value, float):
            return draw.choice([*REALS, value * 1000, value / 1000])
        if isinstance(value, str):
            return draw.choice([*TEXTS, value[::-1]])
        if isinstance(value, bytes):
            return draw.choice([b"", value[:-1], bytes(len(value))])
        return value
