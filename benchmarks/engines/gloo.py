"""torch.distributed over gloo: what an ordinary data-parallel job does. It encrypts nothing, and averages fp32 only."""

from __future__ import annotations

import datetime
import os
import uuid

import torch
import torch.distributed

from benchmarks.engines.base import Greeting, Seat
from benchmarks.vectors import Vector


class Gloo:
    """Auxiliary peers have no part in it, and client mode means nothing to it."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._tensor = torch.zeros(0 if seat.link.auxiliary else seat.params)

    def start(self, first: Greeting | None) -> Greeting:
        os.environ["GLOO_SOCKET_IFNAME"] = self._seat.device
        return {"meeting": str(self._seat.folder / f"gloo-{uuid.uuid4().hex}")}

    def connect(self, greetings: list[Greeting]) -> None:
        if not self._seat.link.auxiliary:
            contributors = self._seat.contributors
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"file://{greetings[0]['meeting']}",
                rank=contributors.index(self._seat.rank),
                world_size=len(contributors),
                timeout=datetime.timedelta(minutes=30),
            )

    def prepare(self, turn: int, vector: Vector) -> None:
        if not self._seat.link.auxiliary:
            self._tensor.copy_(torch.from_numpy(vector))

    def prepared(self) -> bool:
        return True

    def run(self) -> None:
        if not self._seat.link.auxiliary:
            torch.distributed.all_reduce(self._tensor)
            self._tensor /= len(self._seat.contributors)

    def result(self) -> Vector | None:
        return None if self._seat.link.auxiliary else self._tensor.numpy()
